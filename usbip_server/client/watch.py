"""
A watch of a server's events that reconnects and resumes after the connection is lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from usbip_server.client.conversation import Conversation, converse
from usbip_server.client.jsonclient import unreachable
from usbip_server.client.servers import Server
from usbip_server.model.replies import ReceivedNotice, ReceivedReply, Refused
from usbip_server.runtime.backoff import Backoff, BackoffOptions

BACK_OFF = BackoffOptions(first=1.0, longest=15.0)
"""Backoff between two attempts to connect."""

SECONDS = 5.0
"""For connecting to the server, and again for its reply."""


MOST_EVENTS = 2000
"""Events in L{PERIOD} seconds. A server that sends more is disconnected, and connected to again
after a pause."""

PERIOD = 10.0


class WatchListener(Protocol):
    """
    What the callers of L{ServerWatch} implement.
    """

    def watchBegun(self, server: Server, reply: ReceivedReply) -> None:
        """
        The watch has begun, with the reply of L{Conversation.watch}. An error that this raises
        ends the connection, and is passed to C{watchLost}.
        """

    def watchEvent(self, server: Server, notice: ReceivedNotice) -> None:
        """An event. May raise C{ShareError}, as C{watchBegun}."""

    def watchLost(self, server: Server, error: Exception) -> None:
        """
        The connection is lost, or an attempt to connect has failed. An error that is not a
        C{ShareError} is a bug.
        """


class ServerWatch:
    """
    A watch of a server that reconnects. No event is missed: after a lost connection it resumes
    with the next event, or, if the server no longer has that, with a list of all devices.

    While the server does not answer, a new attempt to connect begins after each pause, also if the
    one before has not ended: TCP repeats a lost packet later and later.

    @ivar pauses: between attempts.
    @ivar seconds: for connecting to the server, and again for its reply.
    @ivar since: the number of the last event; C{None}: the next reply has all devices.
    """

    def __init__(
        self,
        server: Server,
        reactor: Any,
        listener: WatchListener,
        pauses: Backoff | None = None,
        criteria: Mapping[str, Any] | None = None,
        seconds: float = SECONDS,
        steady: float = 0.0,
    ) -> None:
        """
        @param reactor: provides C{IReactorTime} and what connections need.
        @param pauses: between attempts; C{None}: as of L{BACK_OFF}.
        @param criteria: of the devices to watch, as in the request C{watch}.
        @param seconds: see C{seconds}.
        @param steady: seconds that a connection has to last for the pauses to become short again.
        """
        self.pauses = pauses or Backoff(BACK_OFF)
        self.seconds = seconds
        self.since: int | None = None
        self._server = server
        self._reactor = reactor
        self._listener = listener
        self._criteria = dict(criteria or {})
        self._steady = steady
        self._attempts: set[Deferred[Any]] = set()
        self._timer: IDelayedCall | None = None
        self._conversation: Conversation | None = None
        self._events, self._periodBegan = 0, 0.0

    def start(self) -> None:
        """Start the watch."""
        self._try()

    def stop(self) -> None:
        """Close the connection. The listener is not called any more."""
        self._giveUp()
        conversation, self._conversation = self._conversation, None
        if conversation is not None:
            conversation.close()

    def renew(self) -> None:
        """Reconnect at once, without a call of C{watchLost}."""
        self.stop()
        self.pauses.reset()
        self._try()

    def _try(self) -> None:
        self._timer = self._reactor.callLater(self.pauses.next(), self._try)
        attempt = Deferred.fromCoroutine(converse(self._reactor, self._server, self.seconds))
        self._attempts.add(attempt)
        attempt.addBoth(self._tried, attempt)

    def _giveUp(self) -> None:
        """Cancel all attempts to connect."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        attempts, self._attempts = self._attempts, set()
        for attempt in attempts:
            attempt.cancel()

    def _tried(self, result: Conversation | Failure, attempt: Deferred[Any]) -> None:
        if attempt not in self._attempts:  # it was cancelled
            if isinstance(result, Conversation):
                result.close()
            return
        self._attempts.remove(attempt)
        if isinstance(result, Conversation):
            self._giveUp()
            self._conversation = result
            Deferred.fromCoroutine(self._watch(result))
        else:
            assert isinstance(result.value, Exception)
            self._listener.watchLost(self._server, result.value)

    async def _watch(self, conversation: Conversation) -> None:
        begin = math.inf
        try:
            reply = await self._subscribe(conversation)
            self._listener.watchBegun(self._server, reply)
            if reply.data is not None:
                self.since = reply.seq
            begin = self._reactor.seconds()
            why: Exception = await conversation.lost
        except Exception as error:
            why = error
            conversation.close()
        if self._conversation is not conversation:
            return  # the watch was stopped, or has another connection
        self._conversation = None
        if self._reactor.seconds() - begin >= self._steady:
            self.pauses.reset()
        self._timer = self._reactor.callLater(self.pauses.next(), self._try)
        self._listener.watchLost(self._server, why)

    async def _subscribe(self, conversation: Conversation) -> ReceivedReply:
        if self.since is not None:
            more = {**self._criteria, "since": self.since}
            try:
                return await conversation.watch(more, self.seconds, self._onNotice)
            except Refused:
                self.since = None
        return await conversation.watch(self._criteria, self.seconds, self._onNotice)

    def _onNotice(self, notice: ReceivedNotice) -> None:
        now = self._reactor.seconds()
        if now - self._periodBegan > PERIOD:
            self._events, self._periodBegan = 0, now
        self._events += 1
        if self._events > MOST_EVENTS:
            raise unreachable(
                self._server, f"it has sent more than {MOST_EVENTS} events in {PERIOD:g} s"
            )
        seq = notice.get("seq")
        self.since = seq if isinstance(seq, int) else self.since
        if notice["event"] != "heartbeat":
            self._listener.watchEvent(self._server, notice)
