"""
Something that takes its time and that several may wait for.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime


class Event:
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
