"""
A reactor in which the time of something is over when the test says so.
"""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.interfaces import IDelayedCall

OVER = 1000.0
"""Seconds that something may take whose time is to be over."""


class TimedReactor:
    """
    The real reactor, but for delays of L{OVER} seconds, or of what is left of them: those are
    over when the test says so. So a test of a deadline can wait until what is to be late has
    begun, however long that takes on a busy machine, and need not wait for the deadline.
    """

    def __init__(self) -> None:
        self._delayed: list[IDelayedCall] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)

    def callLater(self, seconds: float, function: Any, *arguments: Any) -> IDelayedCall:
        """Call something later."""
        call: IDelayedCall = reactor.callLater(seconds, function, *arguments)
        if OVER / 2 < seconds <= OVER:
            self._delayed.append(call)
        return call

    def timeIsOver(self) -> None:
        """End the delay of this kind that has begun first."""
        next(each for each in self._delayed if each.active()).reset(0)
