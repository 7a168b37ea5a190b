"""
Time that does not change when the system clock is set: a machine without a battery-backed clock
gets the right time from the network, hours or years later than what it has begun with.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

CHECK_SECONDS = 10.0
"""How often the system clock is compared with the reactor's."""

CLOCK_SET = 5.0
"""Seconds of difference that count as setting the clock; adjusting its speed takes longer."""


def useMonotonicTime(reactor: Any) -> None:
    """
    Have a reactor measure time by C{CLOCK_MONOTONIC}. Twisted's reactors use the system clock, so
    that timers stand still when it is set back, and all expire when it is set forward.

    @raise AssertionError: the reactor has timers already, which would expire at other times.
    """
    if reactor.seconds is time.monotonic:
        return
    assert not reactor.getDelayedCalls()
    reactor.seconds = time.monotonic


class SystemClockWatch:
    """
    Detects that the system clock has been set.
    """

    def __init__(
        self, clock: IReactorTime, now: Callable[[], float], onSet: Callable[[], bool]
    ) -> None:
        """
        @param clock: measures time that is not affected.
        @param now: the system clock: the time, in seconds since the epoch.
        @param onSet: called when the clock has been set; if it returns C{False} it is called
            again at the next check.
        """
        self._clock = clock
        self._now = now
        self._onSet = onSet
        self._difference = 0.0
        self._timer: IDelayedCall | None = None

    def start(self) -> None:
        """Check every L{CHECK_SECONDS} from now on."""
        if self._timer is None:
            self._difference = self._measured()
            self._schedule()

    def stop(self) -> None:
        """Check once more, and end."""
        if self._timer is not None:
            self._check()
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        self._timer = self._clock.callLater(CHECK_SECONDS, self._repeat)

    def _repeat(self) -> None:
        self._schedule()
        self._check()

    def _check(self) -> None:
        measured = self._measured()
        if abs(measured - self._difference) >= CLOCK_SET and self._onSet():
            self._difference = measured

    def _measured(self) -> float:
        return self._now() - self._clock.seconds()
