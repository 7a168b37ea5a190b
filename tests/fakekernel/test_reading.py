"""
Tests of reading uevents, attributes, strings and C{usb.ids}.
"""

from __future__ import annotations

import os
import socket

from twisted.trial.unittest import SynchronousTestCase

from usbip_server.kernel.scan import Attributes, Scanner, Strings
from usbip_server.kernel.system import System
from usbip_server.kernel.uevents import Uevents, deviceOf
from usbip_server.kernel.usbids import UsbIds, parse
from usbip_server.model.device import DeviceState, UsbDevice
from usbip_server.model.devicerules import Match
from usbip_server.testing import FakeKernel, FakeReactor

# As Linux 6.1 sends them.
BIND = (
    b"bind@/devices/pci0000:00/0000:00:03.0/usb1/1-2/1-2.4\0ACTION=bind\0"
    b"DEVPATH=/devices/pci0000:00/0000:00:03.0/usb1/1-2/1-2.4\0SUBSYSTEM=usb\0MAJOR=189\0"
    b"MINOR=5\0DEVNAME=bus/usb/001/006\0DEVTYPE=usb_device\0DRIVER=usb\0PRODUCT=46f4/1/0\0"
    b"TYPE=0/0/0\0BUSNUM=001\0DEVNUM=006\0SEQNUM=898\0"
)
INTERFACE = BIND.replace(b"1-2/1-2.4\0S", b"1-2/1-2.4/1-2.4:1.0\0S")
HUB = BIND.replace(b"/1-2/1-2.4", b"")
BLOCK = BIND.replace(b"SUBSYSTEM=usb", b"SUBSYSTEM=block")


class UeventTests(SynchronousTestCase):
    """
    L{usbip_server.kernel.uevents}.
    """

    def test_deviceOf(self) -> None:
        """A uevent is about a device or an interface of it. Uevents about root hubs and other
        subsystems, and messages of udev, are about none. A truncated one does no harm."""
        self.assertEqual([deviceOf(m) for m in (BIND, INTERFACE)], ["1-2.4", "1-2.4"])
        for message in (HUB, BLOCK, b"libudev\0\xfe\xed\xca\xfe", b"", b"\0\0", b"\xff" * 99):
            self.assertIsNone(deviceOf(message))
        for end in range(len(BIND)):
            self.assertIn(deviceOf(BIND[:end]), (None, "1-2", "1-2.4"))

    def test_reading(self) -> None:
        """All messages of the kernel are read; those of other processes are dropped."""
        kernel = FakeKernel()
        busIds: list[str] = []
        lost: list[int] = []
        source = kernel.ueventSocket()
        uevents = Uevents(source, FakeReactor(), busIds.append, lambda: lost.append(1))
        uevents.doRead()
        self.assertFalse(uevents.hasReceived)
        for message in (BIND, HUB, INTERFACE):
            source.send(message)
        uevents.doRead()
        self.assertEqual((busIds, lost, uevents.hasReceived), (["1-2.4", "1-2.4"], [], True))
        source.overrun = True
        uevents.doRead()
        self.assertEqual(len(lost), 1)
        receive = source.recvfrom
        self.patch(source, "recvfrom", lambda size: (receive(size)[0], (4711, 1)))
        source.send(BIND)
        uevents.doRead()
        self.assertEqual(len(busIds), 2)
        uevents.stop()

    def test_realSocket(self) -> None:
        """The real kernel's socket can be opened without root."""
        made = System().ueventSocket()
        self.assertIsInstance(made, socket.socket)
        self.assertRaises(BlockingIOError, made.recvfrom, 8192)
        made.close()


