"""
Ports of the client's kernel, in memory; and that this one has the sins of the real one.
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
"""How often to look for something: nothing happens but by somebody's looking."""

MEASURED = """\
hub port sta spd dev      sockfd local_busid
hs  0000 004 000 00000000 000000 0-0
hs  0001 006 002 00010004 000005 3-2
ss  0002 005 000 00000000 000000 0-0
ss  0003 006 005 00020002 000006 4-2
"""
"""What Linux 6.1 shows, with fewer ports."""


class VhciTestCase(SynchronousTestCase):
    """
    Two controllers, each with two hubs of three ports.
    """

    def setUp(self) -> None:
        self.kernel = FakeVhci(controllers=2, ports=3)
        self.addCleanup(self.kernel.close)
        self.vhci = Vhci(self.kernel)

    def connection(self) -> tuple[socket.socket, socket.socket]:
        """A connection to a server, and its end of it."""
        pair = socket.socketpair()
        for end in pair:
            self.addCleanup(end.close)
        return pair

    def plug(self, port: Port, speed: int = FULL, deviceId: int = DEVICE_ID) -> socket.socket:
        """Plug a device in; the server's end of its connection."""
        ours, theirs = self.connection()
        self.assertTrue(self.vhci.attach(port, ours.fileno(), deviceId, speed))
        ours.close()
        return theirs

    def first(self, speed: int = FULL) -> Port:
        """The first port that would do."""
        return next(self.vhci.candidates(speed))

    def numbers(self, speed: int) -> list[int]:
        """Of the ports that would do."""
        return [port.number for port in self.vhci.candidates(speed)]

    def assertTrouble(self, text: str, trouble: LocalTrouble) -> None:
        """That is what is wrong."""
        self.assertIn(text, str(trouble))


class PortTests(VhciTestCase):
    """
    What ports there are.
    """

    def test_ports(self) -> None:
        """All ports of all controllers are there, each with its place on its hub."""
        ports = self.vhci.ports()
        self.assertEqual([port.number for port in ports], [*range(12)])
        self.assertEqual([port.controller for port in ports], 6 * [0] + 6 * [1])
        self.assertEqual([port.isSuper for port in ports], 2 * (3 * [False] + 3 * [True]))
        self.assertEqual([port.place for port in ports], 4 * [1, 2, 3])
        self.assertEqual({port.state for port in ports}, {PortState.FREE})
        self.assertEqual({port.busId for port in ports}, {None})

    def test_one(self) -> None:
        """A single port is found by its number, without a look at controllers behind it."""
        self.assertEqual(self.vhci.port(4), self.vhci.ports()[4])
        self.kernel.reads.clear()
        self.vhci.port(0)
        self.assertEqual(len(self.kernel.reads), 1)
        self.assertIsNone(self.vhci.port(12))

    def test_used(self) -> None:
        """A port that is used shows what is there, and where that is on this machine."""
        self.kernel.enumerating = 1
        self.plug(self.first(SUPER), SUPER)
        states = [self.vhci.port(3) for _ in range(2)]
        self.assertEqual(
            [(port.state, port.speed, port.deviceId, port.busId) for port in states if port],
            [
                (PortState.INITIALISING, 0, 0, None),
                (PortState.USED, SUPER, DEVICE_ID, "4-1"),
            ],
        )

    def test_loads(self) -> None:
        """The module is loaded if it is not."""
        self.kernel.loaded = False
        self.vhci.require()
        self.kernel.loaded = False
        self.assertEqual(len(self.vhci.ports()), 12)

    def test_noModule(self) -> None:
        """Where it cannot be loaded that is said, and what to do."""
        self.kernel.loaded = self.kernel.loadable = False
        for call in (self.vhci.ports, self.vhci.require, self.first, lambda: self.vhci.detach(0)):
            trouble = self.assertRaises(LocalTrouble, call)
            self.assertTrouble("sudo modprobe vhci-hcd", trouble)
            self.assertTrouble("Module vhci-hcd not found", trouble)

    def test_require(self) -> None:
        """Whoever may not write is told before anything is done, and nothing is written."""
        self.vhci.require()
        for number, text in (
            (errno.EACCES, "with sudo"),
            (errno.EROFS, "read-only"),
            (errno.EIO, "Input/output error"),
        ):
            self.kernel.refuse = number
            self.assertTrouble(text, self.assertRaises(LocalTrouble, self.vhci.require))
        self.assertEqual(self.kernel.writes, [])


