"""
A relay between a TLS connection that the kernel cannot encrypt itself and the socket that the
kernel has instead. It blocks.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl

CHUNK = 256 * 1024
"""Bytes that are buffered in each direction at most."""

RECORD = 16384
"""Bytes in a TLS record at most (RFC 8446, 5.1)."""

OVER = select.POLLHUP | select.POLLERR | select.POLLNVAL
"""Events of C{poll} that mean that a connection has ended."""


def socketPair() -> tuple[socket.socket, socket.socket]:
    """
    Two connected sockets: one for the kernel, one for L{relay}.

    @raise OSError: there is no descriptor left.
    """
    pair = socket.socketpair()
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK)
    return pair


def relay(secured: ssl.SSLSocket, ours: socket.socket) -> None:
    """
    Copy bytes both ways until one of the two ends; then shut both down and close them. Blocks
    until then: call it in a thread or a process of its own.
    """
    with secured, ours:
        try:
            Relay(secured, ours).run()
        except OSError:
            pass  # one of the two has broken
        finally:
            for end in (secured, ours):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


class Relay:
    """
    The buffers of both directions, with backpressure: bytes are read only as far as the other
    side takes them.
    """

    def __init__(self, secured: ssl.SSLSocket, ours: socket.socket) -> None:
        self._secured = secured
        self._ours = ours
        self._toServer = bytearray()
        self._toKernel = bytearray()
        self._poll = select.poll()
        for end in (secured, ours):
            end.setblocking(False)
            self._poll.register(end, 0)

    def run(self) -> None:
        """
        Copy until one of the two ends.

        @raise OSError: one of the two breaks.
        """
        while self._fromServer() and self._fromKernel():
            self._send(self._secured, self._toServer)
            self._send(self._ours, self._toKernel)
            # poll() does not report bytes that OpenSSL has read already.
            if not self._secured.pending() or len(self._toKernel) >= CHUNK:
                self._wait()

    def _fromServer(self) -> bool:
        """
        @return: is the connection still open?
        """
        with contextlib.suppress(ssl.SSLWantReadError):
            while len(self._toKernel) < CHUNK:
                data = self._secured.recv(RECORD)
                if not data:
                    return False
                self._toKernel += data
        return True

    def _fromKernel(self) -> bool:
        """
        @return: is the session still open?
        """
        with contextlib.suppress(BlockingIOError):
            if len(self._toServer) < CHUNK:
                data = self._ours.recv(CHUNK)
                self._toServer += data
                return bool(data)
        return True

    def _send(self, end: socket.socket, waiting: bytearray) -> None:
        # After SSL_ERROR_WANT_WRITE the next call has to begin with the same bytes (SSL_write(3)).
        with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError):
            while waiting:
                del waiting[: end.send(waiting)]

    def _wait(self) -> None:
        """
        Wait until something can be read or written.

        @raise ConnectionError: one of the two has ended.
        """
        for end, arriving, leaving in (
            (self._secured, self._toKernel, self._toServer),
            (self._ours, self._toServer, self._toKernel),
        ):
            reading = select.POLLIN if len(arriving) < CHUNK else 0
            self._poll.modify(end, reading | (select.POLLOUT if leaving else 0))
        if any(event & OVER for _, event in self._poll.poll()):
            raise ConnectionError
