"""
More devices than C{usbip-host} has places for, devices that change while they are plugged in
again, and devices that cannot be told apart by their ids.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.kernel import guest
from tests.kernel.daemoncase import BUS_IDS, CARD_READER, DISK, SERIAL, DaemonCase
from tests.kernel.devices import CONTROLLERS, Kind, gadgetBusId
from tests.kernel.needs import Need, needs
from tests.support.childdaemon import ChildDaemon

PLACES = 16
"""C{MAX_BUSID} (C{drivers/usb/usbip/stub.h})."""

FREE = tuple(range(10, CONTROLLERS))
"""The controllers that nothing is plugged into when a guest starts, and at which no test plugs in
anything else."""

TWINS = "10c4:ea60"
"""Two boards with the same ids."""


@needs(Need.GADGETS)
class GadgetCase(DaemonCase):
    """
    With the sysfs backend.
    """

    backend = "{type: sysfs}"

    def remembering(self) -> ChildDaemon:
        """A daemon that keeps what was attached when it is unplugged."""
        return self.daemon(self.config(f"{{file: {Path(self.mktemp()).absolute()}}}"))

    def plugged(self, name: str, controller: int, **more: object) -> guest.Device:
        """
        A card reader that is plugged in until the test ends at the latest.

        @param more: what is different about it.
        """
        device = replace(guest.CARD_READER, name=name, busId=gadgetBusId(controller), **more)  # type: ignore[arg-type]
        guest.plug(device)
        self.addCleanup(self.gone, device)
        guest.waitPresent(device.busId)
        return device

    def gone(self, device: guest.Device) -> None:
        """Unplug a device, if it is there, and have it in no table of usbip-host."""
        if guest.vidPid(device.busId) is not None:
            guest.forget(device.busId)
            guest.unplug(device)
            guest.waitGone(device.busId)

    def listedSoon(self, daemon: ChildDaemon, *devices: guest.Device) -> None:
        """It lists these besides those that the guest was born with."""
        wanted = sorted({*BUS_IDS, *(device.busId for device in devices)})
        guest.waitUntil(lambda: sorted(self.listed(daemon)) == wanted, f"{wanted} are listed")


class ManyTests(GadgetCase):
    """
    Fifteen devices.
    """

    def test_full(self) -> None:
        """
        All are listed. As many as usbip-host has places for are attached; the next one fails, says
        that there are 16 places, and keeps its driver. Each that is detached makes room for
        another one.
        """
        daemon = self.daemon()
        more = [self.plugged(f"more{number}", number) for number in FREE]
        more += [self.plugged(f"most{number}", number) for number in (6, 7)]
        self.listedSoon(daemon, *more)
        busIds = [*BUS_IDS, *(device.busId for device in more)]
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


class TwinTests(GadgetCase):
    """
    Two devices with the same ids.
    """

    def test_serialNumbers(self) -> None:
        """
        Two of a kind match together, and are told apart by their serial numbers or, where they
        have none, by their places.
        """
        daemon = self.daemon()
        with_ = [self.plugged(f"with{n}", n, vidPid=TWINS, serial=f"S{n}") for n in (10, 11)]
        self.listedSoon(daemon, *with_)
        answer = daemon.ask("attach", id=TWINS)
        self.assertEqual(answer["status"], "multiple_matches")
        for device in with_:
            self.assertIn(device.busId, answer["message"])
            found = self.succeeds(daemon.ask("attach", id=TWINS, serial=device.serial))
            self.assertEqual(found["bus_id"], device.busId)
            self.succeeds(daemon.ask("detach", id=device.busId))
        for device in with_:
            self.gone(device)
        without = [self.plugged(f"without{n}", n, vidPid=TWINS) for n in (10, 11)]
        self.listedSoon(daemon, *without)
        self.assertEqual(daemon.ask("attach", id=TWINS)["status"], "multiple_matches")
        for device in without:
            found = self.succeeds(daemon.ask("attach", id=device.busId))
            self.assertEqual((found["bus_id"], found["serial"]), (device.busId, None))
            self.succeeds(daemon.ask("detach", id=device.busId))


class ChangingTests(GadgetCase):
    """
    A board that is flashed: it is unplugged and plugged in as something else.
    """

    def test_identity(self) -> None:
        """
        Another device at the same place is not taken for the one that was attached: it is left to
        its own driver. The first one is attached again when it is back.
        """
        daemon = self.remembering()
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
            self.stateSoon(daemon, "bound", SERIAL)

    def test_speed(self) -> None:
        """
        A disk that is plugged in again at super speed is at another bus: it is attached there, as
        it is the same device, and read whole by a client.
        """
        fast = replace(guest.DISK, busId=gadgetBusId(2, isSuper=True))
        self.addCleanup(self.slowAgain, fast)  # when the daemon has ended
        daemon = self.remembering()
        self.succeeds(daemon.ask("attach", serial="DISK42"))
        guest.unplug(guest.DISK)
        guest.waitGone(DISK)
        guest.plug(fast)
        guest.waitPresent(fast.busId, "usbip-host")
        self.stateSoon(daemon, "bound", fast.busId)
        with guest.StockUsbipd():
            guest.check("usbip", "attach", "-r", "127.0.0.1", "-b", fast.busId)
            port, imported = guest.waitImport()
            node = guest.waitBlockDevice(imported)
            self.assertEqual(guest.attribute(imported, "speed"), "5000")
            self.assertTrue(guest.diskBytes() == guest.readBlockDevice(node))
            guest.check("usbip", "detach", "-p", str(port))
            guest.waitGone(imported)

    def slowAgain(self, fast: guest.Device) -> None:
        """Have the disk where it was."""
        guest.forget(fast.busId)
        guest.unplug(fast)
        guest.waitGone(fast.busId)
        guest.plug(guest.DISK)
        guest.waitBlockDevice(DISK)

    def test_reset(self) -> None:
        """
        A device that is reset is still there, bound if it was, and can be imported.
        """
        daemon = self.daemon()
        guest.reset(DISK)
        guest.waitBlockDevice(DISK)
        self.assertEqual(self.state(daemon), "free")
        self.succeeds(daemon.ask("attach", id=DISK))
        guest.reset(DISK)
        self.stateSoon(daemon, "bound")
        _, imported = self.importDisk()
        self.assertTrue(guest.diskBytes() == guest.readBlockDevice(guest.waitBlockDevice(imported)))
        self.assertEqual(self.state(daemon), "in_use")
        self.assertTrue(Path("/sys/bus/usb/devices", CARD_READER).exists())


del DaemonCase, GadgetCase  # they are not to be run themselves
