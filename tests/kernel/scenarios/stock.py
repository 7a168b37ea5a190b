"""
The stock tools on the guest's devices. None of our own code: if this fails, it is the harness.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.kernel import guest


class DevicesTests(SynchronousTestCase):
    """
    What is plugged in.
    """

    def setUp(self) -> None:
        guest.awaitDevices()
        self.addCleanup(guest.resetUsb)

    def test_bornWith(self) -> None:
        """
        The devices are where L{tests.kernel.devices} has them.
        """
        self.assertEqual(
            {
                "1-1": "0403:6001",
                "1-2": "0409:55aa",
                "1-2.2": "0627:0001",
                "1-2.4": "46f4:0001",
                "1-3": "0627:0001",
                "1-4": "08e6:4433",
            },
            {device.busId: guest.vidPid(device.busId) for device in guest.DEVICES},
        )

    def test_serialNumbers(self) -> None:
        """
        Serial converter and disk have the serial numbers that tests look for.
        """
        self.assertEqual("QSER1", guest.attribute("1-1", "serial"))
        self.assertEqual("DISK42", guest.attribute("1-2.4", "serial"))

    def test_localDisk(self) -> None:
        """
        The disk has the bytes of the image.
        """
        node = guest.waitBlockDevice("1-2.4")
        self.assertTrue(guest.diskBytes() == guest.readBlockDevice(node))

    def test_replug(self) -> None:
        """
        A disk that is pulled out is gone, and comes back where it was.
        """
        guest.unplug("disk")
        guest.waitGone("1-2.4")
        guest.plugDisk(serial="DISK43")
        guest.waitBlockDevice("1-2.4")
        self.assertEqual("DISK43", guest.attribute("1-2.4", "serial"))

    def test_replugSerial(self) -> None:
        """
        The same for the serial converter.
        """
        guest.unplug("serial")
        guest.waitGone("1-1")
        guest.plugSerial()
        guest.waitPresent("1-1")

    def test_secondDisk(self) -> None:
        """
        A disk at a port of the controller itself is on the super speed bus.
        """
        guest.plugDisk(port="5", serial="DISK5", deviceId="disk5")
        self.addCleanup(guest.waitGone, "2-5")
        self.addCleanup(guest.unplug, "disk5")
        guest.waitBlockDevice("2-5")

    def test_refusal(self) -> None:
        """
        What QEMU refuses is an exception in the guest.
        """
        refused = self.assertRaises(guest.HotplugError, guest.unplug, "nothing")
        self.assertIn("nothing", str(refused))
        self.assertRaises(guest.HotplugError, guest.plugDisk)


class ImportTests(SynchronousTestCase):
    """
    A device goes through the kernel's USB/IP and back to the guest itself.
    """

    def setUp(self) -> None:
        guest.modprobe("usbip-host")
        guest.modprobe("vhci-hcd")
        guest.awaitDevices()
        self.addCleanup(guest.resetUsb)

    def test_disk(self) -> None:
        """
        The imported disk has the bytes of the image, and comes home afterwards.
        """
        guest.check("usbip", "bind", "-b", "1-2.4")
        self.assertEqual("usbip-host", guest.driverOf("1-2.4"))
        self.assertEqual(1, guest.usbipStatus("1-2.4"))
        with guest.StockUsbipd():
            guest.check("usbip", "attach", "-r", "127.0.0.1", "-b", "1-2.4")
            port, busId = guest.waitImport()
            self.assertEqual("DISK42", guest.attribute(busId, "serial"))
            node = guest.waitBlockDevice(busId)
            self.assertTrue(guest.diskBytes() == guest.readBlockDevice(node))
            self.assertEqual(2, guest.usbipStatus("1-2.4"))
            guest.check("usbip", "detach", "-p", str(port))
            guest.waitGone(busId)
            guest.waitUntil(lambda: guest.usbipStatus("1-2.4") == 1, "the disk is free again")
        guest.check("usbip", "unbind", "-b", "1-2.4")
        guest.waitBlockDevice("1-2.4")

    def test_unplugWhileImported(self) -> None:
        """
        A disk that is pulled out is pulled out at the client's too.
        """
        guest.check("usbip", "bind", "-b", "1-2.4")
        with guest.StockUsbipd():
            guest.check("usbip", "attach", "-r", "127.0.0.1", "-b", "1-2.4")
            _, busId = guest.waitImport()
            guest.unplug("disk")
            guest.waitGone("1-2.4")
            guest.waitGone(busId)
        self.assertEqual({}, guest.imports())

    def test_autoload(self) -> None:
        """
        The kernel finds its modules by itself: it runs the guest's C{modprobe}.
        """
        guest.run("modprobe", "-r", "vfat", "fat")
        self.assertNotIn("vfat", guest.check("cat", "/proc/filesystems"))
        result = guest.run("mount", "-t", "vfat", "/dev/zero", "/mnt")
        self.assertNotEqual(0, result.rc)
        self.assertIn("vfat", guest.check("cat", "/proc/filesystems"))
