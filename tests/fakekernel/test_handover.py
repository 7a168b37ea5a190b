"""
Who has a device that we have handed out ourselves.
"""

from __future__ import annotations

import socket
from collections.abc import Set

from twisted.trial.unittest import SynchronousTestCase

from usbip_server.kernel.importers import Connection, Importers, connectionOf
from usbip_server.model.device import Holder, PlugId
from usbip_server.testing import FakeKernel

FIRST, SECOND = PlugId("1-1", 2), PlugId("1-2", 3)

ALICE = Holder(address="192.0.2.7", since=900.0)
BOB = Holder(address="192.0.2.8", since=950.0)
CAROL = "192.0.2.9"


class HandOverTests(SynchronousTestCase):
    """
    What is told, and looks before, while and after.
    """

    def setUp(self) -> None:
        self.kernel = FakeKernel()
        self.importers = Importers(self.kernel, lambda: 1000.0)
        self.importers.refresh(set)

    def look(self, *plugIds: PlugId) -> None:
        """Look, while these are in use."""
        self.importers.refresh(lambda: set(plugIds))

    def handOver(
        self, holder: Holder, plugId: PlugId = FIRST, connection: Connection | None = None
    ) -> None:
        """Hand a device over."""
        with self.importers.handingOver(plugId, holder, connection):
            pass

    def refuse(self, holder: Holder, connection: Connection | None = None) -> None:
        """Try to hand 1-1 over, while somebody has it."""
        with self.assertRaises(OSError), self.importers.handingOver(FIRST, holder, connection):
            self.look(FIRST)
            raise OSError

    def connect(self, address: str) -> Connection:
        """A client connects to port 3240."""
        remote, port = self.kernel.connect(address)
        return Connection(local="192.0.2.1", localPort=3240, remote=remote, remotePort=port)

    def test_told(self) -> None:
        """It is whose we have said it is, for as long as it is in use, and no list is read."""
        self.handOver(ALICE)
        for _ in range(3):
            self.look(FIRST)
            self.assertIs(self.importers.holder(FIRST), ALICE)
        self.look()
        self.assertIsNone(self.importers.holder(FIRST))
        self.assertEqual(self.kernel.reads, [])
        self.look(FIRST)  # somebody else's, of whom we were not told
        self.assertEqual(self.importers.holder(FIRST), Holder(address=None, since=1000.0))

    def test_lookBefore(self) -> None:
        """A look that finds the device not in use yet does not end what is about to begin."""
        with self.importers.handingOver(FIRST, ALICE, None):
            self.look()
            self.assertIsNone(self.importers.holder(FIRST))
            for _ in range(2):
                self.look(FIRST)
                self.assertIs(self.importers.holder(FIRST), ALICE)
        self.look(FIRST)
        self.assertIs(self.importers.holder(FIRST), ALICE)

    def test_lookMeanwhile(self) -> None:
        """Nor does one that has begun before it and ends after it."""

        def read() -> Set[PlugId]:
            self.handOver(ALICE)
            return set()

        self.importers.refresh(read)
        self.look(FIRST)
        self.assertIs(self.importers.holder(FIRST), ALICE)

    def test_next(self) -> None:
        """Of two holders the second follows the first when it has the device, and not before."""
        self.handOver(ALICE)
        with self.importers.handingOver(FIRST, BOB, None):
            self.look(FIRST)  # it is being reset
            self.assertIs(self.importers.holder(FIRST), ALICE)
        self.look(FIRST)
        self.assertIs(self.importers.holder(FIRST), BOB)

    def test_refused(self) -> None:
        """Whoever does not get it is not its holder."""
        self.handOver(ALICE)
        self.refuse(BOB)
        self.look(FIRST)
        self.assertIs(self.importers.holder(FIRST), ALICE)

    def test_refusedUnknown(self) -> None:
        """Nor of one that somebody has of whom nothing is known."""
        self.look(FIRST)
        self.refuse(BOB, self.connect("192.0.2.8"))
        self.look(FIRST)
        self.assertEqual(self.importers.holder(FIRST), Holder(address=None, since=1000.0))

    def test_refusedAtOnce(self) -> None:
        """If nobody was known to have it, it is not shown as that one's for longer than it
        takes to be refused."""
        self.refuse(BOB)
        self.look(FIRST)
        self.assertEqual(self.importers.holder(FIRST), Holder(address=None, since=1000.0))

    def test_notInferred(self) -> None:
        """A connection that we have handed over is no other device's."""
        self.handOver(ALICE, connection=self.connect("192.0.2.7"))
        self.look(FIRST, SECOND)
        self.assertEqual(self.importers.holder(SECOND), Holder(address=None, since=1000.0))
        self.connect(CAROL)
        self.look(FIRST, SECOND)
        self.assertEqual(self.importers.holder(SECOND), Holder(address=CAROL, since=1000.0))
        self.assertIs(self.importers.holder(FIRST), ALICE)

    def test_otherPort(self) -> None:
        """One that is none of TCP, or on another port, is none of those that are looked at."""
        self.handOver(ALICE)
        self.connect(CAROL)
        self.look(FIRST, SECOND)
        self.assertEqual(self.importers.holder(SECOND), Holder(address=CAROL, since=1000.0))

    def test_closedAgain(self) -> None:
        """One that was refused and is closed is forgotten: another may get its numbers."""
        self.look(FIRST)
        connection = self.connect(CAROL)
        again = self.kernel.connections()
        self.refuse(BOB, connection)
        self.look(FIRST)
        self.assertEqual(self.importers.holder(FIRST), Holder(address=None, since=1000.0))
        self.kernel.disconnect((CAROL, connection.remotePort))
        self.look(FIRST)
        self.kernel.connections = lambda: again  # type: ignore[method-assign]
        self.look(FIRST)
        self.assertEqual(self.importers.holder(FIRST), Holder(address=CAROL, since=1000.0))


