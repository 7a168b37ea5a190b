"""
Tests of L{usbip_server.net.keepalive}.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.interfaces import ISSLTransport
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides

from usbip_server.net.liveness import PROBE_SECONDS, LivenessProbe, watchOver


class SocketTransport(StringTransport):
    """
    A transport on a socket.
    """

    def __init__(self, handle: socket.socket) -> None:
        super().__init__()
        self._handle = handle

    def getHandle(self) -> socket.socket:
        """The socket, as Twisted's own have it."""
        return self._handle


class WatchOverTests(SynchronousTestCase):
    """
    Having the kernel look after a connection.
    """

    def open(self, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
        """A socket."""
        handle = socket.socket(family, socket.SOCK_STREAM)
        self.addCleanup(handle.close)
        return handle

    def assertWatched(self, handle: socket.socket, idle: int, interval: int) -> None:
        """The kernel was told these seconds."""
        tcp = socket.IPPROTO_TCP
        self.assertEqual(handle.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)
        self.assertEqual(handle.getsockopt(tcp, socket.TCP_KEEPIDLE), idle)
        self.assertEqual(handle.getsockopt(tcp, socket.TCP_KEEPINTVL), interval)
        self.assertEqual(handle.getsockopt(tcp, socket.TCP_KEEPCNT), 3)
        self.assertEqual(handle.getsockopt(tcp, socket.TCP_USER_TIMEOUT), 2000 * idle)

    def test_tcp(self) -> None:
        """A client that has vanished is noticed after twice the time; a fraction of a second is
        a second to the kernel."""
        for seconds, idle, interval in ((15, 15, 5), (0.1, 1, 1), (60, 60, 20)):
            for family in (socket.AF_INET, socket.AF_INET6):
                handle = self.open(family)
                watchOver(SocketTransport(handle), seconds)
                self.assertWatched(handle, idle, interval)

    def test_tls(self) -> None:
        """Under TLS it is the connection beneath that counts, however deep."""
        handle = self.open()
        transport: Any = SocketTransport(handle)
        for _ in range(2):
            above: Any = StringTransport()
            directlyProvides(above, ISSLTransport)
            above.transport = transport
            transport = above
        watchOver(transport, 15)
        self.assertWatched(handle, 15, 5)

    def test_noTcp(self) -> None:
        """Where there is no TCP there is nothing to do."""
        watchOver(SocketTransport(self.open(socket.AF_UNIX)), 15)
        watchOver(StringTransport(), 15)

    def test_gone(self) -> None:
        """Nor is there where the connection is gone already."""
        handle = socket.socket()
        handle.close()
        watchOver(SocketTransport(handle), 15)


class LivenessProbeTests(SynchronousTestCase):
    """
    Asking whether a client is still there.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.writes = 0
        self.probe = LivenessProbe(self.write, self.clock)

    def write(self) -> None:
        """Count a write."""
        self.writes += 1

    def test_twice(self) -> None:
        """It speaks twice: the first makes the other's kernel refuse, and the second shows it."""
        self.probe.start()
        self.assertEqual(self.writes, 1)
        self.clock.advance(PROBE_SECONDS)
        self.assertEqual(self.writes, 2)
        self.clock.advance(100)
        self.assertEqual(self.writes, 2)

    def test_end(self) -> None:
        """When it does not matter any more it speaks no more; that may be said at any time."""
        self.probe.stop()
        self.probe.start()
        self.probe.stop()
        self.probe.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.writes, 1)

    def test_again(self) -> None:
        """To ask while it is asked leaves one question."""
        self.probe.start()
        self.probe.start()
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(PROBE_SECONDS)
        self.probe.stop()
        self.assertEqual(self.writes, 3)
