"""
Something that takes its time and that several may wait for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime


class Latch:
    """
    Happens once; any number of coroutines may wait for it, each as long as it likes.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self.happened = False
        self._clock = clock
        self._waiting: list[Deferred[bool]] = []

    def happen(self) -> None:
        """Let everybody go on."""
        self.happened = True
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            deferred.callback(True)

    async def within(self, seconds: float) -> bool:
        """
        Wait for it.

        @return: has it happened, when C{seconds} have passed at the latest?
        """
        if self.happened or seconds <= 0:
            return self.happened
        deferred: Deferred[bool] = Deferred()
        self._waiting.append(deferred)
        giveUp = self._clock.callLater(seconds, self._giveUp, deferred)
        try:
            return await deferred
        finally:
            if giveUp.active():
                giveUp.cancel()
            if deferred in self._waiting:  # it was cancelled
                self._waiting.remove(deferred)

    def _giveUp(self, deferred: Deferred[bool]) -> None:
        self._waiting.remove(deferred)
        deferred.callback(False)


T = TypeVar("T")


class ChangeSignal:
    """
    Wakes them.
    """

    def __init__(self, reactor: Any) -> None:
        """
        @param reactor: provides C{IReactorTime}.
        """
        self._reactor = reactor
        self._sleeping: list[Latch] = []
        self._working: dict[Deferred[Any], Callable[[], bool]] = {}
        self._due: IDelayedCall | None = None

    def look(self) -> None:
        """Something has happened: let them look again, in a moment."""
        isAwaited = self._sleeping or self._working
        if isAwaited and (self._due is None or not self._due.active()):
            # Others hear of it first.
            self._due = self._reactor.callLater(0, self._wake)

    async def something(self, seconds: float) -> bool:
        """
        Wait until anything happens.

        @return: has it, within that time?
        """
        event = Latch(self._reactor)
        self._sleeping.append(event)
        try:
            return await event.within(seconds)
        finally:
            if event in self._sleeping:
                self._sleeping.remove(event)

    async def unless(self, work: Deferred[T], isOver: Callable[[], bool]) -> T:
        """
        Wait for what is under way, as long as it makes sense.

        @param isOver: does it make none any more?
        @raise CancelledError: so it is.
        """
        self._working[work] = isOver
        try:
            return await work
        finally:
            del self._working[work]

    def _wake(self) -> None:
        sleeping, self._sleeping = self._sleeping, []
        for event in sleeping:
            event.happen()
        for work, isOver in tuple(self._working.items()):
            if work in self._working and isOver():
                work.cancel()
