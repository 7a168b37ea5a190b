"""
A watch of a server's events that reconnects and resumes after the connection is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from usbip_server.client.conversation import Conversation, converse
from usbip_server.client.servers import Server
from usbip_server.model.replies import ReceivedNotice, ReceivedReply, Refused
from usbip_server.runtime.backoff import Backoff, BackoffOptions

BACK_OFF = BackoffOptions(first=1.0, longest=15.0)
"""Backoff between two attempts to connect."""

SECONDS = 5.0
"""For connecting to the server, and again for its reply."""


class Following:
    """
    Tells as it goes. Nothing that happens is left out: after an absence it goes on where it
    was, or, where the server does not know any more, with all its devices anew.

    While a server does not answer there is a new try after each pause, whether the one before
    has come to its end or not: a packet that was lost is sent again late, and the more so the
    longer nothing has come through.

    @ivar pauses: between tries.
    @ivar seconds: for the server to be connected to, and again to answer.
    @ivar since: the last event there was; C{None}: next time all devices come anew.
    """

    def __init__(
        self,
        server: Server,
        reactor: Any,
        begun: Callable[[Server, ReceivedReply], None],
        told: Callable[[Server, ReceivedNotice], None],
        lost: Callable[[Server, Exception], None],
        pauses: Backoff | None = None,
        criteria: Mapping[str, Any] | None = None,
        seconds: float = SECONDS,
        steady: float = 0.0,
    ) -> None:
        """
        @param reactor: provides C{IReactorTime} and what connections need.
        @param begun: called when it can be followed, with what is said by
            L{Conversation.watch}. What it raises is why the server is lost again.
        @param told: called with each event. May raise C{ShareError}, likewise.
        @param lost: called when the server cannot be followed any more, or again not. Any other
            reason than a C{ShareError} is a bug.
        @param pauses: C{None}: as of L{BACK_OFF}.
        @param criteria: the devices that it is about, as in C{watch}.
        @param seconds: see C{seconds}.
        @param steady: seconds that it has to go well for the pauses to begin anew.
        """
        self.pauses = pauses or Backoff(BACK_OFF)
        self.seconds = seconds
        self.since: int | None = None
        self._server = server
        self._reactor = reactor
        self._begun = begun
        self._told = told
        self._lost = lost
        self._criteria = dict(criteria or {})
        self._steady = steady
        self._attempts: set[Deferred[Any]] = set()
        self._timer: IDelayedCall | None = None
        self._conversation: Conversation | None = None

    def start(self) -> None:
        """Begin."""
        self._try()

    def stop(self) -> None:
        """Tell nothing more."""
        self._giveUp()
        conversation, self._conversation = self._conversation, None
        if conversation is not None:
            conversation.close()

    def renew(self) -> None:
        """Connect to the server anew, at once; that alone does not count as lost."""
        self.stop()
        self.pauses.reset()
        self._try()

    def _try(self) -> None:
        self._timer = self._reactor.callLater(self.pauses.next(), self._try)
        attempt = Deferred.fromCoroutine(converse(self._reactor, self._server, self.seconds))
        self._attempts.add(attempt)
        attempt.addBoth(self._tried, attempt)

    def _giveUp(self) -> None:
        """No more tries."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        attempts, self._attempts = self._attempts, set()
        for attempt in attempts:
            attempt.cancel()

    def _tried(self, result: Conversation | Failure, attempt: Deferred[Any]) -> None:
        if attempt not in self._attempts:  # it was given up
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
            self._lost(self._server, result.value)

    async def _watch(self, conversation: Conversation) -> None:
        begin = math.inf
        try:
            answer = await self._asked(conversation)
            self._begun(self._server, answer)
            if answer.data is not None:
                self.since = answer.seq
            begin = self._reactor.seconds()
            why: Exception = await conversation.lost
        except Exception as error:
            why = error
            conversation.close()
        if self._conversation is not conversation:
            return  # it is not followed any more, or by another one
        self._conversation = None
        if self._reactor.seconds() - begin >= self._steady:
            self.pauses.reset()
        self._timer = self._reactor.callLater(self.pauses.next(), self._try)
        self._lost(self._server, why)

    async def _asked(self, conversation: Conversation) -> ReceivedReply:
        if self.since is not None:
            more = {**self._criteria, "since": self.since}
            try:
                return await conversation.watch(more, self.seconds, self._heard)
            except Refused:
                self.since = None
        return await conversation.watch(self._criteria, self.seconds, self._heard)

    def _heard(self, notice: ReceivedNotice) -> None:
        seq = notice.get("seq")
        self.since = seq if isinstance(seq, int) else self.since
        if notice["event"] != "heartbeat":
            self._told(self._server, notice)
