"""
Tests of L{usbip_server.kernel.vhci.ports}, and of L{FakeVhci}.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tests.kernel.facts.vhci import VhciFacts
from usbip_server.kernel.system import ISystem, System
from usbip_server.kernel.vhci.ports import Port, PortState, Vhci
from usbip_server.model.errors import LocalTrouble
from usbip_server.testing import FakeVhci, KernelBug

DETACH = "devices/platform/vhci_hcd.0/detach"

FULL, HIGH, SUPER, SUPER_PLUS = 2, 3, 5, 6
"""C{enum usb_device_speed}."""

DEVICE_ID = 0x00020003

LOOKS = 10
"""How often to poll: time passes in the fake with each read."""

MEASURED = """\
hub port sta spd dev      sockfd local_busid
hs  0000 004 000 00000000 000000 0-0
hs  0001 006 002 00010004 000005 3-2
ss  0002 005 000 00000000 000000 0-0
ss  0003 006 005 00020002 000006 4-2
"""
"""The status file of Linux 6.1, with fewer ports."""


class VhciTestCase(SynchronousTestCase):
    """
    Two controllers, each with two hubs of three ports.
    """

    def setUp(self) -> None:
        self.kernel = FakeVhci(controllers=2, ports=3)
        self.addCleanup(self.kernel.close)
        self.vhci = Vhci(self.kernel)

    def connection(self) -> tuple[socket.socket, socket.socket]:
        """A connection to a server: this end and the server's."""
        pair = socket.socketpair()
        for end in pair:
            self.addCleanup(end.close)
        return pair

    def attach(self, port: Port, speed: int = FULL, deviceId: int = DEVICE_ID) -> socket.socket:
        """Attach a device; return the server's end of its connection."""
        ours, theirs = self.connection()
        self.assertTrue(self.vhci.attach(port, ours.fileno(), deviceId, speed))
        ours.close()
        return theirs

    def first(self, speed: int = FULL) -> Port:
        """The first candidate."""
        return next(self.vhci.candidates(speed))

    def numbers(self, speed: int) -> list[int]:
        """The numbers of the candidates."""
        return [port.number for port in self.vhci.candidates(speed)]

    def port(self, number: int) -> Port:
        """A port."""
        port = self.vhci.port(number)
        assert port is not None
        return port

    def assertTrouble(self, text: str, call: Callable[..., object], *arguments: object) -> None:
        """A call fails with a message that contains the text."""
        self.assertIn(text, str(self.assertRaises(LocalTrouble, call, *arguments)))


class PortTests(VhciTestCase):
    """
    The list of ports, and the module.
    """

    def test_ports(self) -> None:
        """All ports of all controllers are listed, each with its place on its hub; a single port is
        read without the controllers behind it."""
        ports = self.vhci.ports()
        self.assertEqual([port.number for port in ports], [*range(12)])
        self.assertEqual([port.controller for port in ports], 6 * [0] + 6 * [1])
        self.assertEqual([port.isSuper for port in ports], 2 * (3 * [False] + 3 * [True]))
        self.assertEqual([port.place for port in ports], 4 * [1, 2, 3])
        self.assertEqual({(port.state, port.busId) for port in ports}, {(PortState.FREE, None)})
        self.assertEqual(self.vhci.port(4), ports[4])
        self.assertIsNone(self.vhci.port(12))
        self.kernel.reads.clear()
        self.vhci.port(0)
        self.assertEqual(len(self.kernel.reads), 1)

    def test_used(self) -> None:
        """A port with a device shows its identity, and the bus id once the kernel has enumerated
        it; a port whose device the kernel has given up can be freed."""
        self.kernel.enumerating = 1
        self.attach(self.first(SUPER), SUPER)
        states = [self.port(3) for _ in range(2)]
        self.assertEqual(
            [(port.state, port.speed, port.deviceId, port.busId) for port in states],
            [(PortState.INITIALISING, 0, 0, None), (PortState.USED, SUPER, DEVICE_ID, "4-1")],
        )
        self.kernel.lose(3)
        self.assertEqual(self.port(3).state, PortState.ERROR)
        self.assertTrue(self.vhci.detach(3))

    def test_module(self) -> None:
        """Each call loads the module if necessary; if that fails, the message contains advice."""
        calls = (self.vhci.ports, self.vhci.require, self.first, lambda: self.vhci.detach(0))
        self.kernel.loadable = False
        for call in calls:
            self.kernel.loaded = False
            self.assertTrouble("sudo modprobe vhci-hcd", call)
            self.assertTrouble("Module vhci-hcd not found", call)
        self.kernel.loadable = True
        for call in calls:
            self.kernel.loaded = False
            call()

    def test_permission(self) -> None:
        """C{require} fails without permission, and writes nothing; so does C{detach}."""
        self.attach(self.first())
        self.kernel.writes.clear()
        self.vhci.require()
        for number, text in (
            (errno.EACCES, "with sudo"),
            (errno.EROFS, "read-only"),
            (errno.EIO, "Input/output error"),
        ):
            self.kernel.refuse = number
            self.assertTrouble(text, self.vhci.require)
            self.assertTrouble(text, self.vhci.detach, 0)
        self.assertEqual(self.kernel.writes, [])


