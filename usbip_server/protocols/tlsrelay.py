"""
USB traffic between a device and a TLS connection that the kernel cannot encrypt: it passes
through here.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from usbip_server.hangups import Hangups
from usbip_server.protocols.tlssocket import TlsSocket

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

    def __init__(self, tls: TlsSocket, hangups: Hangups, reactor: Any) -> None:
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
