"""
Exponential backoff: the pauses between attempts, each twice as long as the one before.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Annotated

import msgspec

Random = Callable[[], float]
"""Returns a number from 0 to 1."""

Pause = Annotated[float, msgspec.Meta(gt=0, le=3600)]


class BackoffOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    The lengths of pauses, in seconds.

    @ivar first: the pause before the second attempt.
    @ivar longest: the limit for the later ones.
    """

    first: Pause = 0.25
    longest: Pause = 1.5

    def after(self, failures: int) -> float:
        """
        The pause after a number of failed attempts, in seconds, without jitter; 0 after none.
        """
        if failures < 1:
            return 0.0
        # A float has no power of two beyond 1023.
        return min(self.longest, self.first * 2.0 ** min(failures - 1, 64))


class Backoff:
    """
    The pauses of one series of attempts, with jitter: each is multiplied by a random number from
    0.5 to 1, so that clients that have lost a server do not all return at the same moment.
    """

    def __init__(self, options: BackoffOptions, chance: Random = random.random) -> None:
        """
        @param chance: the source of the jitter.
        """
        self._options = options
        self._chance = chance
        self._failures = 0

    def update(self, options: BackoffOptions) -> None:
        """Use other lengths from the next pause on."""
        self._options = options

    def next(self) -> float:
        """
        The pause after another failed attempt, in seconds.
        """
        self._failures += 1
        return self._options.after(self._failures) * (1 + self._chance()) / 2

    def reset(self) -> None:
        """An attempt has succeeded: the next pause is the first one again."""
        self._failures = 0
