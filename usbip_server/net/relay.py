"""
A relay: copies bytes between two connections, in both directions, driven by the reactor.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import typing
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from usbip_server.model.device import Traffic
from usbip_server.net.hangup import HangupWatcher
from usbip_server.net.tlssocket import TlsSocket

CHUNK = 256 * 1024
"""Bytes that are read at a time, and that may wait to be sent in each direction."""

_WAITS = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Side(typing.Protocol):
    """
    One of the two connections of a relay: a L{SocketSide} or a L{TlsSocket}.

    @ivar received: called with the bytes received, a view that is valid during the call only.
    @ivar drained: called when everything written has been sent.
    """

    received: Callable[[memoryview], None]
    drained: Callable[[], None]

    @property
    def unsent(self) -> int:
        """Bytes that were written and are not sent yet."""

    def write(self, data: memoryview) -> None:
        """Send bytes."""

    def pauseProducing(self) -> None:
        """Receive nothing until C{resumeProducing}."""

    def resumeProducing(self) -> None:
        """Receive."""

    def loseConnection(self) -> None:
        """Close the connection."""


class Relay:
    """
    Copies between two connections. A connection whose other end reads slowly pauses the other one.
    When one ends, both are closed.

    @ivar isOver: whether it has ended.
    """

    def __init__(
        self, client: Side, device: Side, ended: Callable[[], None] = lambda: None
    ) -> None:
        """
        @param client: the connection of the client that has imported the device.
        @param device: the connection to the device, or to its server.
        @param ended: called once, when the relay has ended.
        """
        self.isOver = False
        self._client = client
        self._device = device
        self._ended = ended
        self._bytesIn = self._bytesOut = 0

    @property
    def traffic(self) -> Traffic:
        """The bytes copied so far."""
        return Traffic(bytesIn=self._bytesIn, bytesOut=self._bytesOut)

    def begin(self) -> None:
        """Copy from now on."""
        client, device = self._client, self._device
        client.received, client.drained = self._fromClient, device.resumeProducing
        device.received, device.drained = self._fromDevice, client.resumeProducing
        device.resumeProducing()
        client.resumeProducing()

    def end(self) -> None:
        """Close both connections. May be called again."""
        if self.isOver:
            return
        self.isOver = True
        self._client.drained = self._device.drained = lambda: None
        self._client.loseConnection()
        self._device.loseConnection()
        self._ended()

    def _fromClient(self, data: memoryview) -> None:
        self._bytesIn += len(data)
        self._copy(data, self._client, self._device)

    def _fromDevice(self, data: memoryview) -> None:
        self._bytesOut += len(data)
        self._copy(data, self._device, self._client)

    def _copy(self, data: memoryview, source: Side, target: Side) -> None:
        target.write(data)
        if target.unsent and not self.isOver:
            source.pauseProducing()


@implementer(IReadWriteDescriptor)
class SocketSide:
    """
    A socket as a side of a relay.
    """

    def __init__(
        self,
        connection: socket.socket,
        reactor: Any,
        lost: Callable[[], None],
        buffer: bytearray,
        hangups: HangupWatcher | None = None,
    ) -> None:
        """
        @param connection: a socket, or an C{ssl.SSLSocket} after its handshake.
        @param reactor: provides C{IReactorFDSet}.
        @param lost: called when the connection has ended.
        @param buffer: for what is received; both sides may use the same.
        @param hangups: reports the end while nothing is received. C{None}: the end is noticed
            when something is sent or received.
        """
        self.received: Callable[[memoryview], None] = lambda data: None
        self.drained: Callable[[], None] = lambda: None
        self._connection = connection
        self._reactor = reactor
        self._lost = lost
        self._hangups = hangups
        self._buffer = buffer
        self._out = bytearray()
        self._isReading = self._isClosed = False
        # Whether a plain socket blocks is not changed: other processes may share it.
        self._isTls = isinstance(connection, ssl.SSLSocket)
        self._flags = 0 if self._isTls else socket.MSG_DONTWAIT
        if self._isTls:
            connection.setblocking(False)

    @property
    def unsent(self) -> int:
        """Bytes that were written and are not sent yet."""
        return len(self._out)

    def write(self, data: memoryview) -> None:
        """Send bytes; those that the socket does not take are sent when it does."""
        if self._out:
            self._out += data
            return
        sent = 0
        try:
            while sent < len(data):
                sent += self._connection.send(data[sent:], self._flags)
        except _WAITS:
            self._out += data[sent:]
            self._reactor.addWriter(self)
        except OSError:
            if not self._isReading:  # else doRead reports the end, after what was received before
                self._lost()

    def pauseProducing(self) -> None:
        """Receive nothing until C{resumeProducing}."""
        if self._isReading:
            self._isReading = False
            self._reactor.removeReader(self)
            if self._hangups is not None:
                self._hangups.listen(self._connection, self._lost)

    def resumeProducing(self) -> None:
        """Receive."""
        if self._isReading or self._isClosed:
            return
        self._isReading = True
        if self._hangups is not None:
            self._hangups.leave(self._connection)
        self._reactor.addReader(self)
        if self._isTls:
            self.doRead()  # OpenSSL may have read more than the socket shows

    def loseConnection(self) -> None:
        """Shut the connection down, also for other processes that share it, and close it."""
        if self._isClosed:
            return
        self._isClosed, self._isReading = True, False
        if self._hangups is not None:
            self._hangups.leave(self._connection)
        self._reactor.removeReader(self)
        self._reactor.removeWriter(self)
        with contextlib.suppress(OSError):
            # Not SSLSocket.shutdown, which would end TLS only.
            socket.socket.shutdown(self._connection, socket.SHUT_RDWR)
        self._connection.close()

    def fileno(self) -> int:
        return self._connection.fileno()

    def logPrefix(self) -> str:
        return "relay"

    def doRead(self) -> None:
        while self._isReading:
            try:
                count = self._connection.recv_into(self._buffer, CHUNK, self._flags)
            except _WAITS:
                return
            except OSError:
                count = 0
            if not count:
                self._lost()
                return
            with memoryview(self._buffer) as view:
                self.received(view[:count])
            if not self._isTls:
                return

    def doWrite(self) -> None:
        try:
            while self._out:
                del self._out[: self._connection.send(self._out, self._flags)]
        except _WAITS:
            return
        except OSError:
            self._lost()
            return
        self._reactor.removeWriter(self)
        self.drained()

    def connectionLost(self, reason: Failure) -> None:
        self._lost()


class SocketRelay(Relay):
    """
    A relay between two sockets.
    """

    def __init__(
        self,
        client: socket.socket,
        device: socket.socket,
        reactor: Any,
        ended: Callable[[], None],
    ) -> None:
        """
        @param reactor: provides C{IReactorFDSet}.
        @param ended: called once, when the relay has ended.
        """
        buffer = bytearray(CHUNK)
        super().__init__(
            SocketSide(client, reactor, self.end, buffer),
            SocketSide(device, reactor, self.end, buffer),
            ended,
        )


class PairRelay(Relay):
    """
    A relay between a TLS connection and one end of a socket pair, for a TLS connection that the
    kernel cannot encrypt: the device gets the other end of the pair.

    @ivar given: the device's end, until C{begin} or C{end}.
    """

    def __init__(self, tls: TlsSocket, hangups: HangupWatcher, reactor: Any) -> None:
        """
        @param hangups: reports the end of the device's session while nothing is read from it.
        @param reactor: provides C{IReactorFDSet}.
        @raise OSError: there is no descriptor left.
        """
        self.given, ours = socket.socketpair()
        for end in (self.given, ours):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK)
        self._tls = tls
        self._hasBegun = False
        super().__init__(tls, SocketSide(ours, reactor, self.end, bytearray(CHUNK), hangups))

    def begin(self) -> None:
        """Copy from now on: the device has its end, and the client has its reply."""
        self._hasBegun = True
        self.given.close()
        self._tls.widen(CHUNK)
        super().begin()

    def end(self) -> None:
        """Close the socket pair, and the TLS connection unless the relay has not begun."""
        self.given.close()
        if self._hasBegun:
            super().end()
        else:
            self._device.loseConnection()
