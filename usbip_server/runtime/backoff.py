"""
How long to wait until something that went wrong is tried again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Annotated

import msgspec

Chance = Callable[[], float]
"""A number from 0 to 1."""

Pause = Annotated[float, msgspec.Meta(gt=0, le=3600)]


class BackOff(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    @ivar first: seconds until the first new try.
    @ivar longest: each further one is twice as long, up to this.
    """

    first: Pause = 0.25
    longest: Pause = 1.5


class Pauses:
    """
    One after the other. Each is a part of what it could be, between a half and the whole, by
    chance: not all of those who have lost something come back in the same moment.
    """

    def __init__(self, backOff: BackOff, chance: Chance = random.random) -> None:
        self._chance = chance
        self._backOff = backOff
        self._next = backOff.first

    def become(self, backOff: BackOff) -> None:
        """Let other ones be true from now on."""
        self._backOff = backOff
        self._next = min(self._next, backOff.longest)

    def next(self) -> float:
        """
        The next, in seconds.
        """
        pause = self._next
        self._next = min(2 * pause, self._backOff.longest)
        return pause * (1 + self._chance()) / 2

    def reset(self) -> None:
        """It has worked."""
        self._next = self._backOff.first
