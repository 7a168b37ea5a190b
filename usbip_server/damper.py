"""
Devices that are plugged in again and again: a loose plug, a board that resets itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

OFTEN = 6
"""Plugs within L{WINDOW} that are too many; to flash a board takes two or three."""

WINDOW = 10.0
"""Seconds."""

FIRST_PAUSE = 2.0
"""Seconds; each further pause is twice as long."""

LONGEST_PAUSE = 60.0
"""Seconds."""


class _Port:
    """
    What is remembered of one bus id.
    """

    def __init__(self) -> None:
        self.plugs: deque[float] = deque(maxlen=OFTEN)
        self.pause = FIRST_PAUSE
        self.count = 0
        self.timer: IDelayedCall | None = None


class Damper:
    """
    Says which bus ids are to be left alone for a while, as too much happens there.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, onRest: Callable[[str], None]) -> None:
        """
        @param onRest: called with the bus id when a pause is over.
        """
        self._clock = clock
        self._onRest = onRest
        self._ports: dict[str, _Port] = {}

    def plugged(self, busId: str) -> None:
        """Something was plugged in."""
        port = self._ports.setdefault(busId, _Port())
        now = self._clock.seconds()
        port.plugs.append(now)
        port.count += 1
        if port.timer is None and len(port.plugs) == OFTEN and now - port.plugs[0] < WINDOW:
            self._log.warn(
                "{busId} is flapping: plugged in {count} times within {window:g} s; left alone for "
                "{pause:g} s",
                busId=busId,
                count=OFTEN,
                window=WINDOW,
                pause=port.pause,
            )
            port.count = OFTEN
            port.timer = self._clock.callLater(port.pause, self._paused, busId)
        self._forget(now)

    def trouble(self, busId: str) -> str | None:
        """
        What is the matter with a bus id that is to be left alone; C{None} for any other.
        """
        port = self._ports.get(busId)
        if port is None or port.timer is None:
            return None
        return (
            f"flapping: plugged in {OFTEN} times within {WINDOW:g} s, so it is left alone for "
            f"{port.pause:g} s. Is it a loose plug, a weak power supply, or a board that resets?"
        )

    def stop(self) -> None:
        """End all pauses, and say nothing more."""
        for port in self._ports.values():
            if port.timer is not None and port.timer.active():
                port.timer.cancel()
        self._ports.clear()

    def _paused(self, busId: str) -> None:
        port = self._ports[busId]
        port.timer = None
        if port.count > OFTEN:  # it went on meanwhile
            port.pause = min(2 * port.pause, LONGEST_PAUSE)
        port.plugs.clear()
        self._onRest(busId)

    def _forget(self, now: float) -> None:
        """
        Forget those where nothing has happened for long.
        """
        calm = now - LONGEST_PAUSE - WINDOW
        for busId, port in tuple(self._ports.items()):
            if port.timer is None and (not port.plugs or port.plugs[-1] < calm):
                del self._ports[busId]