class AdoptionTests(SynchronousTestCase):
    """
    Devices that were in use already when we began to look.
    """

    def setUp(self) -> None:
        self.kernel = FakeKernel()
        self.importers = Importers(self.kernel, lambda: 1000.0)

    def look(self) -> Holder | None:
        """Look, while 1-1 is in use."""
        self.importers.refresh(lambda: {FIRST})
        return self.importers.holder(FIRST)

    def test_later(self) -> None:
        """Who connects later does not have what was in use before."""
        self.assertEqual(self.look(), Holder(address=None, since=None))
        self.kernel.connect(CAROL)
        self.assertEqual(self.look(), Holder(address=None, since=None))

    def test_before(self) -> None:
        """Who was connected before does, also if others come."""
        lister = self.kernel.connect("192.0.2.8")
        self.kernel.connect("192.0.2.7")
        self.assertEqual(self.look(), Holder(address=None, since=None))
        self.kernel.connect(CAROL)
        self.kernel.disconnect(lister)
        self.assertEqual(self.look(), Holder(address="192.0.2.7", since=None))


class ConnectionOfTests(SynchronousTestCase):
    """
    What a socket is called in the kernel's list.
    """

    def accepted(self, listening: socket.socket, address: str) -> socket.socket:
        """Our end of a connection to an address."""
        self.addCleanup(listening.close)
        self.client = socket.create_connection((address, listening.getsockname()[1]))
        self.addCleanup(self.client.close)
        ours, _ = listening.accept()
        self.addCleanup(ours.close)
        return ours

    def expected(self, ours: socket.socket, address: str) -> Connection:
        """The connection from an address to the same one."""
        return Connection(
            local=address,
            localPort=ours.getsockname()[1],
            remote=address,
            remotePort=self.client.getsockname()[1],
        )

    def test_ipv4(self) -> None:
        """Both ends of it."""
        ours = self.accepted(socket.create_server(("127.0.0.1", 0)), "127.0.0.1")
        self.assertEqual(connectionOf(ours), self.expected(ours, "127.0.0.1"))

    def test_ipv6(self) -> None:
        """Also of IPv6, where an IPv4 address is shown as such."""
        if not socket.has_dualstack_ipv6():
            self.skipTest("there is no IPv6 here")
        for address in ("::1", "127.0.0.1"):
            listening = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
            ours = self.accepted(listening, address)
            self.assertEqual(connectionOf(ours), self.expected(ours, address))

    def test_none(self) -> None:
        """Others have none: a pair of sockets, one that is not connected, one that is closed."""
        ours, client = socket.socketpair()
        alone = socket.socket()
        for each in (ours, client, alone):
            self.assertIsNone(connectionOf(each))
            each.close()
            self.assertIsNone(connectionOf(each))
