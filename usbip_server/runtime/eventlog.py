"""
A bounded log of numbered events, with subscriptions that can be resumed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from twisted.logger import Logger


class Told(Protocol):
    """
    An event in the log.
    """

    @property
    def word(self) -> str:
        """The kind of event."""

    @property
    def seq(self) -> int:
        """The number of the event."""

    def line(self, detail: bool) -> bytes:
        """The event as one line of JSON."""


T = TypeVar("T", bound=Told)


class EventLog(Generic[T]):
    """
    The last events. Their numbers are consecutive.
    """

    _log = Logger()

    def __init__(self, begin: int, keep: int) -> None:
        """
        @param begin: the number before that of the first event.
        @param keep: how many events are stored.
        """
        self._begin = begin
        self._items: deque[T] = deque(maxlen=keep)
        self._listeners: dict[Callable[[T], None], None] = {}

    @property
    def seq(self) -> int:
        """The number of the last event."""
        raise NotImplementedError

    @property
    def listeners(self) -> int:
        """The number of listeners."""
        return len(self._listeners)

    def listen(self, listener: Callable[[T], None]) -> None:
        """Call C{listener} for each event from now on."""
        self._listeners[listener] = None

    def leave(self, listener: Callable[[T], None]) -> None:
        """Stop calling C{listener}."""
        self._listeners.pop(listener, None)

    def keep(self, most: int) -> None:
        """Change the number of events that are stored."""
        if self._items.maxlen != most:
            self._items = deque(self._items, maxlen=most)

    def after(self, seq: int) -> list[T] | None:
        """
        The events after the one with a number.

        @return: C{None} if some of them are not stored any more, or the number is not one of this
            log.
        """
        first = self._items[0].seq if self._items else self.seq + 1
        if not max(self._begin, first - 1) <= seq <= self.seq:
            return None
        return list(islice(self._items, seq - first + 1, None))

    def _add(self, item: T) -> None:
        """Store an event, and call the listeners."""
        self._items.append(item)
        for listener in tuple(self._listeners):
            try:
                listener(item)
            except Exception:
                self._log.failure("a listener failed on event {seq}", seq=item.seq)


class Subscription(Generic[T]):
    """
    The events for one watcher: all that it has selected, after a number, in order and once each.

    @ivar goesOn: whether it resumes an earlier subscription; else it begins with a snapshot.
    @ivar seq: the number of the last event before the first one.
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
        @param since: the number after which to resume; C{None}: begin with a snapshot.
        @param seq: the number of the last event before the snapshot.
        @param detail: whether events have all fields of devices.
        @param isWanted: whether the watcher has selected an event.
        """
        self.goesOn = since is not None
        self.seq = seq if since is None else since
        self._history = history
        self._detail = detail
        self._isWanted = isWanted
        self._tell: Callable[[Any, bytes], None] | None = None

    def begin(self, tell: Callable[[T, bytes], None]) -> Iterator[tuple[T, bytes]]:
        """
        Begin to deliver events.

        @param tell: called with each event from now on, and its line.
        @return: the events since C{seq} until now, each with its line. They are encoded as they are
            taken.
        """
        self._tell = tell
        self._history.listen(self._heard)
        missed = self._history.after(self.seq) or ()
        return ((item, item.line(self._detail)) for item in missed if self._isWanted(item))

    def end(self) -> None:
        """Deliver nothing more."""
        self._tell = None
        self._history.leave(self._heard)

    def _heard(self, item: T) -> None:
        # Not what a snapshot shows already that was taken while events were being delivered.
        if self._tell is not None and item.seq > self.seq and self._isWanted(item):
            self._tell(item, item.line(self._detail))