class AttachTests(VhciTestCase):
    """
    Attach and detach.
    """

    def test_candidates(self) -> None:
        """The candidates for a speed are the free ports of the hubs for it; to find the first one
        only its controller is read."""
        for speed, numbers in (
            (FULL, [0, 1, 2, 6, 7, 8]),
            (HIGH, [0, 1, 2, 6, 7, 8]),
            (SUPER, [3, 4, 5, 9, 10, 11]),
            (SUPER_PLUS, [3, 4, 5, 9, 10, 11]),
        ):
            self.assertEqual(self.numbers(speed), numbers)
        self.kernel.reads.clear()
        self.first()
        self.assertLessEqual(len(self.kernel.reads), 3)  # its status, and the speed of its hubs

    def test_allPorts(self) -> None:
        """Every port can be used, and has a folder then."""
        self.assertIsNone(self.vhci.folderOf(self.first()))
        for speed in (FULL, SUPER):
            for number in self.numbers(speed):
                port = self.first(speed)
                self.assertEqual(port.number, number)
                self.attach(port, speed)
                folder = self.vhci.folderOf(port)
                self.assertEqual(folder and folder.rpartition("/")[2], self.port(number).busId)
            self.assertEqual(self.numbers(speed), [])
        self.assertEqual(len(self.kernel.used()), 12)

    def test_line(self) -> None:
        """The kernel receives decimal numbers, and no speed above that of SuperSpeed."""
        for speed in (FULL, SUPER_PLUS):
            self.attach(self.first(speed), speed)
        [(_, slow), (_, fast)] = self.kernel.writes
        self.assertRegex(slow, rf"\A0 [0-9]+ {DEVICE_ID} 2\Z")
        self.assertRegex(fast, rf"\A3 [0-9]+ {DEVICE_ID} 5\Z")

    def test_refused(self) -> None:
        """A port that another program has taken is C{False}; what the kernel refuses is an
        error."""
        port = self.first()
        self.attach(port)
        ours, _ = self.connection()
        self.assertFalse(self.vhci.attach(port, ours.fileno(), DEVICE_ID, FULL))
        for descriptor, speed in ((9999, FULL), (ours.fileno(), 0)):
            self.assertTrouble(
                "the kernel refuses to attach: Invalid argument",
                *(self.vhci.attach, self.first(), descriptor, DEVICE_ID, speed),
            )

    def test_detach(self) -> None:
        """After a detach the port is free and the connection ends; without a device the result is
        C{False}. When the server ends the session the port is free, too."""
        theirs = self.attach(self.first())
        self.assertTrue(self.vhci.detach(0))
        self.assertEqual((theirs.recv(1), self.kernel.used()), (b"", {}))
        for number in (0, 12, 99):
            self.assertFalse(self.vhci.detach(number))
        self.attach(self.first()).close()
        self.assertEqual(self.first().number, 0)

    def test_lingering(self) -> None:
        """A free port is no candidate until the folder of its last device is gone; the same place
        of the other hub is."""
        self.kernel.lingering = 3
        self.attach(self.first()).close()
        self.assertEqual(self.numbers(FULL), [1, 2, 6, 7, 8])
        self.assertEqual(self.port(0).state, PortState.FREE)
        self.assertEqual([self.first().number for _ in range(3)], [1, 1, 0])
        self.kernel.lingering = 99
        self.attach(self.first(SUPER), SUPER).close()
        self.assertEqual((self.first(SUPER).number, self.first(FULL).number), (4, 0))