class AttachTests(VhciTestCase):
    """
    Plugging in.
    """

    def test_kinds(self) -> None:
        """Fast devices need ports of one kind, and all others those of the other, on whatever
        controller."""
        self.assertEqual(self.numbers(FULL), [0, 1, 2, 6, 7, 8])
        self.assertEqual(self.numbers(HIGH), self.numbers(FULL))
        self.assertEqual(self.numbers(SUPER), [3, 4, 5, 9, 10, 11])
        self.assertEqual(self.numbers(SUPER_PLUS), self.numbers(SUPER))

    def test_each(self) -> None:
        """Each port can be used, and what is there is at the bus id that it should be."""
        for speed in (FULL, SUPER):
            for number in self.numbers(speed):
                port = self.first(speed)
                self.assertEqual(port.number, number)
                self.plug(port, speed)
                now = self.vhci.port(number)
                assert now is not None
                folder = self.vhci.folderOf(port)
                self.assertEqual(folder and folder.rpartition("/")[2], now.busId)
            self.assertEqual(self.numbers(speed), [])
        self.assertEqual(len(self.kernel.used()), 12)

    def test_line(self) -> None:
        """What is written are decimal numbers; no speed that the kernel does not know."""
        for speed in (FULL, SUPER_PLUS):
            self.plug(self.first(speed), speed)
        [(_, slow), (_, fast)] = self.kernel.writes
        self.assertRegex(slow, rf"\A0 [0-9]+ {DEVICE_ID} 2\Z")
        self.assertRegex(fast, rf"\A3 [0-9]+ {DEVICE_ID} 5\Z")

    def test_taken(self) -> None:
        """A port that somebody else was quicker to use is told from trouble."""
        port = self.first()
        self.plug(port)
        ours, _ = self.connection()
        self.assertFalse(self.vhci.attach(port, ours.fileno(), DEVICE_ID, FULL))

    def test_refused(self) -> None:
        """What the kernel does not take is trouble."""
        ours, _ = self.connection()
        port = self.first()
        for descriptor, speed in ((9999, FULL), (ours.fileno(), 0)):
            trouble = self.assertRaises(
                LocalTrouble, self.vhci.attach, port, descriptor, DEVICE_ID, speed
            )
            self.assertTrouble("the kernel refuses to attach: Invalid argument", trouble)

    def test_cost(self) -> None:
        """To find the first port only its controller is looked at."""
        self.kernel.reads.clear()
        self.first()
        self.assertLessEqual(len(self.kernel.reads), 3)  # its status, and the speed of its hubs

    def test_folders(self) -> None:
        """Without a device there is no folder."""
        self.assertIsNone(self.vhci.folderOf(self.first()))


class EndTests(VhciTestCase):
    """
    Pulling out, and what goes of itself.
    """

    def test_detach(self) -> None:
        """A device that is pulled out is gone, and its server is told; there was none is told
        from trouble."""
        theirs = self.plug(self.first())
        self.assertTrue(self.vhci.detach(0))
        self.assertEqual(theirs.recv(1), b"")
        self.assertEqual(self.kernel.used(), {})
        for number in (0, 12, 99):
            self.assertFalse(self.vhci.detach(number))

    def test_notAllowed(self) -> None:
        """Nor may everybody do that."""
        self.plug(self.first())
        self.kernel.refuse = errno.EACCES
        self.assertTrouble("sudo", self.assertRaises(LocalTrouble, self.vhci.detach, 0))

    def test_ended(self) -> None:
        """When the server ends the session the port is free."""
        theirs = self.plug(self.first())
        theirs.close()
        self.assertEqual(self.first().number, 0)

    def test_error(self) -> None:
        """A port whose device the kernel gave up is shown as that, and can be freed."""
        self.plug(self.first())
        self.kernel.lose(0)
        port = self.vhci.port(0)
        self.assertEqual(port and port.state, PortState.ERROR)
        self.assertTrue(self.vhci.detach(0))

    def test_lingering(self) -> None:
        """A port whose old device is still there is not used again before that is gone."""
        self.kernel.lingering = 3
        self.plug(self.first()).close()
        self.assertEqual(self.numbers(FULL), [1, 2, 6, 7, 8])
        port = self.vhci.port(0)
        self.assertEqual(port and port.state, PortState.FREE)
        self.assertEqual([self.first().number for _ in range(3)], [1, 1, 0])

    def test_lingeringElsewhere(self) -> None:
        """A device at the same place of the other hub is in nobody's way."""
        self.kernel.lingering = 99
        self.plug(self.first(SUPER), SUPER).close()
        self.assertEqual(self.first(SUPER).number, 4)
        self.assertEqual(self.first(FULL).number, 0)


