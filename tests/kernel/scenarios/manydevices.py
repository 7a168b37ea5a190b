"""More devices than entries in C{usbip-host}'s table, devices that are replugged as something else,
and devices that look the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.kernel import guest
from tests.kernel.daemoncase import BUS_IDS, DISK, SERIAL, DaemonCase
from tests.kernel.devices import CONTROLLERS, Kind, gadgetBusId
from tests.kernel.needs import Need, needs
from tests.support.childdaemon import ChildDaemon

PLACES = 16
"""C{MAX_BUSID} (C{drivers/usb/usbip/stub.h})."""

PATH = "platform-dummy_hcd.2-usb-0:1"
"""Of the disk's port."""

FREE = (6, 7, *range(10, CONTROLLERS))
"""The controllers that have no device when a guest starts, nor later in these tests."""


@needs(Need.GADGETS)
class GadgetCase(DaemonCase):
    """Devices at further controllers."""

    def rememberingDaemon(self, more: str = "") -> ChildDaemon:
        """Run a daemon with a state file: what was attached is attached again after a replug."""
        return self.daemon(self.config(f"{{file: {Path(self.mktemp()).absolute()}}}", more))

    def plugged(self, controller: int, **more: Any) -> guest.Device:
        """Plug in a card reader, or something similar, until the end of the test."""
        name, busId = f"more{controller}", gadgetBusId(controller)
        device = replace(guest.CARD_READER, name=name, busId=busId, **more)
        guest.plug(device)
        self.addCleanup(self.unplug, device)
        guest.waitPresent(device.busId)
        return device

    def unplug(self, device: guest.Device) -> None:
        """Unplug a device, if it is present, and free its entry in usbip-host's table."""
        if guest.vidPid(device.busId) is not None:
            guest.forget(device.busId)
            guest.unplug(device)
            guest.waitGone(device.busId)


class ManyTests(GadgetCase):
    """Seventeen devices."""

    def test_tableFull(self) -> None:
        """All are listed and 16 can be attached. Another attach fails, and the device keeps its
        driver, until one is detached."""
        daemon = self.daemon()
        more = [self.plugged(number) for number in FREE]
        busIds = [*BUS_IDS, *(device.busId for device in more)]
        wanted = sorted(busIds)
        guest.waitUntil(lambda: sorted(self.listed(daemon)) == wanted, f"{wanted} are listed")
        self.assertGreater(len(busIds), PLACES)
        bound, rest = busIds[:PLACES], busIds[PLACES:]
        for busId in bound:
            self.succeeds(daemon.ask("attach", id=busId))
        self.assertEqual({guest.driverOf(busId) for busId in bound}, {"usbip-host"})
        for busId in rest:
            self.fails(daemon.ask("attach", id=busId), "all 16 places")
            self.assertEqual(guest.driverOf(busId), "usb")
        self.succeeds(daemon.ask("detach", id=bound[0]))
        self.succeeds(daemon.ask("attach", id=rest[0]))
        self.assertEqual(guest.driverOf(rest[0]), "usbip-host")
        self.detachAll(daemon)


