"""
Tests of L{usbip_server.server.sessions}: with real connections.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.support.fixtures import STICK, UNO, changed
from usbip_server.model.device import Holder, Traffic, UsbDevice
from usbip_server.model.errors import InvalidRequest
from usbip_server.net.handover import requireSilence
from usbip_server.net.keepalive import KeepAlive
from usbip_server.server import sessions
from usbip_server.server.sessions import Session, SessionTable
from usbip_server.testing.reactor import FakeReactor

HOLDER = Holder(address="127.0.0.1", since=5.0)
LATER = Holder(address="127.0.0.1", since=6.0)
SECONDS = 60.0


def connected(family: socket.AddressFamily = socket.AF_INET) -> tuple[socket.socket, socket.socket]:
    """The ends of a TCP connection: the client's and ours, which does not block."""
    host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    with socket.create_server((host, 0), family=family) as listener:
        client = socket.create_connection(listener.getsockname()[:2], SECONDS)
        server, _ = listener.accept()
    server.setblocking(False)
    return client, server


def reset(connection: socket.socket) -> None:
    """Cut a connection off with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class ImportingClient:
    """
    A client that has a device: what it was given, and what it sends.

    @ivar client: its end.
    @ivar server: the end that whoever moves the traffic has.
    @ivar ended: how often it was told that it has ended.
    """

    def __init__(
        self,
        table: SessionTable,
        device: UsbDevice = UNO,
        holder: Holder = HOLDER,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self.ended = 0
        self.client, self.server = connected()
        self._ended = ended
        self.kept = self.server.dup()
        table.add(Session(device, self.kept, holder, self._over))

    def _over(self) -> None:
        self.ended += 1
        self._ended()

    def close(self) -> None:
        """It is over, whatever is known of it."""
        for connection in (self.client, self.server, self.kept):
            connection.close()


class SessionTableTestCase(SynchronousTestCase):
    """
    Handed over connections, and a reactor that reads when it is told to. On the loopback
    what one end does has come to the other when the call returns.
    """

    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.sessions = SessionTable(self.reactor)
        self.addCleanup(self.sessions.stop)

    def begin(
        self,
        device: UsbDevice = UNO,
        holder: Holder = HOLDER,
        ended: Callable[[], None] = lambda: None,
    ) -> ImportingClient:
        """A session."""
        session = ImportingClient(self.sessions, device, holder, ended)
        self.addCleanup(session.close)
        return session

    def held(self, device: UsbDevice = UNO, holder: Holder = HOLDER) -> UsbDevice:
        """A device as it is shown while it is in use."""
        return changed(device, holder=holder)


class EndTests(SessionTableTestCase):
    """
    The end of a session is seen.
    """

    def assertEnds(self, session: ImportingClient, end: Callable[[], object]) -> None:
        """It ends by that, and not before; that is told once."""
        self.reactor.deliver()
        self.assertEqual(session.ended, 0)
        self.assertTrue(self.sessions.isOpen(UNO))
        end()
        for _ in range(3):
            self.reactor.deliver()
        self.assertEqual(session.ended, 1)
        self.assertFalse(self.sessions.isOpen(UNO))
        self.assertEqual(session.kept.fileno(), -1)

    def test_closed(self) -> None:
        """A session ends when the client closes its connection."""
        session = self.begin()
        self.assertEnds(session, session.client.close)

    def test_halfClosed(self) -> None:
        """It ends when the client closes its sending side."""
        session = self.begin()
        self.assertEnds(session, lambda: session.client.shutdown(socket.SHUT_WR))

    def test_reset(self) -> None:
        """It ends when the client resets the connection."""
        session = self.begin()
        self.assertEnds(session, lambda: reset(session.client))

    def test_shutDown(self) -> None:
        """
        It ends when the kernel shuts the connection down, as it does at an unplug or an
        unbind.
        """
        session = self.begin()
        self.assertEnds(session, lambda: session.server.shutdown(socket.SHUT_RDWR))
        self.assertEqual(session.client.recv(1), b"")

    def test_unread(self) -> None:
        """It ends too while data of the client is still unread."""
        session = self.begin()
        session.client.sendall(b"x" * 1000)
        self.assertEnds(session, session.client.close)

    def test_traffic(self) -> None:
        """Traffic does not wake the reactor, and not a byte of it is read."""
        session = self.begin()
        session.client.sendall(b"ping")
        session.server.sendall(b"pong")
        self.reactor.deliver()
        self.assertEqual(session.ended, 0)
        self.assertEqual(session.server.recv(10), b"ping")
        self.assertEqual(session.client.recv(10), b"pong")

    def test_otherGone(self) -> None:
        """
        It makes no difference that the protocol has closed its own descriptor, and that the
        number is used again.
        """
        session = self.begin()
        number = session.server.fileno()
        session.server.close()
        other = self.begin(STICK)
        self.assertIn(number, (other.client.fileno(), other.server.fileno(), other.kept.fileno()))
        self.assertEnds(session, session.client.close)
        self.assertEqual(other.ended, 0)
        self.assertTrue(self.sessions.isOpen(STICK))

    def test_several(self) -> None:
        """Of several sessions each has its own end."""
        sessions = [self.begin(changed(UNO, busId=f"1-{port}")) for port in range(1, 9)]
        for session in sessions[::2]:
            session.client.close()
        self.reactor.deliver()
        self.assertEqual([session.ended for session in sessions], [1, 0] * 4)

    def test_bug(self) -> None:
        """An exception in one callback does not affect the others."""

        def fail() -> None:
            raise ZeroDivisionError

        sessions = [self.begin(changed(UNO, busId=f"1-{port}"), ended=fail) for port in (1, 2)]
        for session in sessions:
            session.client.close()
        self.reactor.deliver()
        self.assertEqual([session.ended for session in sessions], [1, 1])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.assertEqual(self.reactor.readers, [self.sessions])

    def test_beginsInEnding(self) -> None:
        """A session may begin in the callback for the end of another."""
        begun: list[ImportingClient] = []
        session = self.begin(ended=lambda: begun.append(self.begin(UNO, LATER)))
        session.client.close()
        self.reactor.deliver()
        self.assertTrue(self.sessions.isOpen(UNO))
        begun[0].client.close()
        self.reactor.deliver()
        self.assertFalse(self.sessions.isOpen(UNO))


class StopTests(SessionTableTestCase):
    """
    The daemon stops.
    """

    def test_goesOn(self) -> None:
        """After C{stop} sessions go on, and no callback is called."""
        session = self.begin()
        self.sessions.stop()
        self.assertEqual((self.reactor.readers, self.sessions.fileno()), ([], -1))
        session.client.sendall(b"ping")
        self.assertEqual(session.server.recv(10), b"ping")
        session.server.sendall(b"pong")
        self.assertEqual(session.client.recv(10), b"pong")
        session.client.close()
        self.sessions.doRead()
        self.assertEqual(session.ended, 0)

    def test_traffic(self) -> None:
        """Their traffic is still known, for the last events."""
        session = self.begin()
        session.client.sendall(b"ping")
        self.sessions.stop()
        self.assertEqual(self.sessions.traffic(self.held()), Traffic(bytesIn=4, bytesOut=0))

    def test_late(self) -> None:
        """A session that begins then goes on as well."""
        self.sessions.stop()
        session = self.begin()
        self.assertEqual(self.reactor.readers, [])
        session.client.sendall(b"ping")
        self.assertEqual(session.server.recv(10), b"ping")

    def test_never(self) -> None:
        """C{stop} works without any session."""
        self.sessions.stop()
        self.assertEqual(self.reactor.readers, [])


class TrafficTests(SessionTableTestCase):
    """
    How much a session has moved.
    """

    def test_counts(self) -> None:
        """
        The traffic counts bytes received, read or not, and bytes that have arrived at the
        client.
        """
        session = self.begin()
        self.assertEqual(self.traffic(), (0, 0))
        session.client.sendall(b"x" * 1000)
        session.server.sendall(b"x" * 30)
        session.client.recv(100)
        self.assertEqual(self.traffic(), (1000, 30))

    def traffic(self, device: UsbDevice = UNO, holder: Holder = HOLDER) -> tuple[int, int] | None:
        """In and out."""
        traffic = self.sessions.traffic(self.held(device, holder))
        return None if traffic is None else (traffic.bytesIn, traffic.bytesOut)

    def test_afterTheEnd(self) -> None:
        """It is known after the end, until the next client has a session."""
        session = self.begin()
        session.client.sendall(b"x" * 1000)
        reset(session.client)
        self.reactor.deliver()
        self.assertEqual(self.traffic(), (1000, 0))
        self.begin(UNO, LATER)
        self.assertEqual(self.traffic(holder=LATER), (0, 0))

    def test_others(self) -> None:
        """It is not that of another client's session, nor of another device at the same port."""
        session = self.begin()
        session.client.sendall(b"x" * 1000)
        self.assertIsNone(self.traffic(holder=LATER))
        self.assertIsNone(self.traffic(STICK))
        self.assertIsNone(self.traffic(changed(UNO, deviceNumber=99)))
        self.assertFalse(self.sessions.isOpen(changed(UNO, deviceNumber=99)))

    def test_forgotten(self) -> None:
        """The traffic of the last sessions that have ended is remembered, and no more."""
        self.patch(sessions, "REMEMBERED", 2)
        for number in range(4):
            device = changed(UNO, deviceNumber=number)
            self.begin(device).client.close()
            self.reactor.deliver()
        known = [self.traffic(changed(UNO, deviceNumber=number)) for number in range(4)]
        self.assertEqual([each is not None for each in known], [False, False, True, True])

    def test_notTcp(self) -> None:
        """It is not known for a connection that is not TCP."""
        client, server = socket.socketpair()
        self.addCleanup(client.close)
        self.sessions.add(Session(UNO, server, HOLDER, lambda: None))
        self.assertIsNone(self.traffic())
        client.close()
        self.reactor.deliver()
        self.assertIsNone(self.traffic())


