"""
Tests of L{usbip_server.client.blockingrelay}.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import ssl
import threading
from typing import Any, ClassVar

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.support.certificates import signed, trusting
from tests.support.scriptedserver import received
from usbip_server.client.blockingrelay import CHUNK, relay, socketPair

SECONDS = 60.0

POLL = select.poll

MUCH = os.urandom(8 * CHUNK)
"""More than all buffers on the way hold."""


class CountedPoll:
    """
    C{select.poll} that counts the calls.

    @cvar polls: the number of calls.
    """

    polls: ClassVar[int] = 0

    def __init__(self) -> None:
        self._poll = POLL()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poll, name)

    def poll(self) -> list[tuple[int, int]]:
        """Wait, and count."""
        type(self).polls += 1
        return self._poll.poll()


class RelayTests(SynchronousTestCase):
    """
    A server with TLS, a relay in a thread, and the kernel's end of the socket pair.
    """

    def setUp(self) -> None:
        files = signed("localhost").write(self.mktemp(), "server")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)
        ours, theirs = connected()
        shaking = threading.Thread(target=self.shake, args=(context, theirs))
        shaking.start()
        secured = trusting().wrap_socket(ours, server_hostname="localhost")
        shaking.join()
        self.outside = os.dup(secured.fileno())
        self.addCleanup(os.close, self.outside)
        self.kernel, mine = socketPair()
        for end in (self.kernel, self.server):
            self.addCleanup(end.close)
            end.settimeout(SECONDS)
        self.secured, self.mine = secured, mine
        self.thread = threading.Thread(target=relay, args=(secured, mine), daemon=True)

    def shake(self, context: ssl.SSLContext, theirs: socket.socket) -> None:
        """The server's part of the handshake."""
        self.server = context.wrap_socket(theirs, server_side=True)

    def start(self) -> None:
        """Start the relay."""
        self.thread.start()
        self.addCleanup(self.ends)

    def ends(self) -> None:
        """The relay ends, and both of its sockets are closed."""
        for end in (self.kernel, self.server):
            end.close()
        self.thread.join(SECONDS)
        self.assertFalse(self.thread.is_alive())
        self.assertEqual((self.secured.fileno(), self.mine.fileno()), (-1, -1))

    def test_smallMessages(self) -> None:
        """Bytes are relayed both ways, at once and one by one, also those that OpenSSL had read
        before the relay began."""
        self.server.sendall(MUCH[:10000])
        self.assertEqual(self.secured.recv(1), MUCH[:1])
        self.start()
        self.assertTrue(received(self.kernel, 9999) == MUCH[1:10000])
        for _ in range(100):
            self.kernel.sendall(b"ping")
            self.assertEqual(received(self.server, 4), b"ping")
            for byte in b"pong":
                self.server.sendall(bytes([byte]))
            self.assertEqual(received(self.kernel, 4), b"pong")

    def test_largeMessages(self) -> None:
        """Much data in both directions at the same time arrives complete and in order."""
        self.start()
        arrived: list[bytes] = []
        server = threading.Thread(
            target=lambda: arrived.append(exchange(self.server, MUCH)), daemon=True
        )
        server.start()
        self.assertTrue(exchange(self.kernel, MUCH) == MUCH)
        server.join(SECONDS)
        self.assertTrue(arrived == [MUCH])

    def test_backpressure(self) -> None:
        """A side that does not read stops the other one, without use of memory or processor."""
        self.patch(select, "poll", CountedPoll)
        self.start()
        self.server.settimeout(0.2)
        sent = 0
        while sent < 100 * CHUNK:
            before = CountedPoll.polls
            try:
                sent += self.server.send(MUCH[:16384])
            except TimeoutError:
                if CountedPoll.polls == before:  # nothing has moved meanwhile
                    break
        self.assertLess(sent, 100 * CHUNK)
        before = CountedPoll.polls
        with contextlib.suppress(TimeoutError):
            self.server.recv(1)
        self.assertLess(CountedPoll.polls - before, 10)
        self.server.settimeout(SECONDS)
        self.kernel.sendall(b"still there")
        self.assertEqual(received(self.server, 11), b"still there")

    def test_ends(self) -> None:
        """When one of the two closes, the other is shut down, also if other processes have it:
        these can end the relay, too. Bytes that are not TLS end it."""

        def notTls() -> None:
            with socket.socket(fileno=self.server.detach()) as plain:
                plain.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                self.assertEqual(self.kernel.recv(1), b"")

        def shutDown() -> None:
            with socket.socket(fileno=os.dup(self.outside)) as other:
                other.shutdown(socket.SHUT_RDWR)

        for ends in (
            lambda: self.server.close(),
            lambda: self.kernel.close(),
            shutDown,
            notTls,
        ):
            self.setUp()
            self.start()
            ends()
            for end in (self.kernel, self.server):
                if end.fileno() >= 0:
                    self.assertEqual(end.recv(1), b"")

    def test_endWithFullBuffers(self) -> None:
        """The same while bytes cannot be delivered any more."""
        self.start()
        self.kernel.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while True:
                self.kernel.send(MUCH[:16384])
        self.kernel.close()
        self.thread.join(SECONDS)
        self.assertFalse(self.thread.is_alive())

    def test_manyFiles(self) -> None:
        """Descriptors beyond the limit of select(2) can be used."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard < 2000:
            raise SkipTest("this process may not have so many files")
        resource.setrlimit(resource.RLIMIT_NOFILE, (2000, hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        os.dup2(self.mine.fileno(), 1500)
        self.mine.close()
        self.mine = socket.socket(fileno=1500)
        self.thread = threading.Thread(target=relay, args=(self.secured, self.mine), daemon=True)
        self.start()
        self.kernel.sendall(b"ping")
        self.assertEqual(received(self.server, 4), b"ping")


def exchange(end: socket.socket, data: bytes) -> bytes:
    """
    Send bytes, and receive as many at the same time; in one thread, as OpenSSL
    does not allow two threads to use a connection at the same time (openssl-threads(7)).
    """
    end.setblocking(False)
    unsent, arrived = memoryview(data), bytearray()
    poll = POLL()
    while unsent or len(arrived) < len(data):
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            while unsent:
                unsent = unsent[end.send(unsent[:16384]) :]
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
            while len(arrived) < len(data):
                part = end.recv(65536)
                assert part, "the connection has ended"
                arrived += part
            continue
        poll.register(end, select.POLLIN | (select.POLLOUT if unsent else 0))
        poll.poll(1000 * SECONDS)
    return bytes(arrived)


def connected() -> tuple[socket.socket, socket.socket]:
    """The two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours = socket.create_connection(listening.getsockname())
        theirs, _ = listening.accept()
    for end in (ours, theirs):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, CHUNK)  # and no more, ever
    return ours, theirs
