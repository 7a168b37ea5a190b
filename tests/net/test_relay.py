"""
Tests of L{usbip_server.net.relay}.
"""

from __future__ import annotations

import os
import resource
import socket
import ssl
from collections.abc import Callable

from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tests.protocols.securedcase import connected
from tests.support.certificates import signed, trusting
from usbip_server.model.device import Traffic
from usbip_server.net.relay import CHUNK, SocketRelay
from usbip_server.testing.reactor import FakeReactor

MUCH = os.urandom(128 * CHUNK)
"""More than all buffers on the way hold."""

ROUNDS = 20000
"""Turns of the reactor, at most, until something has to be the case."""


class RelayTests(SynchronousTestCase):
    """
    A client, a relay, and a server with a device.
    """

    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.ended = 0
        self.client, clientSide = connected()
        self.server, serverSide = self.connect()
        self.sides = (clientSide, serverSide)
        self.addCleanup(self.close)
        self.relay = SocketRelay(clientSide, serverSide, self.reactor, self.over)
        self.relay.begin()

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """The server's end of a connection, and the relay's."""
        return connected()

    def close(self) -> None:
        """Close everything."""
        self.relay.end()
        for end in (self.client, self.server):
            end.close()

    def over(self) -> None:
        """It has ended."""
        self.ended += 1

    def until(self, condition: Callable[[], object]) -> None:
        """Let the reactor turn until something is so."""
        for _ in range(ROUNDS):
            if condition():
                return
            self.reactor.deliver()
        self.fail("it is still not so")

    def received(self, end: socket.socket, size: int) -> bytes:
        """So much comes out of an end."""
        got = bytearray()

        def isAll() -> bool:
            got.extend(self.read(end))
            return len(got) >= size

        self.until(isAll)
        return bytes(got)

    def read(self, end: socket.socket) -> bytes:
        """What there is now."""
        try:
            return end.recv(CHUNK)
        except (BlockingIOError, ssl.SSLWantReadError):
            return b""

    def fill(self, end: socket.socket, data: bytes) -> int:
        """
        Send as much as goes, while the reactor turns.

        @return: how much that is.
        """
        sent = 0
        for _ in range(1000):
            try:
                sent += end.send(data[sent : sent + CHUNK])
            except (BlockingIOError, ssl.SSLWantWriteError):
                self.reactor.deliver()
        return sent

    def assertOver(self) -> None:
        """Both connections are closed, and the callback for that was called once."""
        self.until(lambda: self.relay.isOver)
        self.assertEqual(self.ended, 1)
        self.assertEqual([side.fileno() for side in self.sides], [-1, -1])
        self.assertEqual((self.reactor.readers, self.reactor.writers), ([], []))

    def test_interface(self) -> None:
        """The reactor can have its ends."""
        for reader in self.reactor.readers:
            verifyObject(IReadWriteDescriptor, reader)
            self.assertIn(reader.fileno(), [side.fileno() for side in self.sides])
            self.assertEqual(reader.logPrefix(), "relay")

    def test_bothWays(self) -> None:
        """What one says comes out at the other, and is counted."""
        for _ in range(3):
            self.client.send(b"request")
            self.assertEqual(self.received(self.server, 7), b"request")
            self.server.send(b"the answer")
            self.assertEqual(self.received(self.client, 10), b"the answer")
        self.assertEqual(self.relay.traffic, Traffic(bytesIn=21, bytesOut=30))

    def test_slow(self) -> None:
        """Whoever does not read keeps the other waiting, in either direction, and nothing piles
        up here; the other direction goes on, and nothing is lost."""
        for sender, reader in ((self.client, self.server), (self.server, self.client)):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            sent = self.fill(sender, MUCH)
            self.assertLess(sent, len(MUCH))
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            self.assertLess(grown, 8 * CHUNK // 1024)
            reader.send(b"back")
            self.assertEqual(self.received(sender, 4), b"back")
            came = self.received(reader, sent)  # OpenSSL may have begun with a bit more
            self.assertTrue(came == MUCH[: len(came)])

    def test_clientGoes(self) -> None:
        """When the client goes the server hears of it."""
        self.client.close()
        self.assertOver()
        self.until(self.isClosed(self.server))

    def test_serverGoes(self) -> None:
        """The end of the server's connection closes the client's, though another has it open."""
        other = socket.socket(fileno=os.dup(self.sides[0].fileno()))
        self.addCleanup(other.close)
        self.server.close()
        self.assertOver()
        self.until(self.isClosed(self.client))

    def test_goesWhileItIsWrittenTo(self) -> None:
        """When one goes that something waits for it ends as well."""
        self.fill(self.client, MUCH)
        self.server.close()
        self.assertOver()

    def test_end(self) -> None:
        """It can be ended, more than once, and both hear of it."""
        self.relay.end()
        self.relay.end()
        self.assertOver()
        for end in (self.client, self.server):
            self.until(self.isClosed(end))

    def test_lost(self) -> None:
        """So when the reactor has lost a connection."""
        self.reactor.readers[0].connectionLost(Failure(ConnectionLost()))
        self.assertOver()

    def isClosed(self, end: socket.socket) -> Callable[[], bool]:
        """Has the other end of a connection been closed?"""

        def check() -> bool:
            try:
                return end.recv(CHUNK) == b""
            except (BlockingIOError, ssl.SSLWantReadError):
                return False
            except OSError:
                return True

        return check


class SharedTests(RelayTests):
    """
    The same with a client's connection that others have too, and on which calls block.
    """

    def setUp(self) -> None:
        super().setUp()
        self.sides[0].setblocking(True)


class SecuredRelayTests(RelayTests):
    """
    The same with a server that speaks TLS.
    """

    def connect(self) -> tuple[socket.socket, socket.socket]:
        files = signed("localhost").write(self.mktemp(), "server")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)
        ours, theirs = connected()
        server = context.wrap_socket(theirs, server_side=True, do_handshake_on_connect=False)
        side = trusting().wrap_socket(
            ours, server_hostname="localhost", do_handshake_on_connect=False
        )
        waiting = {server, side}
        while waiting:
            for end in tuple(waiting):
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
                waiting.remove(end)
        return server, side
