"""
What has happened: numbered, remembered for a while, and told to those who want to hear of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from twisted.logger import Logger


class Told(Protocol):
    """
    Something that happened.
    """

    @property
    def word(self) -> str:
        """What, in a word."""

    @property
    def seq(self) -> int:
        """Its number."""

    def line(self, detail: bool) -> bytes:
        """It as it goes over the wire."""


T = TypeVar("T", bound=Told)


class EventLog(Generic[T]):
    """
    Numbers follow each other without a gap.
    """

    _log = Logger()

    def __init__(self, begin: int, keep: int) -> None:
        """
        @param begin: the number that the first one comes behind.
        @param keep: how many are remembered.
        """
        self._begin = begin
        self._items: deque[T] = deque(maxlen=keep)
        self._listeners: dict[Callable[[T], None], None] = {}

    @property
    def seq(self) -> int:
        """The number of the last one."""
        raise NotImplementedError

    def listen(self, listener: Callable[[T], None]) -> None:
        """Tell C{listener} of each from now on."""
        self._listeners[listener] = None

    def leave(self, listener: Callable[[T], None]) -> None:
        """Tell it nothing more."""
        self._listeners.pop(listener, None)

    def keep(self, most: int) -> None:
        """Remember so many from now on."""
        if self._items.maxlen != most:
            self._items = deque(self._items, maxlen=most)

    def after(self, seq: int) -> list[T] | None:
        """
        Those after the one with a number.

        @return: C{None} if they are not all remembered, or the number is none of ours.
        """
        first = self._items[0].seq if self._items else self.seq + 1
        if not max(self._begin, first - 1) <= seq <= self.seq:
            return None
        return list(islice(self._items, seq - first + 1, None))

    def _add(self, item: T) -> None:
        """Remember it, and tell it."""
        self._items.append(item)
        for listener in tuple(self._listeners):
            try:
                listener(item)
            except Exception:
                self._log.failure("a listener failed on event {seq}", seq=item.seq)


class Subscription(Generic[T]):
    """
    What one watcher is to be told: everything behind a number that it wants to know, in its order
    and once.

    @ivar goesOn: does it go on where an earlier one has ended? Else a snapshot came first.
    @ivar seq: the number of the last that the watcher knows of to begin with.
    """

    def __init__(
        self,
        history: EventLog[T],
        since: int | None,
        seq: int,
        detail: bool,
        isWanted: Callable[[T], bool],
    ) -> None:
        """
        @param since: what it wants to go on behind, if it does.
        @param detail: with all that is known of devices?
        """
        self.goesOn = since is not None
        self.seq = seq if since is None else since
        self._history = history
        self._detail = detail
        self._isWanted = isWanted
        self._tell: Callable[[Any, bytes], None] | None = None

    def begin(self, tell: Callable[[T, bytes], None]) -> Iterator[tuple[T, bytes]]:
        """
        Begin to tell.

        @param tell: called with each from now on, and with it as it goes over the wire.
        @return: likewise, what has happened since C{seq}. The watcher takes its time.
        """
        self._tell = tell
        self._history.listen(self._heard)
        missed = self._history.after(self.seq) or ()
        return ((item, item.line(self._detail)) for item in missed if self._isWanted(item))

    def end(self) -> None:
        """Tell nothing more."""
        self._tell = None
        self._history.leave(self._heard)

    def _heard(self, item: T) -> None:
        # Not what a snapshot shows already that was taken while events were being delivered.
        if self._tell is not None and item.seq > self.seq and self._isWanted(item):
            self._tell(item, item.line(self._detail))
