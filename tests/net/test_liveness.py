"""
Tests of L{usbip_server.net.liveness}.
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
    TCP keepalive of control connections.
    """

    def test_tcp(self) -> None:
        """
        A client that has vanished is detected after twice the time; a fraction of a second is a
        second. Under TLS the connection beneath counts, however deep.
        """
        tcp = socket.IPPROTO_TCP
        for seconds, idle, interval in ((15, 15, 5), (0.1, 1, 1), (60, 60, 20)):
            for family, layers in ((socket.AF_INET, 0), (socket.AF_INET6, 0), (socket.AF_INET, 2)):
                with socket.socket(family, socket.SOCK_STREAM) as handle:
                    transport: Any = SocketTransport(handle)
                    for _ in range(layers):
                        above: Any = StringTransport()
                        directlyProvides(above, ISSLTransport)
                        above.transport = transport
                        transport = above
                    watchOver(transport, seconds)
                    self.assertEqual(handle.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)
                    for option, value in (
                        (socket.TCP_KEEPIDLE, idle),
                        (socket.TCP_KEEPINTVL, interval),
                        (socket.TCP_KEEPCNT, 3),
                        (socket.TCP_USER_TIMEOUT, 2000 * idle),
                    ):
                        self.assertEqual(handle.getsockopt(tcp, option), value)

    def test_noTcp(self) -> None:
        """Without TCP, and on a connection that has gone, it does nothing."""
        for family in (socket.AF_UNIX, socket.AF_INET):
            with socket.socket(family) as handle:
                transport = SocketTransport(handle)
                if family == socket.AF_INET:
                    handle.close()
                watchOver(transport, 15)
        watchOver(StringTransport(), 15)


class LivenessProbeTests(SynchronousTestCase):
    """
    L{LivenessProbe}.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.writes: list[float] = []
        self.probe = LivenessProbe(lambda: self.writes.append(self.clock.seconds()), self.clock)

    def test_twice(self) -> None:
        """
        It writes twice: after the first write the other end's kernel sends a reset, and the second
        one fails.
        """
        self.probe.start()
        self.clock.pump([PROBE_SECONDS] * 10)
        self.assertEqual(self.writes, [0, PROBE_SECONDS])

    def test_stop(self) -> None:
        """After C{stop}, which may be called at any time, it writes nothing."""
        self.probe.stop()
        self.probe.start()
        self.probe.stop()
        self.probe.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(len(self.writes), 1)

    def test_again(self) -> None:
        """If it is started again meanwhile, one timer is left."""
        self.probe.start()
        self.probe.start()
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(PROBE_SECONDS)
        self.probe.stop()
        self.assertEqual(len(self.writes), 3)
