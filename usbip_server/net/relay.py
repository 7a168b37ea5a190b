"""
USB traffic between a device and a TLS connection that the kernel cannot encrypt: it passes
through here.
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

from usbip_server.model.device import Traffic
from usbip_server.net.hangup import HangupWatcher
from usbip_server.net.tlssocket import TlsSocket

CHUNK = 256 * 1024
"""Bytes that may wait in each direction, and are moved at a time."""


@implementer(IReadWriteDescriptor)
class Relay:
    """
    A pair of sockets: the device has one end, and what comes out of the other goes to the
    client, and the other way round. Whoever is slower than the other keeps it waiting. When
    one ends, so does the other.

    @ivar given: the device's end, until C{begin} or C{end}.
    """

    def __init__(self, tls: TlsSocket, hangups: HangupWatcher, reactor: Any) -> None:
        """
        @param hangups: tells when the device is gone while nothing is read from it.
        @param reactor: provides C{IReactorFDSet}.
        @raise OSError: there is no descriptor left.
        """
        self._tls = tls
        self._hangups = hangups
        self._reactor = reactor
        self.given, self._ours = socket.socketpair()
        for end in (self.given, self._ours):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK)
        self._ours.setblocking(False)
        self._buffer = bytearray(CHUNK)
        self._toDevice = bytearray()
        self._isWaiting = self._isOver = False

    def begin(self) -> None:
        """
        The device has its end, and the client was answered.
        """
        self.given.close()
        self._tls.received = self._fromClient
        self._tls.drained = self._drained
        self._tls.widen(CHUNK)
        self._reactor.addReader(self)
        self._tls.resumeProducing()

    def end(self) -> None:
        """
        Close both ends.
        """
        if self._isOver:
            return
        self._isOver = True
        self._hangups.leave(self._ours)
        self._reactor.removeReader(self)
        self._reactor.removeWriter(self)
        for end in (self.given, self._ours):
            end.close()

    def fileno(self) -> int:
        return self._ours.fileno()

    def logPrefix(self) -> str:
        return "relay"

    def doRead(self) -> None:
        """From the device."""
        try:
            count = self._ours.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self._overAtDevice()
            return
        with memoryview(self._buffer) as view:
            self._tls.write(view[:count])
        if self._tls.unsent and not self._isOver:
            self._isWaiting = True  # until it is drained
            self._reactor.removeReader(self)
            self._hangups.listen(self._ours, self._overAtDevice)

    def doWrite(self) -> None:
        """To the device."""
        try:
            del self._toDevice[: self._ours.send(self._toDevice)]
        except BlockingIOError:
            return
        except OSError:
            self._overAtDevice()
            return
        if not self._toDevice:
            self._reactor.removeWriter(self)
            self._tls.resumeProducing()

    def connectionLost(self, reason: Failure) -> None:
        self._overAtDevice()

    def _fromClient(self, data: memoryview) -> None:
        sent = 0
        with contextlib.suppress(OSError):  # if it is over, doRead will find out
            sent = self._ours.send(data)
        if sent < len(data):
            self._toDevice += data[sent:]
            self._tls.pauseProducing()
            self._reactor.addWriter(self)

    def _drained(self) -> None:
        if self._isWaiting and not self._isOver:
            self._isWaiting = False
            self._hangups.leave(self._ours)
            self._reactor.addReader(self)

    def _overAtDevice(self) -> None:
        self.end()
        self._tls.loseConnection()


RELAY_CHUNK = 256 * 1024
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
                count = self._connection.recv_into(buffer, RELAY_CHUNK, self._flags)
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
        self.buffer = bytearray(RELAY_CHUNK)
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