class MadeTreeTests(SynchronousTestCase):
    """
    Files as the real kernel has them.
    """

    def setUp(self) -> None:
        self.root = self.mktemp()
        self.folder = f"{self.root}/devices/platform/vhci_hcd.0"
        self.write("attach", "")
        self.vhci = Vhci(System(self.root))

    def write(self, name: str, text: str) -> None:
        """Make a file."""
        os.makedirs(os.path.dirname(f"{self.folder}/{name}"), exist_ok=True)
        with open(f"{self.folder}/{name}", "w") as file:
            file.write(text)

    def test_measured(self) -> None:
        """The status file of Linux 6.1 is parsed; a kernel may have one controller only."""
        self.write("status", MEASURED)
        free, starting = PortState.FREE, PortState.INITIALISING
        self.assertEqual(
            [(p.number, p.isSuper, p.place, p.state) for p in self.vhci.ports()],
            [
                (0, False, 1, free),
                (1, False, 2, PortState.USED),
                (2, True, 1, starting),
                (3, True, 2, PortState.USED),
            ],
        )
        self.assertEqual(
            [(p.speed, p.deviceId, p.busId) for p in self.vhci.ports()],
            [(0, 0, None), (2, 0x10004, "3-2"), (0, 0, None), (5, 0x20002, "4-2")],
        )

    def test_long(self) -> None:
        """Each controller has a file, which may be longer than a page."""
        lines = [f"hs  {number:04d} 004 000 00000000 000000 0-0\n" for number in range(300)]
        self.write("status", MEASURED[:45] + "".join(lines[:200]))
        self.write("status.1", MEASURED[:45] + "".join(lines[200:]))
        ports = self.vhci.ports()
        self.assertEqual([port.number for port in ports], [*range(300)])
        self.assertEqual((ports[199].place, ports[200].place), (200, 1))

    def test_otherFolders(self) -> None:
        """Other folders of a hub are not devices of its ports."""
        self.write("status", MEASURED)
        for name in ("usb3/3-0:1.0", "usb3/power", "usb3/3-1/3-1:1.0", "usb4/ep_00", "usbmon"):
            os.makedirs(f"{self.folder}/{name}")
        self.write("usb3/speed", "480\n")
        self.write("usb4/speed", "5000\n")
        self.assertEqual([*self.vhci.candidates(FULL)], [])  # its last device is still there
        folder = self.vhci.folderOf(self.vhci.ports()[0])
        self.assertEqual(folder, "devices/platform/vhci_hcd.0/usb3/3-1")

    def test_unknownFormat(self) -> None:
        """A status file in another format is an error, and so is a module without C{attach}."""
        for text in (
            "port sta spd dev socket local_busid\n0000 004 000 00000000 0000000000000000 0-0\n",
            MEASURED.replace("004", "009"),
            MEASURED.replace("0001", "x"),
            MEASURED.replace("hs", "h\xe4"),
        ):
            self.write("status", text)
            trouble = self.assertRaises(LocalTrouble, self.vhci.ports)
            self.assertIn("/sys/devices/platform/vhci_hcd.0/status is not", str(trouble))
        system = System(self.root)
        self.patch(system, "loadModule", lambda name: None)
        os.unlink(f"{self.folder}/attach")
        trouble = self.assertRaises(LocalTrouble, Vhci(system).require)
        self.assertIn("there is no /sys/devices/platform/vhci_hcd.0/attach", str(trouble))


class FakeVhciTests(VhciTestCase):
    """
    What L{FakeVhci} offers to tests.
    """

    def test_unloaded(self) -> None:
        """It provides the interface; without the module it has none of its files."""
        self.assertTrue(verifyObject(ISystem, self.kernel))
        self.kernel.loaded = False
        error = self.assertRaises(OSError, self.kernel.write, DETACH, b"0")
        self.assertEqual(error.errno, errno.ENOENT)

    def test_deadlock(self) -> None:
        """It dies if a port is used whose last device is still there (D12)."""
        self.kernel.lingering = 9
        self.attach(self.first()).close()
        ours, _ = self.connection()
        port = self.port(0)
        self.assertRaises(KernelBug, self.vhci.attach, port, ours.fileno(), 1, FULL)
        self.assertRaises(KernelBug, self.vhci.ports)


class VhciFactsTests(VhciFacts, SynchronousTestCase):
    """
    L{FakeVhci} behaves as C{vhci_hcd} does in a real kernel.
    """

    def setUp(self) -> None:
        self.system = self.kernel = FakeVhci(controllers=8, ports=15)
        self.kernel.enumerating = self.kernel.appearing = 3
        self.addCleanup(self.kernel.close)

    def serve(self, speed: int) -> tuple[socket.socket, int]:
        ours, self.server = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(self.server.close)
        self.server.setblocking(False)
        return ours, DEVICE_ID

    def endAtServer(self) -> None:
        self.server.close()

    def hasEndedAtServer(self) -> bool:
        try:
            return self.server.recv(1) == b""
        except BlockingIOError:
            return False

    def until(self, condition: Callable[[], object], what: str) -> None:
        self.assertTrue(any(condition() for _ in range(LOOKS)), what)
