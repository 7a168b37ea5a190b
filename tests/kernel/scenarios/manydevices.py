"""More devices than entries in C{usbip-host}'s table, and devices that are replugged as something
else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.kernel import guest
from tests.kernel.daemoncase import BUS_IDS, DISK, SERIAL, DaemonCase
from tests.kernel.devices import CONTROLLERS, Kind, gadgetBusId
from tests.kernel.needs import Need, needs
from tests.support.childdaemon import ChildDaemon

PLACES = 16
"""C{MAX_BUSID} (C{drivers/usb/usbip/stub.h})."""

FREE = (6, 7, *range(10, CONTROLLERS))
"""The controllers that have no device when a guest starts, nor later in these tests."""


@needs(Need.GADGETS)
class GadgetCase(DaemonCase):
    """Devices at further controllers."""

    def rememberingDaemon(self) -> ChildDaemon:
        """Run a daemon with a state file: what was attached is attached again after a replug."""
        return self.daemon(self.config(f"{{file: {Path(self.mktemp()).absolute()}}}"))

    def plugged(self, controller: int) -> guest.Device:
        """Plug in a card reader until the end of the test."""
        name, busId = f"more{controller}", gadgetBusId(controller)
        device = replace(guest.CARD_READER, name=name, busId=busId)
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
        is bound there, and can be imported."""
        fast = replace(guest.DISK, busId=gadgetBusId(2, isSuper=True))
        self.addCleanup(self.plugSlowDisk, fast)  # runs when the daemon has ended
        daemon = self.rememberingDaemon()
        self.succeeds(daemon.ask("attach", serial="DISK42"))
        guest.unplug(guest.DISK)
        guest.waitGone(DISK)
        guest.plug(fast)
        guest.waitPresent(fast.busId, "usbip-host")
        self.awaitState(daemon, "bound", fast.busId)
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


del DaemonCase, GadgetCase  # base classes are not run