class ScannerTests(SynchronousTestCase):
    """
    L{usbip_server.kernel.scan}: the device 1-1 with two interfaces.
    """

    def setUp(self) -> None:
        self.kernel = FakeKernel()
        self.kernel.plug("1-1", interfaces=((2, 2, 1), (10, 0, 0)))
        self.descriptors = self.kernel.read("bus/usb/devices/1-1/descriptors")

    def attributes(self, descriptors: bytes | None = None) -> Attributes:
        """The attributes of the device, with these descriptors."""
        (attributes,) = self.read(descriptors or self.descriptors)
        return attributes

    def read(self, descriptors: bytes) -> list[Attributes]:
        """Read the device with these descriptors."""
        kernel = FakeKernel()
        kernel.plug("1-1")
        read = kernel.read
        self.patch(
            kernel,
            "read",
            lambda path: descriptors if path.endswith("/descriptors") else read(path),
        )
        return Scanner(kernel, UsbIds([])).read(["1-1"])

    def device(self, attributes: Attributes) -> UsbDevice:
        """The device with these attributes."""
        return Scanner(self.kernel, UsbIds([])).device(attributes, Strings(), None)

    def test_deviceDescriptor(self) -> None:
        """Class, subclass, protocol, release and the number of configurations are those of the
        device descriptor; the path in sysfs is that of the link."""
        descriptors = bytearray(self.descriptors)
        descriptors[4:7], descriptors[12:14], descriptors[17] = b"\xef\x02\x01", b"\x34\x12", 3
        device = self.device(self.attributes(bytes(descriptors)))
        self.assertEqual((device.deviceClass, device.subclass, device.protocol), ("ef", "02", "01"))
        self.assertEqual((device.release, device.configurations), (0x1234, 3))
        self.assertEqual(device.sysfsPath, "/sys/devices/pci0000:00/0000:00:03.0/usb1/1-1")
        self.assertEqual(device.path, "pci-0000:00:03.0-usb-0:1")

    def test_interfaces(self) -> None:
        """The interfaces are those of the first configuration in their first setting: the first
        descriptor of each number, and at most 32 numbers, as in the kernel. The classes are those
        of all configurations and settings, each once."""
        self.assertEqual(self.attributes().interfaces, ("02/02/01", "0a/00/00"))
        second = bytes((9, 2, 45, 0, 2, 2, 0, 0x80, 50))
        settings = (
            bytes((9, 4, 0, setting, 0, *triple, 0))
            for setting, triple in enumerate(((255, 0, 0), (8, 6, 80), (2, 2, 1)))
        )
        attributes = self.attributes(self.descriptors + second + b"".join(settings))
        self.assertEqual(attributes.interfaces, ("02/02/01", "0a/00/00"))
        self.assertEqual(attributes.classes, ("02/02/01", "0a/00/00", "ff/00/00", "08/06/50"))
        self.assertTrue(Match(device_class="storage").meets(self.device(attributes)))
        for numbers, expected in (
            (tuple(range(256)) + tuple(range(44)), 32),
            ((0, 0, 1, 0), 2),
            ((200, 7), 2),
        ):
            interfaces = (
                bytes((9, 4, number, 0, 0, 255, at // 256, at % 256, 0))
                for at, number in enumerate(numbers)
            )
            first = [f"ff/00/{numbers.index(number):02x}" for number in dict.fromkeys(numbers)]
            attributes = self.attributes(self.descriptors[:27] + b"".join(interfaces))
            self.assertEqual(attributes.interfaces, tuple(first[:expected]))

    def test_activeConfiguration(self) -> None:
        """The interfaces are those of the active configuration, as long as it is known; a rule for
        a class matches any configuration."""
        second = bytes((9, 2, 18, 0, 1, 2, 0, 0x80, 50)) + bytes((9, 4, 0, 0, 0, 8, 6, 80, 0))
        whole, read = self.descriptors + second, self.kernel.read
        self.patch(
            self.kernel, "read", lambda path: whole if path.endswith("/descriptors") else read(path)
        )
        scanner = Scanner(self.kernel, UsbIds([]))
        first, other = ("02/02/01", "0a/00/00"), ("08/06/50",)
        for value, expected in ((1, first), (2, other), (1, first), (7, first), (2, other)):
            self.kernel.configure("1-1", value)
            (attributes,) = scanner.read(["1-1"])
            self.assertEqual(attributes.interfaces, expected)
            self.assertTrue(Match(device_class="storage").meets(self.device(attributes)))
        self.kernel.write("bus/usb/drivers/usb/unbind", b"1-1")  # it has no configuration then
        (attributes,) = scanner.read(["1-1"])
        self.assertEqual(attributes.interfaces, other)

    def test_damagedDescriptors(self) -> None:
        """Descriptors that are truncated, or have a wrong length, do no harm."""
        whole = self.descriptors
        damaged = [whole[:end] for end in range(len(whole))]
        damaged += [
            whole[:at] + bytes([value]) + whole[at + 1 :]
            for at in range(len(whole))
            for value in (0, 1, 2, 9, 255)
        ]
        for descriptors in damaged:
            for attributes in self.read(descriptors):
                self.assertLessEqual(len(attributes.interfaces), 2)

    def test_endsDuringRead(self) -> None:
        """A device whose session ends while it is read is not shown as in use without a holder."""
        self.kernel.plug("1-1", driver="usbip-host")
        read = self.kernel.read
        statuses = [b"2\n", b"1\n"]
        self.patch(
            self.kernel,
            "read",
            lambda path: statuses.pop(0) if path.endswith("usbip_status") else read(path),
        )
        scanner = Scanner(self.kernel, UsbIds([]))
        (attributes,) = scanner.read(["1-1"])
        device = scanner.device(attributes, Strings(), None)
        self.assertEqual((device.state, device.holder), (DeviceState.BOUND, None))

    def test_strings(self) -> None:
        """What cannot be displayed is escaped, so that serial numbers that differ in it differ."""
        serial = " \x1b[31mA\x00B\\\u2028\r\n "
        self.kernel.plug("1-1", serial=serial, product="Grüße\xa0\N{RIGHT-TO-LEFT OVERRIDE}")
        texts: list[Strings] = []
        scanner = Scanner(self.kernel, UsbIds([]))
        scanner.readStrings(scanner.read(["1-1"]), lambda plugId, strings: texts.append(strings))
        [strings] = texts
        self.assertEqual(strings.serial, r"\x1b[31mA\x00B\x5c\u2028\x0d\x0a")
        self.assertEqual(strings.product, r"Grüße \u202e")

    def test_madeTree(self) -> None:
        """A tree of plain files and directories can be read, but has no uevents and modules."""
        root = self.mktemp()
        device = os.path.join(root, "bus/usb/devices/1-1")
        os.makedirs(device)
        for name in ("descriptors", "devnum", "speed"):
            with open(os.path.join(device, name), "wb") as file:
                file.write(self.kernel.read(f"bus/usb/devices/1-1/{name}"))
        system = System(root)
        scanner = Scanner(system, UsbIds([]))
        (attributes,) = scanner.read(scanner.busIds())
        self.assertEqual(
            (attributes.busId, attributes.vendorId, attributes.driver), ("1-1", "46f4", None)
        )
        self.assertEqual(
            (attributes.sysfsPath, attributes.path), ("/sys/bus/usb/devices/1-1", None)
        )
        self.assertRaises(OSError, system.ueventSocket)
        self.assertRaises(OSError, system.loadModule, "usbip-host")


class UsbIdsTests(SynchronousTestCase):
    """
    L{usbip_server.kernel.usbids}.
    """

    TEXT = """\
#\tcomment
0403  Future Technology Devices International, Ltd
\t6001  FT232 Serial (UART) IC
\t\t01  an interface
046D  Upper Case, Inc.
\tC52B  Receiver
C 08  Mass Storage
\t06  SCSI
"""

    def test_parse(self) -> None:
        """Vendors and products are parsed, interfaces and the lists of classes are not."""
        names = parse(self.TEXT.splitlines(keepends=True))
        self.assertEqual(
            names,
            {
                "0403": "Future Technology Devices International, Ltd",
                "04036001": "FT232 Serial (UART) IC",
                "046d": "Upper Case, Inc.",
                "046dc52b": "Receiver",
            },
        )

    def test_describe(self) -> None:
        """For vendor and product each: the name in the file, else the device's string."""
        path = self.mktemp()
        with open(path, "w") as file:
            file.write(self.TEXT)
        ids = UsbIds([self.mktemp(), path])
        vendor = "Future Technology Devices International, Ltd"
        for wanted, *known in (
            (f"{vendor} FT232 Serial (UART) IC", "0403", "6001", "FTDI", "mine"),
            (f"{vendor} mine", "0403", "ffff", "FTDI", "mine"),
            ("Me mine", "ffff", "0001", "Me", "mine"),
            (vendor, "0403", "ffff", None, None),
            ("USB device ffff:0001", "ffff", "0001", None, None),
        ):
            self.assertEqual(ids.describe(*known), wanted)

    def test_lazy(self) -> None:
        """The file is read when the first name is asked for, and once."""
        path = self.mktemp()
        ids = UsbIds([path])
        with open(path, "w") as file:
            file.write("ffff  Late\n")
        self.assertEqual(ids.describe("ffff", "0001", None, None), "Late")
        os.unlink(path)
        self.assertEqual(ids.describe("ffff", "0001", None, None), "Late")
