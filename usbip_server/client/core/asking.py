"""
Asking one server: JSON lines, as docs/protocol.md has them, seen from the client.

A conversation::

    client: {"command":"attach",...,"keep_alive":true}
    server: {"event":"queued",...}       any number of these: how it goes
    server: {"status":"success",...}     the answer
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import msgspec
from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import (
    ConnectingCancelledError,
    ConnectionDone,
    ConnectionLost,
    DNSLookupError,
    TimeoutError,
)
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.internet.protocol import Factory, connectionDone
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure

from usbip_server.client.core.servers import Server
from usbip_server.client.core.trust import ALERT, SPEAKS_TLS, creatorFor, reasonOf
from usbip_server.errors import ASK_AGAIN, ShareError, Unreachable
from usbip_server.protocols.keepalive import watchOver
from usbip_server.replies import Status

Notice = dict[str, Any]

LONGEST_LINE = 16 * 1024 * 1024
"""Bytes: a list of all devices of a large room, with everything known of each."""

SILENCE = 45.0
"""Seconds without a line from a server that has something to tell, after which it is taken for
gone: three of its heartbeats (C{timeouts.heartbeat})."""

VANISHED = 5.0
"""Seconds without a word, after which its machine is asked whether it is still there."""

MAYBE_TLS = ": if it speaks TLS only, give it `tls` in client.yaml"


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a server answers.

    @ivar status: how it went.
    @ivar data: the device, or the devices, with the contract's keys.
    @ivar message: for people.
    @ivar seq: of a watch.
    """

    status: Status
    data: Any = None
    message: str = ""
    seq: int | None = None

    @property
    def isPending(self) -> bool:
        """Does it only say that it takes longer, and that it can be asked again?"""
        return self.status is Status.FAILURE and self.message.endswith(ASK_AGAIN)


class Refused(ShareError):
    """
    A server has answered, but not that it is done.

    @ivar status: what it has answered.
    """

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


