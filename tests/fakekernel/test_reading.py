"""
Reading what the kernel says: uevents, descriptors, strings, names.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import partial

from twisted.trial.unittest import SynchronousTestCase

from usbip_server.kernel.scan import Scanner, Strings
from usbip_server.kernel.system import System
from usbip_server.kernel.uevents import Uevents, deviceOf
from usbip_server.kernel.usbids import UsbIds, parse
from usbip_server.model.device import DeviceState
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
    Messages of the kernel.
    """

    def test_deviceOf(self) -> None:
        """A message is about a device, also when it is about one of its interfaces."""
        self.assertEqual([deviceOf(m) for m in (BIND, INTERFACE)], ["1-2.4", "1-2.4"])

    def test_others(self) -> None:
        """Root hubs, other subsystems and udev's own messages are nothing to us."""
        for message in (HUB, BLOCK, b"libudev\0\xfe\xed\xca\xfe", b"", b"\0\0", b"\xff" * 99):
            self.assertIsNone(deviceOf(message))

    def test_truncated(self) -> None:
        """A message that is cut off anywhere is no device, or that one."""
        for end in range(len(BIND)):
            self.assertIn(deviceOf(BIND[:end]), (None, "1-2", "1-2.4"))

    def test_reading(self) -> None:
        """All that is there is read; what other programs send is dropped."""
        kernel = FakeKernel()
        heard: list[str] = []
        lost: list[int] = []
        source = kernel.ueventSocket()
        uevents = Uevents(source, FakeReactor(), heard.append, lambda: lost.append(1))
        uevents.doRead()
        self.assertFalse(uevents.hasReceived)
        for message in (BIND, HUB, INTERFACE):
            source.send(message)
        uevents.doRead()
        self.assertEqual((heard, lost, uevents.hasReceived), (["1-2.4", "1-2.4"], [], True))
        source.overrun = True
        uevents.doRead()
        self.assertEqual(len(lost), 1)
        receive = source.recvfrom
        source.recvfrom = lambda size: (receive(size)[0], (4711, 1))  # type: ignore[method-assign]
        source.send(BIND)
        uevents.doRead()
        self.assertEqual(len(heard), 2)
        uevents.stop()

    def test_realSocket(self) -> None:
        """The real kernel lets us listen, also without root."""
        made = System().ueventSocket()
        self.assertIsInstance(made, socket.socket)
        self.assertRaises(BlockingIOError, made.recvfrom, 8192)
        made.close()


