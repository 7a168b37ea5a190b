"""
Asking one server: JSON lines, as docs/reference/protocol.md has them, seen from the client.

A conversation::

    client: {"command":"attach",...,"keep_alive":true}
    server: {"event":"queued",...}       any number of these: how it goes
    server: {"status":"success",...}     the answer
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure

from usbip_server.client.blocking import shareOf, unreachable
from usbip_server.client.connection import connect, reason
from usbip_server.client.servers import Server
from usbip_server.client.tls import ALERT, SPEAKS_TLS
from usbip_server.model.errors import ShareError, Unreachable
from usbip_server.model.replies import (
    LONGEST_LINE,
    MAYBE_TLS,
    NO_ANSWER,
    ReceivedNotice,
    ReceivedReply,
    Refused,
    Status,
    decodeReply,
)
from usbip_server.net.liveness import watchOver

SILENCE = 45.0
"""Seconds without a line from a server that has something to tell, after which it is taken for
gone: three of its heartbeats (C{timeouts.heartbeat})."""

VANISHED = 5.0
"""Seconds without a word, after which its machine is asked whether it is still there."""


class Conversation(LineReceiver):
    """
    A connection to a server. One request at a time.

    @ivar lost: fires with the reason when it is gone.
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
        self._answer: Deferred[ReceivedReply] | None = None
        self._told: Callable[[ReceivedNotice], None] = lambda notice: None
        self._silence: IDelayedCall | None = None
        self._longest = SILENCE
        self._why: ShareError | None = None
        self._hasSpoken = self._isLost = False

    async def ask(
        self,
        request: dict[str, Any],
        seconds: float,
        told: Callable[[ReceivedNotice], None] = lambda notice: None,
    ) -> ReceivedReply:
        """
        Send a request, and wait for its answer.

        @param seconds: how long at the most; what the request says to C{wait} comes on top.
        @param told: called with lines that answer nothing, until the connection is gone. If it
            raises L{ShareError} that is its end.
        @raise Unreachable: there is no answer, or none that is understood.
        """
        if self._isLost:
            raise self._why or self._trouble("the connection is gone")
        assert self._answer is None, "one at a time"
        self._told = told
        answer: Deferred[ReceivedReply] = Deferred()
        self._answer = answer
        line = {**request, "keep_alive": True}
        if self.server.token is not None:
            line["token"] = self.server.token
        self.sendLine(msgspec.json.encode(line))
        longest = seconds + float(request.get("wait") or 0)
        late = f"no answer within {math.ceil(10 * longest) / 10:g} s"
        giveUp = self._reactor.callLater(longest, self._fail, late)
        try:
            return await answer
        finally:
            self._answer = None
            if giveUp.active():
                giveUp.cancel()

    async def watch(
        self,
        more: dict[str, Any],
        seconds: float,
        told: Callable[[ReceivedNotice], None],
        silence: float = SILENCE,
    ) -> ReceivedReply:
        """
        Be told what happens. Other parameters and errors are those of C{ask}.

        @param more: of the request: criteria, and C{since} to go on.
        @param silence: how many seconds the server may say nothing from now on.
        @return: C{data} is a list of all devices, if it does not go on.
        @raise Refused: it does not let us, or does not go back that far.
        """
        answer = await self.ask({"command": "watch", "detail": True, **more}, seconds, told)
        if answer.status is not Status.SUCCESS:
            raise Refused(answer.status, str(self._trouble(answer.message)))
        if answer.seq is None or not ("since" in more or isinstance(answer.data, list)):
            raise self._trouble("its answer is not understood: it tells nothing of events")
        self._longest = silence
        quiet = f"it has said nothing for {silence:g} s"
        self._silence = self._reactor.callLater(silence, self._fail, quiet)
        return answer

    def close(self) -> None:
        """The end: nothing more is told."""
        self._fail("it was closed")

    def connectionMade(self) -> None:
        watchOver(self.transport, VANISHED)

    def lineReceived(self, line: bytes) -> None:
        self._hasSpoken = True
        if self._why is not None:
            return  # it is being cut off
        if self._silence is not None and self._silence.active():
            self._silence.reset(self._longest)
        try:
            answer = decodeReply(line)
        except ValueError as error:
            self._fail(str(error))
            return
        if not isinstance(answer, ReceivedReply):
            try:
                self._told(answer)
            except ShareError as error:
                self._end(error)
            return
        if self._answer is not None and not self._answer.called:
            self._answer.callback(answer)
        elif answer.status is not Status.SUCCESS:
            self._fail(answer.message)

    def lineLengthExceeded(self, line: bytes) -> None:
        self._fail("its answer is longer than anything that it could have to say")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._isLost = True
        if self._silence is not None and self._silence.active():
            self._silence.cancel()
        self._why = self._why or self._trouble(self._ending(reason.value))
        if self._answer is not None and not self._answer.called:
            self._answer.errback(self._why)
        self.lost.callback(self._why)

    def _ending(self, error: BaseException | None) -> str:
        if self.clearLineBuffer().startswith(ALERT):
            return SPEAKS_TLS
        if isinstance(error, ConnectionDone):
            if self._answer is None:
                return "the connection is lost"
            isPlain = self.server.tls is None
            return NO_ANSWER + (MAYBE_TLS if isPlain and not self._hasSpoken else "")
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
    Begin a conversation. Parameters and errors are those of L{connect}.
    """
    return await connect(reactor, server, seconds, lambda: Conversation(server, reactor))


async def ask(
    reactor: Any,
    server: Server,
    request: dict[str, Any],
    seconds: float,
    told: Callable[[ReceivedNotice], None] = lambda notice: None,
) -> ReceivedReply:
    """
    Ask a server one thing. Parameters and errors are those of L{converse} and
    L{Conversation.ask}; both together may take so many seconds, of which a connection has its
    share (L{shareOf}).
    """
    until = reactor.seconds() + seconds
    conversation = await converse(reactor, server, shareOf(seconds))
    try:
        return await conversation.ask(request, max(0, until - reactor.seconds()), told)
    finally:
        conversation.close()


async def askToTheEnd(
    reactor: Any,
    server: Server,
    request: dict[str, Any],
    seconds: float,
    told: Callable[[ReceivedNotice], None] = lambda notice: None,
    pending: Callable[[ReceivedReply], None] = lambda answer: None,
) -> ReceivedReply:
    """
    The same, and again for as long as the server is at it: it gives up at some time. What the
    request says to C{wait} is for all together.

    @param seconds: for each answer.
    @param pending: called with each answer that only says so.
    """
    until = reactor.seconds() + float(request.get("wait") or 0)
    while True:
        answer = await ask(reactor, server, request, seconds, told)
        if not answer.isPending:
            return answer
        pending(answer)
        if "wait" in request:
            request = {**request, "wait": max(0.0, until - reactor.seconds())}
