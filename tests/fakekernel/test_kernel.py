"""
L{FakeKernel} behaves as C{usbip-host} does in a real kernel: it passes the tests of
L{tests.kernel.facts}, which C{tests.kernel.scenarios.facts} runs on real kernels.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tests.kernel.facts.cases import DEVICES, HostFactCase
from tests.kernel.facts.crashes import CrashFacts
from tests.kernel.facts.sessions import ConnectionFacts, SessionFacts
from tests.kernel.facts.usbiphost import PLACES, UsbipHostFacts
from usbip_server.kernel.system import ISystem
from usbip_server.testing import FakeKernel, KernelBug

LOOKS = 10
"""How often to poll: time passes in the fake with each read."""


class FakeMachine(HostFactCase):
    """
    The kernel in memory, with one device.
    """

    busId = "1-1"

    def setUp(self) -> None:
        self.system = self.kernel = FakeKernel()
        self.kernel.resetting = 3
        self.plug()

    def plug(self) -> None:
        self.kernel.plug(self.busId, product="QEMU Keyboard")

    def unplug(self) -> None:
        self.kernel.unplug(self.busId)

    def importForeign(self) -> str:
        self.kernel.plug("4-1", imported=True)
        return "4-1"

    def hub(self) -> str:
        self.kernel.plug("1-2", deviceClass=9)
        return "1-2"

    def unload(self) -> None:
        self.kernel.unload()

    def load(self) -> None:
        self.kernel.loadModule("usbip-host")

    def leave(self, client: socket.socket) -> None:
        client.close()
        self.kernel.releaseDevice(self.busId)

    def breakSession(self, client: socket.socket) -> None:
        self.kernel.breakDevice(self.busId)

    def until(self, condition: Callable[[], object], what: str) -> None:
        self.assertTrue(any(condition() for _ in range(LOOKS)), what)


class UsbipHostTests(FakeMachine, UsbipHostFacts, SynchronousTestCase):
    """
    The facts of L{UsbipHostFacts}.
    """

    def test_interface(self) -> None:
        """It provides the interface of the real one."""
        self.assertTrue(verifyObject(ISystem, self.kernel))

    def test_fillTable(self) -> None:
        """C{fillTable} has the effect of writes to C{match_busid}."""
        names = [f"7-{number}.7" for number in range(PLACES - 1)]
        self.kernel.fillTable(*names)
        self.bind()
        self.assertEqual(self.kernel.table(), [*names, self.busId])
        self.assertEqual(self.kernel.driver(self.busId), "usbip-host")


class SessionTests(FakeMachine, SessionFacts, SynchronousTestCase):
    """
    The facts of L{SessionFacts}.
    """

    def test_resetting(self) -> None:
        """C{resetting} is the number of reads of the status until a reset ends."""
        self.bind()
        self.kernel.importDevice(self.busId)
        self.kernel.resetting = 2
        self.hand("-1\n")
        self.assertEqual([self.status() for _ in range(4)], [2, 2, 1, 1])

    def test_largeNumber(self) -> None:
        """A number too high for a descriptor is refused."""
        self.bind()
        self.refusedSocket(errno.EINVAL, str(1 << 40))

    def test_released(self) -> None:
        """C{releaseDevice} shuts the connection down."""
        self.bind()
        client = self.begin()
        self.kernel.releaseDevice(self.busId)
        self.assertEqual(client.recv(1), b"")


class ConnectionTests(FakeMachine, ConnectionFacts, SynchronousTestCase):
    """
    The facts of L{ConnectionFacts}.
    """

    def importDevice(self) -> None:
        self.kernel.importDevice(self.busId, self.address)

    def releaseDevice(self) -> None:
        self.kernel.releaseDevice(self.busId)


class CrashTests(FakeMachine, CrashFacts, SynchronousTestCase):
    """
    The facts of L{CrashFacts}.
    """

    def assertDies(self, act: Callable[[], object]) -> None:
        self.assertRaises(KernelBug, act)
        self.assertRaises(KernelBug, self.kernel.list, DEVICES)  # it stays dead
