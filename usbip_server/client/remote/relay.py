"""
USB traffic between a client and another server: it passes through a gateway, as USB/IP knows no
way to send a client elsewhere.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from usbip_server.device import Traffic

CHUNK = 256 * 1024
"""Bytes that are moved at a time, and that may wait in each direction."""

WAITS = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


@implementer(IReadWriteDescriptor)
class _End:
    """
    One of the two connections, which is ours to read from and to write to.

    @ivar other: the other one.
    @ivar moved: bytes that have come.
    """

    other: _End

    def __init__(self, connection: socket.socket, relay: RemoteRelay, reactor: Any) -> None:
        self.moved = 0
        self._connection = connection
        self._relay = relay
        self._reactor = reactor
        self._unsent = bytearray()
        # Whether calls on a connection block is not ours to say, where others have it too.
        self._isTls = isinstance(connection, ssl.SSLSocket)
        self._flags = 0 if self._isTls else socket.MSG_DONTWAIT
        if self._isTls:
            connection.setblocking(False)

    def fileno(self) -> int:
        return self._connection.fileno()

    def logPrefix(self) -> str:
        return "gateway"

    def begin(self) -> None:
        """Carry what comes."""
        self._reactor.addReader(self)

    def doRead(self) -> None:
        """Carry what has come, as far as the other end takes it."""
        buffer = self._relay.buffer
        while not self.other.isFull:
            try:
                count = self._connection.recv_into(buffer, CHUNK, self._flags)
            except WAITS:
                return
            except OSError:
                count = 0
            if not count:
                self._relay.end()
                return
            self.moved += count
            with memoryview(buffer) as view:
                self.other.send(view[:count])
            if self._relay.isOver or not self._isTls:
                break  # OpenSSL may have read more than the socket shows; others have not
        if self.other.isFull and not self._relay.isOver:
            self._reactor.removeReader(self)

    @property
    def isFull(self) -> bool:
        """Does anything wait to be sent?"""
        return bool(self._unsent)

    def send(self, data: memoryview) -> None:
        """Send; what does not go waits."""
        sent = 0
        try:
            while sent < len(data):
                sent += self._connection.send(data[sent:], self._flags)
        except WAITS:
            self._unsent += data[sent:]
            self._reactor.addWriter(self)
        except OSError:
            self._relay.end()

    def doWrite(self) -> None:
        """Send what waits, and then have more of it."""
        try:
            while self._unsent:
                del self._unsent[: self._connection.send(self._unsent, self._flags)]
        except WAITS:
            return
        except OSError:
            self._relay.end()
            return
        self._reactor.removeWriter(self)
        self._reactor.addReader(self.other)
        self.other.doRead()

    def connectionLost(self, reason: Failure) -> None:
        self._relay.end()

    def close(self) -> None:
        """The end; whoever else has the connection hears of it."""
        self._reactor.removeReader(self)
        self._reactor.removeWriter(self)
        with contextlib.suppress(OSError):
            # Not that of ssl, which would take TLS off it and leave the rest.
            socket.socket.shutdown(self._connection, socket.SHUT_RDWR)
        self._connection.close()


class RemoteRelay:
    """
    Carries between two connections. Whoever is slower than the other keeps it waiting. When
    one ends, so does the other. Both are closed then.

    @ivar isOver: has one ended?
    @ivar buffer: for both directions.
    """

    def __init__(
        self,
        client: socket.socket,
        server: socket.socket,
        reactor: Any,
        ended: Callable[[], None],
    ) -> None:
        """
        @param reactor: provides C{IReactorFDSet}.
        @param ended: called when it is over, whoever has ended it.
        """
        self.isOver = False
        self.buffer = bytearray(CHUNK)
        self._ended = ended
        self._client = _End(client, self, reactor)
        self._server = _End(server, self, reactor)
        self._client.other, self._server.other = self._server, self._client

    @property
    def traffic(self) -> Traffic:
        """What it has carried."""
        return Traffic(bytesIn=self._client.moved, bytesOut=self._server.moved)

    def begin(self) -> None:
        """Carry, from now on."""
        self._client.begin()
        self._server.begin()

    def end(self) -> None:
        """Shut both down and close them. May be called again."""
        if self.isOver:
            return
        self.isOver = True
        self._client.close()
        self._server.close()
        self._ended()
