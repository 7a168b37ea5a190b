"""
Tests of L{usbip_server.server.sessions}: with real connections.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from functools import partial

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
    A client that has imported a device.

    @ivar client: its end of the connection.
    @ivar server: the end that the kernel or the relay has.
    @ivar kept: the duplicate that the table watches.
    @ivar ended: how often the end of the session was reported.
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
        """Close all sockets."""
        for connection in (self.client, self.server, self.kept):
            connection.close()


class SessionTableTestCase(SynchronousTestCase):
    """
    A table of sessions over the loopback, where what one end does has come to the other when the
    call returns, and a fake reactor.
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
        """Begin a session."""
        session = ImportingClient(self.sessions, device, holder, ended)
        self.addCleanup(session.close)
        return session

    def assertTransfers(self, session: ImportingClient) -> None:
        """Bytes pass both ways, and the session goes on."""
        session.client.sendall(b"ping")
        session.server.sendall(b"pong")
        self.reactor.deliver()
        self.assertEqual(session.ended, 0)
        self.assertEqual(session.server.recv(10), b"ping")
        self.assertEqual(session.client.recv(10), b"pong")

    def held(self, device: UsbDevice = UNO, holder: Holder = HOLDER) -> UsbDevice:
        """A device as it is shown while it is in use."""
        return changed(device, holder=holder)


class EndTests(SessionTableTestCase):
    """
    The end of a session is detected.
    """

    def assertEnds(self, session: ImportingClient, end: Callable[[], object]) -> None:
        """The session ends by that, and not before; it is reported once."""
        self.reactor.deliver()
        self.assertEqual(session.ended, 0)
        self.assertTrue(self.sessions.isOpen(UNO))
        end()
        for _ in range(3):
            self.reactor.deliver()
        self.assertEqual(session.ended, 1)
        self.assertFalse(self.sessions.isOpen(UNO))
        self.assertEqual(session.kept.fileno(), -1)

    def test_ends(self) -> None:
        """
        A session ends when the client closes its connection (also while its data is unread) or
        its sending side or resets it, and when the kernel shuts the connection down, as it does
        at an unplug or an unbind.
        """
        for end in (
            lambda session: session.client.close(),
            lambda session: session.client.shutdown(socket.SHUT_WR),
            lambda session: reset(session.client),
            lambda session: session.server.shutdown(socket.SHUT_RDWR),
            lambda session: (session.client.sendall(b"x" * 1000), session.client.close()),
        ):
            session = self.begin()
            self.assertEnds(session, partial(end, session))

    def test_traffic(self) -> None:
        """Traffic does not wake the reactor, and not a byte of it is read."""
        session = self.begin()
        self.assertTransfers(session)

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
        """
        After C{stop} sessions go on, also one that begins then; no callback is called, and their
        traffic is still known, for the last events.
        """
        first = self.begin()
        self.sessions.stop()
        self.assertEqual((self.reactor.readers, self.sessions.fileno()), ([], -1))
        for session in (first, self.begin(STICK)):
            self.assertTransfers(session)
        self.assertEqual(self.reactor.readers, [])
        self.assertEqual(self.sessions.traffic(self.held()), Traffic(bytesIn=4, bytesOut=4))
        first.client.close()
        self.sessions.doRead()
        self.assertEqual(first.ended, 0)

    def test_withoutSession(self) -> None:
        """C{stop} works without any session."""
        self.sessions.stop()
        self.assertEqual(self.reactor.readers, [])


class TrafficTests(SessionTableTestCase):
    """
    The bytes that a session has transferred.
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
        """The bytes in and out; C{None} if they are not known."""
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
    L{usbip_server.net.keepalive.KeepAlive}: detects clients that have vanished.
    """

    OPTIONS = (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
    )

    def test_options(self) -> None:
        """
        All options are set on the socket, in the kernel's units, for IPv4 and IPv6, up to the
        longest times that can be configured. Sockets that are not TCP are left as they are.
        """
        for family in (socket.AF_INET, socket.AF_INET6):
            for values in ((11, 12, 13, 14), (32767, 32767, 127, 86400)):
                client, server = connected(family)
                self.addCleanup(client.close)
                self.addCleanup(server.close)
                idle, interval, count, seconds = values
                KeepAlive(idle=idle, interval=interval, count=count, userTimeout=seconds).apply(
                    server
                )
                options = tuple(server.getsockopt(*option) for option in self.OPTIONS)
                self.assertEqual(options, (1, 1, idle, interval, count, 1000 * seconds))
        for end in socket.socketpair():
            self.addCleanup(end.close)
            KeepAlive().apply(end)

    def test_withinFifteenSeconds(self) -> None:
        """By default a client that vanishes is detected within 15 seconds, idle or not."""
        default = KeepAlive()
        self.assertLessEqual(default.idle + default.interval * default.count, 15)
        self.assertLessEqual(default.userTimeout, 15)


class SilenceTests(SynchronousTestCase):
    """
    L{requireSilence}: a client sends nothing more until it is answered.
    """

    def setUp(self) -> None:
        self.client, self.server = connected()
        self.addCleanup(self.client.close)
        self.addCleanup(self.server.close)

    def test_silence(self) -> None:
        """
        A client that has sent nothing behind its request is accepted; one that has sent more,
        closed its side or reset the connection is refused. Nothing is read.
        """
        requireSilence(self.server)
        self.client.sendall(b"more")
        self.assertNotSilent("after the request")
        self.assertEqual(self.server.recv(10), b"more")
        self.client.shutdown(socket.SHUT_WR)
        self.assertNotSilent("disconnected")
        self.setUp()
        reset(self.client)
        self.assertNotSilent("is gone")

    def assertNotSilent(self, because: str) -> None:
        """The client is refused for this reason."""
        error = self.assertRaises(InvalidRequest, requireSilence, self.server)
        self.assertIn(because, str(error))


class ReactorTests(TestCase):
    """
    In the real reactor, whose epoll contains that of the table.
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