class KeepAliveTests(SynchronousTestCase):
    """
    How it is noticed that a client has vanished.
    """

    def test_options(self) -> None:
        """All options are set on the socket, in the kernel's units, for IPv4 and IPv6."""
        for family in (socket.AF_INET, socket.AF_INET6):
            client, server = connected(family)
            self.addCleanup(client.close)
            self.addCleanup(server.close)
            KeepAlive(idle=11, interval=12, count=13, userTimeout=14).apply(server)
            self.assertEqual(self.optionsOf(server), (1, 1, 11, 12, 13, 14000))

    def optionsOf(self, connection: socket.socket) -> tuple[int, ...]:
        """Those that it is about."""
        options = (
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            (socket.IPPROTO_TCP, socket.TCP_NODELAY),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
        )
        return tuple(connection.getsockopt(level, option) for level, option in options)

    def test_longest(self) -> None:
        """The kernel accepts the longest times that can be configured."""
        client, server = connected()
        self.addCleanup(client.close)
        self.addCleanup(server.close)
        KeepAlive(idle=32767, interval=32767, count=127, userTimeout=86400).apply(server)
        self.assertEqual(self.optionsOf(server)[2:], (32767, 32767, 127, 86400000))

    def test_withinFifteenSeconds(self) -> None:
        """By default a client that vanishes is detected within 15 seconds, idle or not."""
        default = KeepAlive()
        self.assertLessEqual(default.idle + default.interval * default.count, 15)
        self.assertLessEqual(default.userTimeout, 15)

    def test_notTcp(self) -> None:
        """Sockets that are not TCP are left as they are."""
        client, server = socket.socketpair()
        self.addCleanup(client.close)
        self.addCleanup(server.close)
        KeepAlive().apply(server)


