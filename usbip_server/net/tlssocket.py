"""
TLS on a socket of the system's, driven by the reactor.

Twisted's own TLS has the encrypted bytes in memory of its own. Here OpenSSL has the socket
itself, so that it can hand the keys to the kernel (L{usbip_server.net.ktls}).
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

T = TypeVar("T")

RECORD = 16384
"""Bytes in one record, at most (RFC 8446, 5.1): what is read at a time, unless there is to be
more. OpenSSL has nothing then that the socket does not know of."""

CLOSING_SECONDS = 10.0
"""For the other end to take what is still to be sent."""


@implementer(IReadWriteDescriptor)
class TlsSocket:
    """
    The server's end of a TLS connection, whose socket does not block: a transport, to the
    protocol above it.

    @ivar received: called with what has come, which is only lent.
    @ivar drained: called when all that was written is sent.
    """

    def __init__(
        self,
        connection: socket.socket,
        context: ssl.SSLContext,
        reactor: Any,
        shaken: Callable[[], None],
        received: Callable[[memoryview], None],
        closed: Callable[[Exception | None], None],
    ) -> None:
        """
        @param connection: a reference of its own is made.
        @param reactor: provides C{IReactorFDSet} and C{IReactorTime}.
        @param shaken: called when the handshake is done; nothing is received before that.
        @param closed: called once, when it is over, with what has gone wrong. Our reference
            is closed then, and the connection as such is not.
        @raise OSError: the connection is gone, or there is no descriptor left.
        """
        self.received = received
        self.drained: Callable[[], None] = lambda: None
        self._reactor = reactor
        self._shaken = shaken
        self._closed = closed
        self._connection = connection
        self._ssl = context.wrap_socket(
            connection.dup(), server_side=True, do_handshake_on_connect=False
        )
        self._buffer = bytearray()
        self._out = bytearray()
        self._wanted = self._watched = (False, False)  # to be read from, to be written to
        self._spoke = self._isShaken = self._isReading = False
        self._isTurning = self._isLosing = self._isGivenAway = self._isOver = False
        self._deadline: IDelayedCall | None = None

    @property
    def spoke(self) -> bool:
        """Has anything come, whatever it was?"""
        return self._spoke

    @property
    def isOver(self) -> bool:
        """Is it closed?"""
        return self._isOver

    @property
    def version(self) -> str | None:
        """Of TLS: C{"TLSv1.2"}."""
        return self._ssl.version()

    @property
    def certificate(self) -> bytes | None:
        """That the client has shown, which was verified, in DER; C{None}: it has shown none."""
        return self._ssl.getpeercert(binary_form=True)

    @property
    def unread(self) -> int:
        """Bytes that have come and were not received yet."""
        return self._ssl.pending()

    @property
    def unsent(self) -> int:
        """Bytes that were written and not sent yet."""
        return len(self._out)

    def start(self) -> None:
        """Begin with the handshake."""
        self._turn()

    def widen(self, size: int) -> None:
        """Receive as much as this at a time, in bytes."""
        self._buffer = bytearray(size)

    def pauseProducing(self) -> None:
        """Receive nothing for now."""
        self._isReading = False
        self._turn()

    def resumeProducing(self) -> None:
        """Go on receiving."""
        self._isReading = True
        self._turn()

    def write(self, data: bytes | memoryview) -> None:
        """Send something, unless the connection is being closed, or is another one's."""
        if not (self._isLosing or self._isGivenAway or self._isOver):
            self._out += data
            self._turn()

    def loseConnection(self) -> None:
        """Send what is still to be sent, take leave (C{close_notify}), and close it."""
        if self._isGivenAway:
            self.abortConnection()  # what we said now would be said in somebody's traffic
        elif not self._isLosing and not self._isOver:
            self._isLosing = True
            self._deadline = self._reactor.callLater(CLOSING_SECONDS, self.abortConnection)
            self._turn()

    def abortConnection(self) -> None:
        """Close it at once."""
        self._end(None)

    def giveAway(self) -> None:
        """
        Another one has the connection from now on: send what was written, and do nothing more.
        """
        self._isGivenAway = True
        self._isReading = False
        self._turn()

    def fileno(self) -> int:
        return self._ssl.fileno()

    def logPrefix(self) -> str:
        return "TLS"

    def doRead(self) -> None:
        self._turn()

    def doWrite(self) -> None:
        self._turn()

    def connectionLost(self, reason: Failure) -> None:
        self._end(ConnectionResetError("the connection is gone"))

    def _turn(self) -> None:
        """
        Do all that can be done now. What is called here may call us.
        """
        if self._isTurning or self._isOver:
            return
        self._isTurning = True
        try:
            self._wanted = (False, False)
            self._proceed()
        except OSError as error:  # an ssl.SSLError is one
            self._end(error)
        finally:
            self._isTurning = False
        self._watch()

    def _proceed(self) -> None:
        if not self._isShaken and not self._shake():
            return
        self._flush()
        if self._isReading and not self._isLosing:
            view = self._gather()
            if view is not None:
                if not view:
                    self._takeLeave()
                    return
                self.received(view)
                self._flush()
        if self._isOver or self._out:
            return
        if self._isLosing:
            self._takeLeave()
        elif self._isGivenAway:
            self._release()

    def _shake(self) -> bool:
        if self._isLosing:
            self._end(None)
            return False
        if not self._spoke:
            try:
                if not self._connection.recv(1, socket.MSG_PEEK):
                    raise ConnectionResetError("it leaves in the handshake")
            except BlockingIOError:
                # OpenSSL has nothing to say yet, and would take what comes in this moment.
                self._wanted = (True, False)
                return False
            self._spoke = True
        if not self._try(self._handshaken, False):
            return False
        self._isShaken = self._isReading = True
        self.widen(RECORD)
        self._shaken()
        return not self._isOver

    def _handshaken(self) -> bool:
        self._ssl.do_handshake()
        return True

    def _flush(self) -> None:
        if not self._out or self._isOver:
            return
        sent = 0
        with memoryview(self._out) as view:
            while sent < len(view):
                more = self._try(partial(self._ssl.send, view[sent:]), 0)
                if not more:
                    break
                sent += more
        del self._out[:sent]
        if not self._out:
            self.drained()

    def _gather(self) -> memoryview | None:
        """
        @return: what has come; nothing at the end; C{None}: nothing yet.
        """
        view, filled = memoryview(self._buffer), 0
        while filled + RECORD <= len(view):
            count = self._try(partial(self._ssl.recv_into, view[filled:]), -1)
            if count <= 0:
                if not count and filled:  # the socket will not tell of the end again
                    self._reactor.callLater(0, self._turn)
                return None if count < 0 and not filled else view[:filled]
            filled += count
        return view[:filled]

    def _try(self, operation: Callable[[], T], otherwise: T) -> T:
        """
        @return: C{otherwise}: it cannot be done before there is something to be read, or room
            to write.
        """
        reads, writes = self._wanted
        try:
            return operation()
        except ssl.SSLWantReadError:
            self._wanted = (True, writes)
        except ssl.SSLWantWriteError:
            self._wanted = (reads, True)
        return otherwise

    def _takeLeave(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._ssl.unwrap()  # waits for no answer
        self._end(None)

    def _release(self) -> None:
        self._wanted = (False, False)
        self._watch()
        self._ssl.close()

    def _end(self, error: Exception | None) -> None:
        if self._isOver:
            return
        self._isOver = True
        self._watch()
        self._ssl.close()
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._closed(error)

    def _watch(self) -> None:
        """Have the reactor tell when there is something to be done."""
        reads, writes = self._wanted
        reads = reads or (self._isShaken and self._isReading and not self._isLosing)
        watched = (False, False) if self._isOver else (reads, writes)
        for now, before, add, remove in zip(
            watched,
            self._watched,
            (self._reactor.addReader, self._reactor.addWriter),
            (self._reactor.removeReader, self._reactor.removeWriter),
            strict=True,
        ):
            if now != before:
                (add if now else remove)(self)
        self._watched = watched
