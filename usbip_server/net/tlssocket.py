"""
TLS on a socket, driven by the reactor, that can be handed to the kernel.

Twisted's own TLS keeps the encrypted bytes in memory. Here OpenSSL uses the socket itself, so
that it can pass the keys to the kernel (L{usbip_server.net.ktls}).
"""

from __future__ import annotations

import contextlib
import enum
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
"""The most bytes in one record (RFC 8446, 5.1), and what is read at a time by default: then
OpenSSL buffers nothing that the socket does not show as readable."""

CLOSING_SECONDS = 10.0
"""Time for the other end to read what is still to be sent."""


class TlsState(enum.Enum):
    """
    The states of a connection::

        HANDSHAKE -> OPEN -> CLOSING -> CLOSED        loseConnection
        HANDSHAKE, OPEN, CLOSING -> CLOSED            abortConnection, an error, the other end
        OPEN -> GIVEN_AWAY -> CLOSED                  giveAway, and then abortConnection
    """

    HANDSHAKE = 1
    OPEN = 2

    CLOSING = 3
    """What was written is being sent, and then C{close_notify}; nothing is received."""

    GIVEN_AWAY = 4
    """What was written is being sent; nothing is received, and no C{close_notify} follows."""

    CLOSED = 5


@implementer(IReadWriteDescriptor)
class TlsSocket:
    """
    The server's end of a TLS connection on a non-blocking socket; the transport of the protocol
    above it.

    @ivar received: called with the bytes received, a view that is valid during the call only.
    @ivar drained: called when everything written has been sent.
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
        @param connection: is duplicated.
        @param reactor: provides C{IReactorFDSet} and C{IReactorTime}.
        @param shaken: called when the handshake is complete; nothing is received before that.
        @param closed: called once at the end, with the error if there was one. The duplicate is
            closed then, and the connection itself is not.
        @raise OSError: the connection has ended, or there is no descriptor left.
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
        self._state = TlsState.HANDSHAKE
        self._spoke = False  # has anything come?
        self._isReading = False  # between resumeProducing and pauseProducing
        self._isTurning = False  # within _turn
        self._deadline: IDelayedCall | None = None

    @property
    def spoke(self) -> bool:
        """Has the other end sent anything?"""
        return self._spoke

    @property
    def isOver(self) -> bool:
        """Is the connection closed?"""
        return self._state is TlsState.CLOSED

    @property
    def version(self) -> str | None:
        """The version of TLS: C{"TLSv1.2"}."""
        return self._ssl.version()

    @property
    def certificate(self) -> bytes | None:
        """The client's verified certificate, in DER; C{None}: it has sent none."""
        return self._ssl.getpeercert(binary_form=True)

    @property
    def unread(self) -> int:
        """Bytes that were decrypted and not delivered yet."""
        return self._ssl.pending()

    @property
    def unsent(self) -> int:
        """Bytes that were written and are not sent yet."""
        return len(self._out)

    def start(self) -> None:
        """Begin the handshake."""
        self._turn()

    def widen(self, size: int) -> None:
        """Receive up to so many bytes at a time."""
        self._buffer = bytearray(size)

    def pauseProducing(self) -> None:
        """Receive nothing until C{resumeProducing}."""
        self._isReading = False
        self._turn()

    def resumeProducing(self) -> None:
        """Receive again."""
        self._isReading = True
        self._turn()

    def write(self, data: bytes | memoryview) -> None:
        """Send bytes; does nothing once the connection is being closed or was given away."""
        if self._state in (TlsState.HANDSHAKE, TlsState.OPEN):
            self._out += data
            self._turn()

    def loseConnection(self) -> None:
        """Send what was written, then C{close_notify}, and close the connection."""
        if self._state is TlsState.OPEN:
            self._state = TlsState.CLOSING
            self._deadline = self._reactor.callLater(CLOSING_SECONDS, self.abortConnection)
            self._turn()
        elif self._state is not TlsState.CLOSING:
            self.abortConnection()  # after giveAway close_notify would be read as USB traffic

    def abortConnection(self) -> None:
        """Close the connection at once."""
        self._end(None)

    def giveAway(self) -> None:
        """
        Send what was written, and then leave the connection to its new owner. No close_notify
        is sent after that.
        """
        if self._state is TlsState.OPEN:
            self._state = TlsState.GIVEN_AWAY
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
        Make all progress that is possible without blocking. Callbacks may call this object.
        """
        if self._isTurning or self.isOver:
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
        if self._state is TlsState.HANDSHAKE and not self._shake():
            return
        self._flush()
        if self._isReceiving:
            view = self._gather()
            if view is not None:
                if not view:
                    self._closeNotify()
                    return
                self.received(view)
                self._flush()
        if self.isOver or self._out:
            return
        if self._state is TlsState.CLOSING:
            self._closeNotify()
        elif self._state is TlsState.GIVEN_AWAY:
            self._release()

    @property
    def _isReceiving(self) -> bool:
        return self._isReading and self._state is TlsState.OPEN

    def _shake(self) -> bool:
        if not self._spoke:
            try:
                if not self._connection.recv(1, socket.MSG_PEEK):
                    raise ConnectionResetError("the client disconnected during the handshake")
            except BlockingIOError:
                # OpenSSL has nothing to say yet, and would take what comes in this moment.
                self._wanted = (True, False)
                return False
            self._spoke = True
        if not self._try(self._handshaken, False):
            return False
        self._state, self._isReading = TlsState.OPEN, True
        self.widen(RECORD)
        self._shaken()
        return not self.isOver

    def _handshaken(self) -> bool:
        self._ssl.do_handshake()
        return True

    def _flush(self) -> None:
        if not self._out or self.isOver:
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
        @return: the bytes received; empty at the end of the stream; C{None}: nothing yet.
        """
        view, filled = memoryview(self._buffer), 0
        while filled + RECORD <= len(view):
            count = self._try(partial(self._ssl.recv_into, view[filled:]), -1)
            if count <= 0:
                if not count and filled:  # the socket does not become readable again
                    self._reactor.callLater(0, self._turn)
                return None if count < 0 and not filled else view[:filled]
            filled += count
        return view[:filled]

    def _try(self, operation: Callable[[], T], otherwise: T) -> T:
        """
        @return: the result; C{otherwise} if the operation has to wait for the socket to become
            readable or writable.
        """
        reads, writes = self._wanted
        try:
            return operation()
        except ssl.SSLWantReadError:
            self._wanted = (True, writes)
        except ssl.SSLWantWriteError:
            self._wanted = (reads, True)
        return otherwise

    def _closeNotify(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._ssl.unwrap()  # sends close_notify and waits for none
        self._end(None)

    def _release(self) -> None:
        self._wanted = (False, False)
        self._watch()
        self._ssl.close()

    def _end(self, error: Exception | None) -> None:
        if self.isOver:
            return
        self._state = TlsState.CLOSED
        self._watch()
        self._ssl.close()
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._closed(error)

    def _watch(self) -> None:
        """Have the reactor call when the socket is readable or writable, as needed."""
        reads, writes = self._wanted
        reads = reads or self._isReceiving
        watched = (False, False) if self.isOver else (reads, writes)
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