class Conversation(LineReceiver):
    """
    A connection to a server. One request at a time.

    @ivar lost: fires when it is gone.
    """

    delimiter = b"\n"
    MAX_LENGTH = LONGEST_LINE
    transport: Any

    def __init__(self, server: Server, reactor: Any) -> None:
        """
        @param reactor: provides C{IReactorTime}.
        """
        self.server = server
        self.lost: Deferred[None] = Deferred()
        self._reactor = reactor
        self._answer: Deferred[Answer] | None = None
        self._told: Callable[[Notice], None] = lambda notice: None
        self._silence: IDelayedCall | None = None
        self._longest = SILENCE
        self._why: Exception | None = None
        self._hasSpoken = self._isLost = False

    async def ask(
        self,
        request: dict[str, Any],
        seconds: float,
        told: Callable[[Notice], None] = lambda notice: None,
    ) -> Answer:
        """
        Send a request, and wait for its answer.

        @param seconds: how long at the most; what the request says to C{wait} comes on top.
        @param told: called with lines that answer nothing, until the connection is gone.
        @raise Unreachable: there is no answer, or none that is understood.
        """
        if self._isLost:
            raise self._why or self._trouble("the connection is gone")
        assert self._answer is None, "one at a time"
        self._told = told
        answer: Deferred[Answer] = Deferred()
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

    def listen(self, seconds: float = SILENCE) -> None:
        """
        After C{watch}: from now on the server is to say something now and then.

        @param seconds: how long it may be silent.
        """
        self._longest = seconds
        self._silence = self._reactor.callLater(
            seconds, self._fail, f"it has said nothing for {seconds:g} s"
        )

    def close(self) -> None:
        """The end."""
        self.transport.abortConnection()

    def connectionMade(self) -> None:
        watchOver(self.transport, VANISHED)

    def lineReceived(self, line: bytes) -> None:
        self._hasSpoken = True
        if self._why is not None:
            return  # it is being cut off
        if self._silence is not None and self._silence.active():
            self._silence.reset(self._longest)
        try:
            value = msgspec.json.decode(line)
            if isinstance(value, dict) and "event" in value:
                self._told(value)
                return
            answer = msgspec.convert(value, Answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._fail("what answers there is no usbipshare")
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
        self.lost.callback(None)

    def _ending(self, error: BaseException | None) -> str:
        if self.clearLineBuffer().startswith(ALERT):
            return SPEAKS_TLS
        if isinstance(error, ConnectionDone):
            return "it closes without an answer" + ("" if self._hasSpoken else MAYBE_TLS)
        return _reason(error)

    def _fail(self, why: str) -> None:
        self._why = self._why or self._trouble(why)
        self.transport.abortConnection()

    def _trouble(self, why: str) -> Unreachable:
        return _unreachable(self.server, why)


async def converse(reactor: Any, server: Server, seconds: float) -> Conversation:
    """
    Connect to a server.

    @param seconds: how long that may take.
    @raise Unreachable: it cannot be reached. Whether it is who it should be is known only when
        it is asked something.
    """
    try:
        endpoint: IStreamClientEndpoint = HostnameEndpoint(
            reactor, server.host, server.port, timeout=seconds
        )
        if server.tls is not None:
            endpoint = wrapClientTLS(creatorFor(server.host, server.tls), endpoint)
    except ValueError as error:
        raise _unreachable(server, str(error)) from error
    late = f"no connection within {seconds:g} s"
    factory = Factory.forProtocol(lambda: Conversation(server, reactor))
    factory.noisy = False
    connecting = endpoint.connect(factory)
    giveUp = reactor.callLater(seconds, connecting.cancel)
    try:
        conversation = await connecting
    except (CancelledError, ConnectingCancelledError) as error:
        if giveUp.active():  # whoever waits for it does not any more
            raise CancelledError from error
        raise _unreachable(server, late) from error
    except TimeoutError as error:
        raise _unreachable(server, late) from error
    except Exception as error:
        raise _unreachable(server, _reason(error) if giveUp.active() else late) from error
    finally:
        if giveUp.active():
            giveUp.cancel()
    assert isinstance(conversation, Conversation)
    return conversation


async def ask(
    reactor: Any,
    server: Server,
    request: dict[str, Any],
    seconds: float,
    told: Callable[[Notice], None] = lambda notice: None,
) -> Answer:
    """
    Ask a server one thing. Parameters and errors are those of L{converse} and
    L{Conversation.ask}; both together may take as long as one of them.
    """
    until = reactor.seconds() + seconds
    conversation = await converse(reactor, server, seconds)
    try:
        return await conversation.ask(request, max(0, until - reactor.seconds()), told)
    finally:
        conversation.close()


async def askToTheEnd(
    reactor: Any,
    server: Server,
    request: dict[str, Any],
    seconds: float,
    told: Callable[[Notice], None] = lambda notice: None,
    pending: Callable[[Answer], None] = lambda answer: None,
) -> Answer:
    """
    The same, and again for as long as the server is at it: it gives up at some time.

    @param seconds: for each answer.
    @param pending: called with each answer that only says so.
    """
    while True:
        answer = await ask(reactor, server, request, seconds, told)
        if not answer.isPending:
            return answer
        pending(answer)


def _unreachable(server: Server, why: str) -> Unreachable:
    return Unreachable(f"{server.called(server.address)}: {why}")


def _reason(error: BaseException | None) -> str:
    """
    What has gone wrong, less what is for programmers.
    """
    if isinstance(error, DNSLookupError):
        return "there is no machine of this name"
    if isinstance(error, ConnectionLost):
        return "the connection breaks"
    if isinstance(error, SSL.Error | VerificationError):
        return reasonOf(error)
    number = getattr(error, "osError", None)
    if isinstance(number, int):
        return os.strerror(number)
    return str(error).rstrip(".") or type(error).__name__
