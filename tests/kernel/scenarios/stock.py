"""
The stock tools on the guest's devices. None of our own code: if this fails, it is the harness.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.kernel import guest
from tests.kernel.needs import Need, needs

DISK = guest.DISK.busId


class DevicesTests(SynchronousTestCase):
    """
    What is plugged in.
    """

    def setUp(self) -> None:
        guest.awaitDevices()
        self.addCleanup(guest.resetUsb)

    def test_bornWith(self) -> None:
        """
        The devices are where L{tests.kernel.devices} has them, and are what it says.
        """
        for device in guest.DEVICES:
            self.assertEqual(guest.vidPid(device.busId), device.vidPid)
        for device in (guest.SERIAL, guest.DISK):
            self.assertEqual(guest.attribute(device.busId, "serial"), device.serial)

    def test_localDisk(self) -> None:
        """
        The disk has the bytes of the image.
        """
        node = guest.waitBlockDevice(DISK)
        self.assertTrue(guest.diskBytes() == guest.readBlockDevice(node))

    def test_replug(self) -> None:
        """
        A device that is pulled out is gone, and comes back where it was, perhaps with another
        serial number.
        """
        for device, serial in ((guest.DISK, "DISK43"), (guest.SERIAL, "QSER2")):
            guest.unplug(device)
            guest.waitGone(device.busId)
            guest.plug(device.withSerial(serial))
            guest.waitPresent(device.busId)
            self.assertEqual(guest.attribute(device.busId, "serial"), serial)
        guest.waitBlockDevice(DISK)

    def test_secondDisk(self) -> None:
        """
        A fast disk is on a super speed bus.
        """
        guest.plug(guest.FAST_DISK)
        busId = guest.FAST_DISK.busId
        self.addCleanup(guest.waitGone, busId)
        self.addCleanup(guest.unplug, guest.FAST_DISK)
        guest.waitBlockDevice(busId)
        self.assertEqual(guest.attribute(busId, "speed"), "5000")

    def test_refusal(self) -> None:
        """
        What cannot be plugged in or pulled out is an exception.
        """
        self.assertRaises(guest.PlugError, guest.unplug, guest.FAST_DISK)
        self.assertRaises(guest.PlugError, guest.plug, guest.DISK)


class ImportTests(SynchronousTestCase):
    """
    A device goes through the kernel's USB/IP and back to the guest itself.
    """

    def setUp(self) -> None:
        guest.awaitDevices()  # first: bus 1 is the first one there
        guest.modprobe("usbip-host")
        guest.modprobe("vhci-hcd")
        self.addCleanup(guest.resetUsb)

    def test_disk(self) -> None:
        """
        The imported disk has the bytes of the image, and comes home afterwards.
        """
        guest.check("usbip", "bind", "-b", DISK)
        self.assertEqual("usbip-host", guest.driverOf(DISK))
        self.assertEqual(1, guest.usbipStatus(DISK))
        with guest.StockUsbipd():
            guest.check("usbip", "attach", "-r", "127.0.0.1", "-b", DISK)
            port, busId = guest.waitImport()
            self.assertEqual("DISK42", guest.attribute(busId, "serial"))
            node = guest.waitBlockDevice(busId)
            self.assertTrue(guest.diskBytes() == guest.readBlockDevice(node))
            self.assertEqual(2, guest.usbipStatus(DISK))
            guest.check("usbip", "detach", "-p", str(port))
            guest.waitGone(busId)
            guest.waitUntil(lambda: guest.usbipStatus(DISK) == 1, "the disk is free again")
        guest.check("usbip", "unbind", "-b", DISK)
        guest.waitBlockDevice(DISK)

    def test_unplugWhileImported(self) -> None:
        """
        A disk that is pulled out is pulled out at the client's too.
        """
        guest.check("usbip", "bind", "-b", DISK)
        with guest.StockUsbipd():
            guest.check("usbip", "attach", "-r", "127.0.0.1", "-b", DISK)
            _, busId = guest.waitImport()
            guest.unplug(guest.DISK)
            guest.waitGone(DISK)
            guest.waitGone(busId)
        self.assertEqual({}, guest.imports())

    @needs(Need.STOCK_KERNEL)
    def test_autoload(self) -> None:
        """
        The kernel finds its modules by itself: it runs the guest's C{modprobe}.
        """
        guest.run("modprobe", "-r", "vfat", "fat")
        self.assertNotIn("vfat", guest.check("cat", "/proc/filesystems"))
        result = guest.run("mount", "-t", "vfat", "/dev/zero", "/mnt")
        self.assertNotEqual(0, result.rc)
        self.assertIn("vfat", guest.check("cat", "/proc/filesystems"))