class MadeTreeTests(SynchronousTestCase):
    """
    Files as the real kernel has them.
    """

    def setUp(self) -> None:
        self.root = self.mktemp()
        self.folder = f"{self.root}/devices/platform/vhci_hcd.0"
        os.makedirs(self.folder)
        self.write("attach", "")
        self.vhci = Vhci(System(self.root))

    def write(self, name: str, text: str) -> None:
        """Make a file."""
        os.makedirs(os.path.dirname(f"{self.folder}/{name}"), exist_ok=True)
        with open(f"{self.folder}/{name}", "w") as file:
            file.write(text)

    def test_measured(self) -> None:
        """What was measured is read as that; a kernel may have one controller only."""
        self.write("status", MEASURED)
        self.assertEqual(
            self.vhci.ports(),
            (
                Port(number=0, controller=0, isSuper=False, place=1, state=PortState.FREE),
                Port(
                    number=1,
                    controller=0,
                    isSuper=False,
                    place=2,
                    state=PortState.USED,
                    speed=2,
                    deviceId=0x10004,
                    busId="3-2",
                ),
                Port(number=2, controller=0, isSuper=True, place=1, state=PortState.INITIALISING),
                Port(
                    number=3,
                    controller=0,
                    isSuper=True,
                    place=2,
                    state=PortState.USED,
                    speed=5,
                    deviceId=0x20002,
                    busId="4-2",
                ),
            ),
        )

    def test_long(self) -> None:
        """Each controller has a file; one that is longer than a page is read to its end."""
        lines = [f"hs  {number:04d} 004 000 00000000 000000 0-0\n" for number in range(300)]
        self.write("status", MEASURED[:45] + "".join(lines[:200]))
        self.write("status.1", MEASURED[:45] + "".join(lines[200:]))
        ports = self.vhci.ports()
        self.assertEqual([port.number for port in ports], [*range(300)])
        self.assertEqual((ports[199].place, ports[200].place), (200, 1))

    def test_others(self) -> None:
        """What else there is in the folders of hubs is none of a port's."""
        self.write("status", MEASURED)
        for name in ("usb3/3-0:1.0", "usb3/power", "usb3/3-1/3-1:1.0", "usb4/ep_00", "usbmon"):
            os.makedirs(f"{self.folder}/{name}")
        self.write("usb3/speed", "480\n")
        self.write("usb4/speed", "5000\n")
        free, *_ = self.vhci.ports()
        self.assertEqual([*self.vhci.candidates(FULL)], [])  # its old device is still there
        self.assertEqual(self.vhci.folderOf(free), "devices/platform/vhci_hcd.0/usb3/3-1")

    def test_notUnderstood(self) -> None:
        """Words of another kernel are not guessed at."""
        for text in (
            "port sta spd dev socket local_busid\n0000 004 000 00000000 0000000000000000 0-0\n",
            MEASURED.replace("004", "009"),
            MEASURED.replace("0001", "x"),
            MEASURED.replace("hs", "h\xe4"),
        ):
            self.write("status", text)
            trouble = self.assertRaises(LocalTrouble, self.vhci.ports)
            self.assertIn("/sys/devices/platform/vhci_hcd.0/status is not", str(trouble))

    def test_halfLoaded(self) -> None:
        """A module that is there without what it takes is told of."""
        system = System(self.root)
        system.loadModule = lambda name: None  # type: ignore[method-assign]
        os.unlink(f"{self.folder}/attach")
        trouble = self.assertRaises(LocalTrouble, Vhci(system).require)
        self.assertIn("there is no /sys/devices/platform/vhci_hcd.0/attach", str(trouble))


class FakeVhciTests(VhciTestCase):
    """
    What a test can do to L{FakeVhci}.
    """

    def test_interface(self) -> None:
        """It provides what the real one does."""
        self.assertTrue(verifyObject(ISystem, self.kernel))

    def test_unloaded(self) -> None:
        """A kernel without the module has none of its files."""
        self.kernel.loaded = False
        error = self.assertRaises(OSError, self.kernel.write, DETACH, b"0")
        self.assertEqual(error.errno, errno.ENOENT)

    def test_deadLock(self) -> None:
        """D12: to use a port whose old device is still there dead-locks it for good."""
        self.kernel.lingering = 9
        self.plug(self.first()).close()
        port = self.vhci.port(0)
        assert port is not None
        ours, _ = self.connection()
        self.assertRaises(KernelBug, self.vhci.attach, port, ours.fileno(), 1, FULL)
        self.assertRaises(KernelBug, self.vhci.ports)


class VhciFactsTests(VhciFacts, SynchronousTestCase):
    """
    L{FakeVhci} does what C{vhci_hcd} does in a real kernel.
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
