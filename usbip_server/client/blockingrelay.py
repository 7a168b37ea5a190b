"""
USB traffic between this machine's kernel and a TLS connection that the kernel cannot encrypt:
it passes through here.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl

CHUNK = 256 * 1024
"""Bytes that may wait in each direction."""

RECORD = 16384
"""Bytes in a record of TLS at most (RFC 8446, 5.1)."""

OVER = select.POLLHUP | select.POLLERR | select.POLLNVAL
"""Nothing goes through there any more, in neither direction."""


def socketPair() -> tuple[socket.socket, socket.socket]:
    """
    One end for the kernel, one for L{relay}.

    @raise OSError: there is no descriptor left.
    """
    pair = socket.socketpair()
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK)
    return pair


def relay(secured: ssl.SSLSocket, ours: socket.socket) -> None:
    """
    Carry between the two until one of them ends; then both are shut down, whoever else has
    them, and closed. Blocks until that: call it in a thread or a process of its own.
    """
    with secured, ours:
        try:
            Relay(secured, ours).run()
        except OSError:
            pass  # one of them is gone
        finally:
            for end in (secured, ours):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


class Relay:
    """
    Whoever is slower than the other keeps it waiting.
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
        Until one of them ends.

        @raise OSError: one of them breaks.
        """
        while self._fromServer() and self._fromKernel():
            self._send(self._secured, self._toServer)
            self._send(self._ours, self._toKernel)
            # What OpenSSL has read already is not to be seen at the socket.
            if not self._secured.pending() or len(self._toKernel) >= CHUNK:
                self._wait()

    def _fromServer(self) -> bool:
        """
        @return: does the connection go on?
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
        @return: does the session go on?
        """
        with contextlib.suppress(BlockingIOError):
            if len(self._toServer) < CHUNK:
                data = self._ours.recv(CHUNK)
                self._toServer += data
                return bool(data)
        return True

    def _send(self, end: socket.socket, waiting: bytearray) -> None:
        # What OpenSSL could not send is there again the next time, and more behind it, as it
        # wants it (SSL_write(3)).
        with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError):
            while waiting:
                del waiting[: end.send(waiting)]

    def _wait(self) -> None:
        """
        Until there is something to be done.

        @raise ConnectionError: one of them is gone, whether we want to read or not.
        """
        for end, arriving, leaving in (
            (self._secured, self._toKernel, self._toServer),
            (self._ours, self._toServer, self._toKernel),
        ):
            reading = select.POLLIN if len(arriving) < CHUNK else 0
            self._poll.modify(end, reading | (select.POLLOUT if leaving else 0))
        if any(event & OVER for _, event in self._poll.poll()):
            raise ConnectionError