class ChangingTests(GadgetCase):
    """A device that is unplugged and plugged in with other ids, or at another speed."""

    def test_otherDeviceAtSamePort(self) -> None:
        """Another device at the port of an attached one is not bound. The first one is bound again
        when it is back."""
        daemon = self.rememberingDaemon()
        self.succeeds(daemon.ask("attach", serial="QSER1"))
        boot = replace(
            guest.SERIAL, kind=Kind.DISK, vidPid="2e8a:0003", serial="E0C9125B0D9B", product="Boot"
        )
        with daemon.watch() as watcher:
            guest.unplug(guest.SERIAL)
            watcher.told("removed", SERIAL)
            guest.waitGone(SERIAL)
            guest.plug(boot)
            watcher.told("added", SERIAL)
            guest.waitBlockDevice(SERIAL)
            self.assertEqual(self.state(daemon, SERIAL), "free")
            guest.unplug(boot)
            watcher.told("removed", SERIAL)
            guest.waitGone(SERIAL)
            guest.plug(guest.SERIAL)
            guest.waitPresent(SERIAL, "usbip-host")
            self.awaitState(daemon, "bound", SERIAL)

    def test_otherSpeed(self) -> None:
        """A disk that is plugged in again at super speed has another bus id. As the same device, it
        is bound there, and can be imported. The path of its port is the same, so that a rule with
        that applies at both speeds."""
        fast = replace(guest.DISK, busId=gadgetBusId(2, isSuper=True))
        self.addCleanup(self.plugSlowDisk, fast)  # runs when the daemon has ended
        rule = f"devices: [{{match: {{path: {PATH}}}, name: socket}}]\n"
        daemon = self.rememberingDaemon(rule)
        found = self.succeeds(daemon.ask("attach", path=PATH, detail=True))
        self.assertEqual((found["bus_id"], found["path"], found["name"]), (DISK, PATH, "socket"))
        guest.unplug(guest.DISK)
        guest.waitGone(DISK)
        guest.plug(fast)
        guest.waitPresent(fast.busId, "usbip-host")
        self.awaitState(daemon, "bound", fast.busId)
        for criteria in ({"path": PATH}, {"id": "socket"}):
            found = self.succeeds(daemon.ask("find", detail=True, **criteria))
            self.assertEqual((found["bus_id"], found["path"]), (fast.busId, PATH))
        with guest.stockUsbipd():
            port, imported, node = guest.attachDisk(fast.busId)
            self.assertEqual(guest.attribute(imported, "speed"), "5000")
            guest.checkDiskBytes(node)
            guest.stockDetach(port, imported)

    def plugSlowDisk(self, fast: guest.Device) -> None:
        """Replace a fast disk by the usual one."""
        self.unplug(fast)
        guest.plug(guest.DISK)
        guest.waitBlockDevice(DISK)

    def test_reset(self) -> None:
        """A device that is reset stays free or bound, and can be imported."""
        daemon = self.daemon()
        guest.reset(DISK)
        guest.waitBlockDevice(DISK)
        self.assertEqual(self.state(daemon), "free")
        self.succeeds(daemon.ask("attach", id=DISK))
        guest.reset(DISK)
        self.awaitState(daemon, "bound")
        _, imported = self.importDisk()
        guest.checkDiskBytes(guest.waitBlockDevice(imported))
        self.assertEqual(self.state(daemon), "in_use")


class TwinTests(GadgetCase):
    """Two devices with the same ids, strings and serial number."""

    def test_fillerSerial(self) -> None:
        """C{0001}, the serial number of many CP210x bridges, does not identify a device."""
        self.twins("0001")

    def test_sameSerial(self) -> None:
        """A serial number that two devices have at the same time does not identify a device."""
        self.twins("B3D1A7")

    def twins(self, serial: str) -> None:
        """Attach one of two devices: only a device at its port is bound after a replug, also when
        both are replugged in the opposite order, and only it has the lease."""
        daemon = self.rememberingDaemon()
        strings = {"vidPid": "10c4:ea60", "serial": serial, "product": "CP2102 USB to UART Bridge"}
        one, other = (self.plugged(controller, **strings) for controller in (6, 7))
        self.awaitListedToo(daemon, one, other)
        lease = {"owner": "ci", "ttl": 3600}
        self.succeeds(daemon.ask("attach", id=one.busId, lease=lease))
        for order in ((one,), (other, one), (one, other)):
            with daemon.watch() as watcher:
                for device in order:
                    guest.unplug(device)
                    watcher.told("removed", device.busId)
                    guest.waitGone(device.busId)
                    self.assertOtherIsFree(daemon, other)
                for device in order:
                    guest.plug(device)
                    watcher.told("added", device.busId)
                guest.waitPresent(one.busId, "usbip-host")
                self.awaitState(daemon, "bound", one.busId)
            self.awaitListedToo(daemon, one, other)
            self.assertOtherIsFree(daemon, other)
            self.assertEqual(self.detail(daemon, one.busId)["lease"]["owner"], "ci")
        found = daemon.ask("find", serial=serial)
        self.assertEqual(found["status"], "multiple_matches", found)

    def assertOtherIsFree(self, daemon: ChildDaemon, other: guest.Device) -> None:
        """The device that was not attached, if it is plugged in, is free and not leased."""
        if guest.vidPid(other.busId) is not None:
            found = self.detail(daemon, other.busId)
            self.assertEqual((found["state"], found["lease"]), ("free", None))
            self.assertEqual(guest.driverOf(other.busId), "usb")

    def awaitListedToo(self, daemon: ChildDaemon, *devices: guest.Device) -> None:
        """Wait until some devices are listed."""
        wanted = {device.busId for device in devices}
        guest.waitUntil(lambda: wanted <= {*self.listed(daemon)}, f"{wanted} are listed")


del DaemonCase, GadgetCase  # base classes are not run
