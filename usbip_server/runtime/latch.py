"""
Waiting with a time limit: until something has happened (L{Latch}), or until anything changes
(L{ChangeSignal}).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

T = TypeVar("T")


class Latch:
    """
    An event that fires once. Any number of coroutines may wait for it.

    @ivar hasFired: whether it has.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self.hasFired = False
        self._clock = clock
        self._waiting: list[Deferred[bool]] = []

    def fire(self) -> None:
        """Resume all that wait."""
        self.hasFired = True
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            deferred.callback(True)

    async def within(self, seconds: float) -> bool:
        """
        Wait for the latch to fire.

        @param seconds: how long at most.
        @return: whether it has fired.
        """
        if self.hasFired or seconds <= 0:
            return self.hasFired
        deferred: Deferred[bool] = Deferred()
        self._waiting.append(deferred)
        timeout = self._clock.callLater(seconds, self._timeOut, deferred)
        try:
            return await deferred
        finally:
            if timeout.active():
                timeout.cancel()
            if deferred in self._waiting:  # the wait was cancelled
                self._waiting.remove(deferred)

    def _timeOut(self, deferred: Deferred[bool]) -> None:
        self._waiting.remove(deferred)
        deferred.callback(False)


class ChangeSignal:
    """
    Wakes coroutines that wait for any change, so that each checks its own condition again.
    """

    def __init__(self, reactor: Any) -> None:
        """
        @param reactor: provides C{IReactorTime}.
        """
        self._reactor = reactor
        self._waiting: list[Latch] = []
        self._working: dict[Deferred[Any], Callable[[], bool]] = {}
        self._due: IDelayedCall | None = None

    def notify(self) -> None:
        """Something has changed: wake all that wait, in the reactor's next turn."""
        isAwaited = self._waiting or self._working
        if isAwaited and (self._due is None or not self._due.active()):
            # In the next turn, when all listeners have seen the change.
            self._due = self._reactor.callLater(0, self._wake)

    async def wait(self, seconds: float) -> bool:
        """
        Wait for the next change.

        @param seconds: how long at most.
        @return: whether there was one.
        """
        latch = Latch(self._reactor)
        self._waiting.append(latch)
        try:
            return await latch.within(seconds)
        finally:
            if latch in self._waiting:
                self._waiting.remove(latch)

    async def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """
        Wait for a condition that holds after some change.

        @param condition: called now, and after each change.
        @param seconds: how long at most.
        @return: whether it holds.
        """
        end = self._reactor.seconds() + seconds
        while not condition():
            if not await self.wait(end - self._reactor.seconds()):
                return False
        return True

    async def unless(self, work: Deferred[T], isObsolete: Callable[[], bool]) -> T:
        """
        Wait for an operation, and cancel it when a change makes it obsolete.

        @param work: the operation.
        @param isObsolete: called after each change; whether the result is of no use any more.
        @return: the result of the operation.
        @raise CancelledError: it was cancelled.
        """
        self._working[work] = isObsolete
        try:
            return await work
        finally:
            del self._working[work]

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for latch in waiting:
            latch.fire()
        for work, isObsolete in tuple(self._working.items()):
            if work in self._working and isObsolete():
                work.cancel()
