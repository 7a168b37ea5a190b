"""Debian's tools on the guest's devices, without this project's daemon: tests of the harness."""

from __future__ import annotations

from tests.kernel import guest
from tests.kernel.daemoncase import DISK, FAST, GuestCase
from tests.kernel.needs import Need, needs


class DevicesTests(GuestCase):
    """The devices, and plugging them."""

    modules = ()

    def test_presentAtStart(self) -> None:
        """The devices have the bus ids and ids of L{tests.kernel.devices}, the disk its image."""
        for device in guest.DEVICES:
            self.assertEqual(guest.vidPid(device.busId), device.vidPid)
        for device in (guest.SERIAL, guest.DISK):
            self.assertEqual(guest.attribute(device.busId, "serial"), device.serial)
        guest.checkDiskBytes(guest.waitBlockDevice(DISK))

    def test_replug(self) -> None:
        """A device that is unplugged and plugged in has the same bus id and a new serial number."""
        for device, serial in ((guest.DISK, "DISK43"), (guest.SERIAL, "QSER2")):
            guest.unplug(device)
            guest.waitGone(device.busId)
            guest.plug(device.withSerial(serial))
            guest.waitPresent(device.busId)
            self.assertEqual(guest.attribute(device.busId, "serial"), serial)
        guest.waitBlockDevice(DISK)

    def test_fastDisk(self) -> None:
        """The fast disk is on a super speed bus."""
        self.plugFastDisk()
        self.assertEqual(guest.attribute(FAST, "speed"), "5000")

    def test_plugRefused(self) -> None:
        """Unplugging an absent device and plugging in a present one raise an exception."""
        self.assertRaises(guest.PlugError, guest.unplug, guest.FAST_DISK)
        self.assertRaises(guest.PlugError, guest.plug, guest.DISK)


class ImportTests(GuestCase):
    """A device of the guest is imported by the guest itself."""

    def test_disk(self) -> None:
        """The imported disk has the bytes of the image; afterwards its own driver has the disk."""
        guest.check("usbip", "bind", "-b", DISK)
        self.assertEqual((guest.driverOf(DISK), guest.usbipStatus(DISK)), ("usbip-host", 1))
        with guest.stockUsbipd():
            port, busId = guest.stockAttach(DISK)
            self.assertEqual(guest.attribute(busId, "serial"), "DISK42")
            guest.checkDiskBytes(guest.waitBlockDevice(busId))
            self.assertEqual(guest.usbipStatus(DISK), 2)
            guest.stockDetach(port, busId)
            guest.waitUntil(lambda: guest.usbipStatus(DISK) == 1, "the disk is free again")
        guest.check("usbip", "unbind", "-b", DISK)
        guest.waitBlockDevice(DISK)

    def test_unplugWhileImported(self) -> None:
        """A disk that is unplugged while it is imported is gone at the client, too."""
        guest.check("usbip", "bind", "-b", DISK)
        with guest.stockUsbipd():
            _, busId = guest.stockAttach(DISK)
            guest.unplug(guest.DISK)
            guest.waitGone(DISK)
            guest.waitGone(busId)
        self.assertEqual(guest.imports(), {})

    @needs(Need.STOCK_KERNEL)
    def test_autoload(self) -> None:
        """The kernel loads the module of a file system: it runs the guest's C{modprobe}."""
        guest.run("modprobe", "-r", "vfat", "fat")
        self.assertNotIn("vfat", guest.check("cat", "/proc/filesystems"))
        self.assertNotEqual(guest.run("mount", "-t", "vfat", "/dev/zero", "/mnt").rc, 0)
        self.assertIn("vfat", guest.check("cat", "/proc/filesystems"))


del GuestCase  # base classes are not run
