"""
Counts what is repeated, so that clients cannot flood the log.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

WINDOW = 60.0
"""Seconds for which items of one kind are counted together."""

IN_FULL = 10
"""Items of one kind in L{WINDOW} that are written; the others are counted."""

KINDS = 200
"""Kinds of items that are told apart in L{WINDOW}; the others are counted as one."""

T = TypeVar("T")


class _Window(Generic[T]):
    """
    The items of one kind within L{WINDOW}.
    """

    def __init__(self, end: float) -> None:
        self.end = end
        self.count = 0
        self.last: T | None = None
        self.timer: IDelayedCall | None = None


class Repeats(Generic[T]):
    """
    Writes the first items of each kind, and the last one together with the number of those that
    were not written.
    """

    def __init__(
        self, clock: IReactorTime, write: Callable[[T, int | None], None], others: Hashable = None
    ) -> None:
        """
        @param write: called with an item, and C{None} or how many more of its kind were not
            written.
        @param others: the kind of items beyond L{KINDS}.
        """
        self._clock = clock
        self._write = write
        self._others = others
        self._windows: dict[Hashable, _Window[T]] = {}

    def add(self, kind: Hashable, item: T) -> None:
        """Write an item, or count it."""
        window = self._window(kind)
        window.count += 1
        if window.count <= IN_FULL:
            self._write(item, None)
        else:
            window.last = item

    def stop(self) -> None:
        """Write the numbers of the items that were not written."""
        for kind in tuple(self._windows):
            self._close(kind)

    def _window(self, kind: Hashable) -> _Window[T]:
        now = self._clock.seconds()
        if kind not in self._windows and len(self._windows) >= KINDS:
            for known in [it for it, window in self._windows.items() if window.end <= now]:
                self._close(known)
            if len(self._windows) >= KINDS:
                kind = self._others
        window = self._windows.get(kind)
        if window is None or window.end <= now:
            self._close(kind)
            window = self._windows[kind] = _Window(now + WINDOW)
        elif window.count == IN_FULL:
            window.timer = self._clock.callLater(window.end - now, self._close, kind)
        return window

    def _close(self, kind: Hashable) -> None:
        window = self._windows.pop(kind, None)
        if window is None:
            return
        if window.timer is not None and window.timer.active():
            window.timer.cancel()
        if window.last is not None:
            self._write(window.last, window.count - IN_FULL)


class Warnings(Repeats[tuple[str, dict[str, Any]]]):
    """
    Warnings about clients, of which each connection can cause one. The kind of a warning is its
    format.
    """

    def __init__(self, log: Logger, clock: IReactorTime) -> None:
        super().__init__(clock, self._warn)
        self._log = log

    def warn(self, format: str, **fields: Any) -> None:
        """Log a warning, or count it."""
        self.add(format, (format, fields))

    def _warn(self, item: tuple[str, dict[str, Any]], more: int | None) -> None:
        format, fields = item
        if more is None:
            self._log.warn(format, **fields)
        else:
            self._log.warn(format + "; {more} more such warnings", more=more, **fields)