class ScannerTests(SynchronousTestCase):
    """
    What is made of attributes.
    """

    def setUp(self) -> None:
        self.kernel = FakeKernel()
        self.scanner = Scanner(self.kernel, UsbIds([]))

    def test_interfaces(self) -> None:
        """The interfaces are those of the descriptors."""
        self.kernel.plug("1-1", interfaces=((2, 2, 1), (10, 0, 0)))
        (attributes,) = self.scanner.read(["1-1"])
        self.assertEqual(attributes.interfaces, ("02/02/01", "0a/00/00"))

    def test_manyInterfaces(self) -> None:
        """Of 300 interface descriptors there are as many interfaces as the kernel makes of them:
        the first one of each number, and 32 numbers."""
        self.kernel.plug("1-1", interfaces=())
        read = self.kernel.read
        whole = read("bus/usb/devices/1-1/descriptors")
        for numbers, expected in (
            (tuple(range(256)) + tuple(range(44)), 32),
            ((0, 0, 1, 0), 2),
            ((200, 7), 2),
        ):
            interfaces = (
                bytes((9, 4, number, 0, 0, 255, at // 256, at % 256, 0))
                for at, number in enumerate(numbers)
            )
            descriptors = whole + b"".join(interfaces)
            first = [f"ff/00/{numbers.index(number):02x}" for number in dict.fromkeys(numbers)]
            scanner = Scanner(self.kernel, UsbIds([]))
            self.kernel.read = partial(self.replace, read, descriptors)  # type: ignore[method-assign]
            (attributes,) = scanner.read(["1-1"])
            self.assertEqual(attributes.interfaces, tuple(first[:expected]))

    def test_classes(self) -> None:
        """The classes are those of all configurations and settings, each once; the interfaces
        are those of the first configuration in their first setting."""
        self.kernel.plug("1-1", interfaces=((2, 2, 1), (10, 0, 0)))
        read = self.kernel.read
        second = bytes((9, 2, 45, 0, 2, 2, 0, 0x80, 50))
        settings = (
            bytes((9, 4, 0, setting, 0, *triple, 0))
            for setting, triple in enumerate(((255, 0, 0), (8, 6, 80), (2, 2, 1)))
        )
        whole = read("bus/usb/devices/1-1/descriptors") + second + b"".join(settings)
        self.kernel.read = partial(self.replace, read, whole)  # type: ignore[method-assign]
        (attributes,) = self.scanner.read(["1-1"])
        self.assertEqual(attributes.interfaces, ("02/02/01", "0a/00/00"))
        self.assertEqual(attributes.classes, ("02/02/01", "0a/00/00", "ff/00/00", "08/06/50"))
        device = self.scanner.device(attributes, Strings(), None)
        self.assertTrue(Match(device_class="storage").meets(device))

    def test_deviceDescriptor(self) -> None:
        """Class, subclass, protocol, release and the number of configurations are those of the
        device descriptor."""
        self.kernel.plug("1-1", deviceClass=0xEF)
        descriptors = bytearray(self.kernel.read("bus/usb/devices/1-1/descriptors"))
        descriptors[5:7], descriptors[12:14], descriptors[17] = b"\x02\x01", b"\x34\x12", 3
        read = self.kernel.read
        self.kernel.read = partial(self.replace, read, bytes(descriptors))  # type: ignore[method-assign]
        (attributes,) = self.scanner.read(["1-1"])
        device = self.scanner.device(attributes, Strings(), None)
        self.assertEqual((device.deviceClass, device.subclass, device.protocol), ("ef", "02", "01"))
        self.assertEqual((device.release, device.configurations), (0x1234, 3))

    def test_path(self) -> None:
        """Where a device is in sysfs is found out by following the link to it."""
        self.kernel.plug("1-1")
        (attributes,) = self.scanner.read(["1-1"])
        self.assertEqual(
            self.scanner.device(attributes, Strings(), None).path,
            "/sys/devices/pci0000:00/0000:00:03.0/usb1/1-1",
        )

    def test_endsMeanwhile(self) -> None:
        """A session that ends while we look is over: it is not shown without a holder."""
        self.kernel.plug("1-1", driver="usbip-host")
        read = self.kernel.read
        statuses = [b"2\n", b"1\n"]
        self.kernel.read = (  # type: ignore[method-assign]
            lambda path: statuses.pop(0) if path.endswith("usbip_status") else read(path)
        )
        (attributes,) = self.scanner.read(["1-1"])
        device = self.scanner.device(attributes, Strings(), None)
        self.assertEqual((device.state, device.holder), (DeviceState.BOUND, None))

    def test_damagedDescriptors(self) -> None:
        """Descriptors that are cut off anywhere, or lie about their length, do no harm."""
        self.kernel.plug("1-1", interfaces=((2, 2, 1), (10, 0, 0)))
        whole = self.kernel.read("bus/usb/devices/1-1/descriptors")
        read = self.kernel.read
        damaged = [whole[:end] for end in range(len(whole))]
        damaged += [
            whole[:at] + bytes([value]) + whole[at + 1 :]
            for at in range(len(whole))
            for value in (0, 1, 2, 9, 255)
        ]
        for descriptors in damaged:
            self.kernel.read = partial(self.replace, read, descriptors)  # type: ignore[method-assign]
            for attributes in self.scanner.read(["1-1"]):
                self.assertLessEqual(len(attributes.interfaces), 2)

    def replace(self, read: Callable[[str], bytes], descriptors: bytes, path: str) -> bytes:
        """Read, but other descriptors."""
        return descriptors if path.endswith("descriptors") else read(path)

    def test_strings(self) -> None:
        """Strings are cleaned of what no terminal should get to see."""
        self.kernel.plug("1-1", serial=" \x1b[31mA\x00B\n ", product="Grüße")
        texts: dict[str, Strings] = {}
        found = self.scanner.read(["1-1"])
        self.scanner.readStrings(found, lambda plugId, strings: texts.update(s=strings))
        self.assertEqual((texts["s"].serial, texts["s"].product), ("[31mAB", "Grüße"))

    def test_madeTree(self) -> None:
        """A tree of plain files and directories will do."""
        root = self.mktemp()
        device = os.path.join(root, "bus/usb/devices/1-1")
        os.makedirs(device)
        self.kernel.plug("1-1")
        for name in ("descriptors", "devnum", "speed"):
            with open(os.path.join(device, name), "wb") as file:
                file.write(self.kernel.read(f"bus/usb/devices/1-1/{name}"))
        system = System(root)
        scanner = Scanner(system, UsbIds([]))
        (attributes,) = scanner.read(scanner.busIds())
        self.assertEqual(
            (attributes.busId, attributes.vendorId, attributes.driver), ("1-1", "46f4", None)
        )
        self.assertEqual(attributes.path, "/sys/bus/usb/devices/1-1")
        self.assertRaises(OSError, system.ueventSocket)
        self.assertRaises(OSError, system.loadModule, "usbip-host")


class UsbIdsTests(SynchronousTestCase):
    """
    Names of vendors and products.
    """

    TEXT = """\
#\tcomment
0403  Future Technology Devices International, Ltd
\t6001  FT232 Serial (UART) IC
\t\t01  an interface, which is no product
046D  Upper Case, Inc.
\tC52B  Receiver
C 08  Mass Storage
\t06  SCSI
"""

    def test_parse(self) -> None:
        """Vendors and products, and nothing of the lists behind them."""
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