class SilenceTests(SynchronousTestCase):
    """
    A client says nothing more until it is answered.
    """

    def setUp(self) -> None:
        self.client, self.server = connected()
        self.addCleanup(self.client.close)
        self.addCleanup(self.server.close)

    def assertNotSilent(self, because: str) -> None:
        """That is seen."""
        error = self.assertRaises(InvalidRequest, requireSilence, self.server)
        self.assertIn(because, str(error))

    def test_silent(self) -> None:
        """A client that has sent nothing more is accepted."""
        requireSilence(self.server)

    def test_more(self) -> None:
        """Data behind the request is detected, and not read."""
        self.client.sendall(b"more")
        self.assertNotSilent("after the request")
        self.assertEqual(self.server.recv(10), b"more")

    def test_closed(self) -> None:
        """A client that has closed its side is detected."""
        self.client.shutdown(socket.SHUT_WR)
        self.assertNotSilent("disconnected")

    def test_reset(self) -> None:
        """A client that has reset the connection is detected."""
        reset(self.client)
        self.assertNotSilent("is gone")


class ReactorTests(TestCase):
    """
    In the reactor, whose epoll holds ours.
    """

    timeout = 300

    async def test_ends(self) -> None:
        """The end of a session wakes the reactor; traffic does not."""
        table = SessionTable(reactor)
        self.addCleanup(table.stop)
        ended: Deferred[None] = Deferred()
        session = ImportingClient(table, ended=lambda: ended.callback(None))
        self.addCleanup(session.close)
        woken: list[None] = []
        turned: Deferred[None] = Deferred()
        doRead = table.doRead

        def read() -> None:
            woken.append(None)
            doRead()

        self.patch(table, "doRead", read)
        session.client.sendall(b"ping")
        reactor.callLater(0.05, turned.callback, None)
        await turned
        self.assertEqual(woken, [])
        session.client.close()
        await ended
        self.assertEqual(len(woken), 1)
