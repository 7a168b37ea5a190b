"""
The client side of the JSON protocol, on Twisted: requests, replies and events on one connection.
For programs without a reactor there is L{usbip_server.client.blocking}.

A conversation::

    client: {"command":"attach",...,"keep_alive":true}
    server: {"event":"queued",...}       any number of these
    server: {"status":"success",...}     the reply
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure

from usbip_server.client.connection import connect, reason
from usbip_server.client.devices import notUnderstood
from usbip_server.client.jsonclient import (
    ALERT,
    SPEAKS_TLS,
    TOO_LONG,
    closed,
    encoded,
    late,
    refused,
    shareOf,
    timeFor,
    unreachable,
    withDetail,
)
from usbip_server.client.servers import Server
from usbip_server.model.errors import ShareError, Unreachable
from usbip_server.model.replies import (
    LONGEST_EVENT,
    LONGEST_LINE,
    ReceivedNotice,
    ReceivedReply,
    Status,
    decodeReply,
)
from usbip_server.net.liveness import watchOver

SILENCE = 45.0
"""Seconds without a line during a watch after which the connection is aborted: three heartbeats
(C{timeouts.heartbeat})."""

VANISHED = 5.0
"""Seconds of silence after which the kernel probes whether the machine is still there."""


class Conversation(LineReceiver):
    """
    A connection to a server, with one request at a time.

    @ivar lost: fires with the reason when the connection is lost.
    """

    delimiter = b"\n"
    MAX_LENGTH = LONGEST_LINE
    transport: Any

    def __init__(self, server: Server, reactor: Any) -> None:
        """
        @param reactor: provides C{IReactorTime}.
        """
        self.server = server
        self.lost: Deferred[ShareError] = Deferred()
        self._reactor = reactor
        self._reply: Deferred[ReceivedReply] | None = None
        self._onNotice: Callable[[ReceivedNotice], None] = lambda notice: None
        self._silence: IDelayedCall | None = None
        self._longest = SILENCE
        self._why: ShareError | None = None
        self._hasSpoken = self._isLost = False

    async def ask(
        self,
        request: dict[str, Any],
        seconds: float,
        onNotice: Callable[[ReceivedNotice], None] = lambda notice: None,
    ) -> ReceivedReply:
        """
        Send a request, and wait for the reply.

        @param seconds: how long that may take; the request's C{wait} comes on top.
        @param onNotice: called with each line that is an event, until the connection is lost. If
            it raises a L{ShareError} the connection is aborted.
        @raise Unreachable: there is no reply, or it is not understood.
        """
        if self._isLost:
            raise self._why or self._trouble("the connection is lost")
        assert self._reply is None, "one request at a time"
        self._onNotice = onNotice
        reply: Deferred[ReceivedReply] = Deferred()
        self._reply = reply
        self.sendLine(encoded(self.server, request))
        longest = timeFor(request, seconds)
        giveUp = self._reactor.callLater(longest, self._fail, late(longest))
        try:
            return await reply
        finally:
            self._reply = None
            if giveUp.active():
                giveUp.cancel()

    async def watch(
        self,
        more: dict[str, Any],
        seconds: float,
        onNotice: Callable[[ReceivedNotice], None],
        silence: float = SILENCE,
    ) -> ReceivedReply:
        """
        Subscribe to events. Other parameters and errors are those of C{ask}.

        @param more: further keys of the request: criteria, and C{since} to resume.
        @param silence: seconds without a line after which the connection is aborted.
        @return: its C{data} is the list of all devices, unless the watch is resumed.
        @raise Refused: the server refuses, or no longer has all events since C{since}.
        """
        reply = await self.ask({"command": "watch", "detail": True, **more}, seconds, onNotice)
        if reply.status is not Status.SUCCESS:
            raise refused(self.server, reply)
        isComplete = isinstance(reply.data, list) or ("since" in more and reply.data is None)
        if reply.seq is None or not isComplete:
            why = "it has no number of the last event, or no list of devices"
            raise notUnderstood(self.server, why)
        self.MAX_LENGTH = LONGEST_EVENT
        self._longest = silence
        quiet = f"no line received for {silence:g} s"
        self._silence = self._reactor.callLater(silence, self._fail, quiet)
        return reply

    def close(self) -> None:
        """Abort the connection. C{onNotice} is not called any more."""
        self._fail("the connection was closed")

    def connectionMade(self) -> None:
        watchOver(self.transport, VANISHED)

    def lineReceived(self, line: bytes) -> None:
        self._hasSpoken = True
        if self._why is not None:
            return  # the connection is being aborted
        if self._silence is not None and self._silence.active():
            self._silence.reset(self._longest)
        try:
            reply = decodeReply(line)
        except ValueError as error:
            self._fail(str(error))
            return
        if not isinstance(reply, ReceivedReply):
            try:
                self._onNotice(reply)
            except ShareError as error:
                self._end(error)
            return
        if self._reply is not None and not self._reply.called:
            self._reply.callback(reply)
        elif reply.status is not Status.SUCCESS:
            self._fail(str(reply.message))

    def lineLengthExceeded(self, line: bytes) -> None:
        self._fail(TOO_LONG)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._isLost = True
        if self._silence is not None and self._silence.active():
            self._silence.cancel()
        self._why = self._why or self._trouble(self._ending(reason.value))
        if self._reply is not None and not self._reply.called:
            self._reply.errback(self._why)
        self.lost.callback(self._why)

    def _ending(self, error: BaseException | None) -> str:
        if self.clearLineBuffer().startswith(ALERT):
            return SPEAKS_TLS
        if isinstance(error, ConnectionDone):
            if self._reply is None:
                return "the connection is lost"
            return closed(self.server, self._hasSpoken)
        return reason(error)

    def _fail(self, why: str) -> None:
        self._end(self._trouble(why))

    def _end(self, why: ShareError) -> None:
        self._why = self._why or why
        self.transport.abortConnection()

    def _trouble(self, why: str) -> Unreachable:
        return unreachable(self.server, why)


async def converse(reactor: Any, server: Server, seconds: float) -> Conversation:
    """
    Connect to a server. Parameters and errors are those of L{connect}.
    """
    return await connect(reactor, server, seconds, lambda: Conversation(server, reactor))


async def ask(
    reactor: Any,
    server: Server,
    request: dict[str, Any],
    seconds: float,
    onNotice: Callable[[ReceivedNotice], None] = lambda notice: None,
) -> ReceivedReply:
    """
    Send one request on a connection of its own. Parameters and errors are those of L{converse} and
    L{Conversation.ask}; C{seconds} are for both together, of which connecting has its share
    (L{shareOf}).
    """
    until = reactor.seconds() + seconds
    conversation = await converse(reactor, server, shareOf(seconds))
    try:
        return await conversation.ask(request, max(0, until - reactor.seconds()), onNotice)
    finally:
        conversation.close()


async def askToTheEnd(
    reactor: Any,
    server: Server,
    request: dict[str, Any],
    seconds: float,
    onNotice: Callable[[ReceivedNotice], None] = lambda notice: None,
    onPending: Callable[[ReceivedReply], None] = lambda reply: None,
) -> ReceivedReply:
    """
    The same, and repeat the request for as long as the server replies that the operation is still
    in progress. The server has a deadline for the operation. The request is sent with C{detail}.

    @param seconds: for each reply; the request's C{wait} is for all of them together.
    @param onPending: called with each of these replies.
    """
    for each in withDetail(request, reactor.seconds):
        reply = await ask(reactor, server, each, seconds, onNotice)
        if not reply.isPending:
            break
        onPending(reply)
    return reply
