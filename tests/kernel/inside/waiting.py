"""
Waiting for a condition.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

# Generous: the guest may be emulated, and the machine below it busy.
DEADLINE = 180.0

_PAUSE = 0.05

T = TypeVar("T")


class DeadlineMissed(AssertionError):
    """A condition did not become true in time."""


def waitUntil(
    condition: Callable[[], T], what: str | Callable[[], str], seconds: float = DEADLINE
) -> T:
    """
    Poll a condition.

    @param condition: returns something true in the end.
    @param what: the condition in words, for the message of the error; called if it is a function.
    @return: the first true value.
    """
    end = time.monotonic() + seconds
    while True:
        late = time.monotonic() > end
        found = condition()
        if found:
            return found
        if late:
            text = what if isinstance(what, str) else what()
            raise DeadlineMissed(f"not within {seconds:.0f} s: {text}")
        time.sleep(_PAUSE)
