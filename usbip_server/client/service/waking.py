"""
Those who wait for a device look again whenever anything has happened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from usbip_server.client.service.news import News
from usbip_server.operation import Event

T = TypeVar("T")


class Waking:
    """
    Wakes them.
    """

    def __init__(self, reactor: Any, news: News) -> None:
        """
        @param reactor: provides C{IReactorTime}.
        """
        self._reactor = reactor
        self._sleeping: list[Event] = []
        self._working: dict[Deferred[Any], Callable[[], bool]] = {}
        self._due: IDelayedCall | None = None
        news.listen(lambda item: self.look())

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
        event = Event(self._reactor)
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
