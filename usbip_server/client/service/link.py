"""
A server, as long as it is watched: what it has, as it says itself, whenever that changes. One that
is gone is tried again until it is back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from usbip_server.client.core.asking import Answer, Conversation, Notice, converse
from usbip_server.client.core.backoff import Pauses
from usbip_server.client.core.devices import Found, deviceIn, foundIn
from usbip_server.client.core.servers import Server
from usbip_server.device import UsbDevice
from usbip_server.errors import ShareError, Unreachable
from usbip_server.inventory import Change, Inventory
from usbip_server.replies import Status

SECONDS = 5.0
"""For a server to be connected to, and again to answer."""


class Link:
    """
    One server.

    While it does not answer there is a new try after each pause, whether the one before has
    come to its end or not: a packet that was lost is sent again late, and the more so the longer
    nothing has come through.

    @ivar inventory: its devices; as they were, while it is not there.
    @ivar trouble: why it is not there; C{None}: it is.
    @ivar isSettled: is it there, or has it been tried in vain?
    @ivar hasAnswered: was it ever there?
    @ivar times: how often it was connected to.
    @ivar seconds: for it to be connected to, and again to answer.
    """

    _log = Logger()

    def __init__(
        self,
        server: Server,
        reactor: Any,
        pauses: Pauses,
        changed: Callable[[Link, tuple[Change, ...]], None],
        turned: Callable[[Link, bool], None],
    ) -> None:
        """
        @param reactor: provides C{IReactorTime} and what connections need.
        @param changed: called with what has happened to its devices.
        @param turned: called when it is there, and when it is not any more; and is that news?
        """
        self.server = server
        self.pauses = pauses
        self.inventory = Inventory()
        self.inventory.subscribe(lambda changes: changed(self, changes))
        self.trouble: str | None = "it has not answered yet"
        self.isSettled = False
        self.hasAnswered = False
        self.times = 0
        self.seconds = SECONDS
        self._reactor = reactor
        self._turned = turned
        self._attempts: set[Deferred[Any]] = set()
        self._timer: IDelayedCall | None = None
        self._conversation: Conversation | None = None
        self._seq: int | None = None
        self._why: str | None = None
        self._isStopped = False
        self._isDoubted = False

    @property
    def isUp(self) -> bool:
        """Is it there?"""
        return self.trouble is None

    def found(self) -> tuple[Found, ...]:
        """Its devices; none while it is not there."""
        if not self.isUp:
            return ()
        return tuple(
            Found(server=self.server, device=device, raw={})
            for device in self.inventory.snapshot.devices
        )

    def start(self) -> None:
        """Begin."""
        self._try()

    def stop(self) -> None:
        """Watch it no more."""
        self._isStopped = True
        self._giveUp()
        if self._conversation is not None:
            self._conversation.close()

    def doubt(self) -> None:
        """
        Something that came over it has ended: is it still there? Connect to it anew, and find
        out.
        """
        if self.isUp and self._conversation is not None:
            self._isDoubted = True
            self._conversation.close()

    def _try(self) -> None:
        self._timer = self._reactor.callLater(self.pauses.next(), self._try)
        attempt = Deferred.fromCoroutine(converse(self._reactor, self.server, self.seconds))
        self._attempts.add(attempt)
        attempt.addBoth(self._tried, attempt)

    def _giveUp(self) -> None:
        """No more tries."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        for attempt in tuple(self._attempts):
            attempt.cancel()

    def _tried(self, result: Conversation | Failure, attempt: Deferred[Any]) -> None:
        self._attempts.discard(attempt)
        if isinstance(result, Conversation):
            if self._isStopped or self._conversation is not None:
                result.close()
                return
            self._conversation = result
            self._giveUp()
            Deferred.fromCoroutine(self._watch(result)).addErrback(self._bug)
        elif not (self._isStopped or self._conversation is not None):
            if not result.check(Unreachable, CancelledError):
                self._bug(result)
            self._lost(str(result.value))

    async def _watch(self, conversation: Conversation) -> None:
        try:
            self._begins(await self._asked(conversation))
            conversation.listen()
            await conversation.lost
            why = f"{self.server}: the connection is lost"
        except ShareError as error:
            why = str(error)
        finally:
            conversation.close()
            self._conversation = None
        if not self._isStopped:
            pause = 0 if self._isDoubted else self.pauses.next()
            self._timer = self._reactor.callLater(pause, self._try)
            if self._isDoubted:
                self.trouble = why
            else:
                self._lost(self._why or why)

    async def _asked(self, conversation: Conversation) -> Answer:
        """
        Go on where we were, or, where the server does not know any more, begin anew.
        """
        self._why = None
        request: dict[str, Any] = {"command": "watch", "detail": True}
        if self._seq is not None:
            answer = await conversation.ask(
                {**request, "since": self._seq}, self.seconds, self._told
            )
            if answer.status is Status.SUCCESS:
                return answer
            self._seq = None
        return await conversation.ask(request, self.seconds, self._told)

    def _begins(self, answer: Answer) -> None:
        """
        It is there.

        @raise Unreachable: but it does not let us, or makes no sense.
        """
        if answer.status is not Status.SUCCESS:
            raise Unreachable(f"{self.server.called(self.server.address)}: {answer.message}")
        found = None
        if self._seq is None:
            found = [self._known(each.device) for each in foundIn(self.server, answer.data)]
            self._seq = answer.seq
        self.trouble = None
        self.isSettled = self.hasAnswered = True
        self.times += 1
        self.pauses.reset()
        if found is not None:
            self.inventory.replace(found)
        isNews = not self._isDoubted
        self._isDoubted = False
        if isNews:
            self._log.info("{server} is there", server=str(self.server))
        self._turned(self, isNews)

    def _told(self, notice: Notice) -> None:
        """
        Called in the middle of what Twisted does: nothing may come out of here.
        """
        try:
            seq = notice.get("seq")
            self._seq = seq if isinstance(seq, int) else self._seq
            data = notice.get("data")
            if data is None or not isinstance(seq, int):
                return
            device = deviceIn(self.server, data)
            isGone = notice.get("event") == "removed"
            found = () if isGone else (self._known(device),)
            self.inventory.replace(found, {device.busId})
        except ShareError as error:
            self._why = str(error)
            if self._conversation is not None:
                self._conversation.close()

    def _known(self, device: UsbDevice) -> UsbDevice:
        """
        A device, with the lease that is known already, if it is the same: two leases are never
        equal.
        """
        before = self.inventory.get(device.busId)
        if before is not None and before.lease is not None and device.lease is not None:
            pair = map(msgspec.structs.astuple, (before.lease, device.lease))
            if next(pair) == next(pair):
                return msgspec.structs.replace(device, lease=before.lease)
        return device

    def _lost(self, why: str) -> None:
        wasThere = self.isUp or self._isDoubted
        self._isDoubted = False
        if why != self.trouble:
            self._log.warn("{server} is not there: {why}", server=str(self.server), why=why)
        isNews = wasThere or not self.isSettled
        self.trouble = why
        self.isSettled = True
        if isNews:
            self._turned(self, True)

    def _bug(self, failure: Failure) -> None:
        self._log.failure("a bug in watching {server}", failure, server=str(self.server))
