"""
What happens to devices here and at all servers, for those who want to hear of it: numbered,
dated and remembered for a while.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

import msgspec

from usbip_server.client.devices import Found
from usbip_server.client.localreplies import LocalNotice
from usbip_server.client.localrequests import LocalWatch
from usbip_server.client.servers import Server
from usbip_server.device import Holder, UsbDevice
from usbip_server.errors import SnapshotNeeded
from usbip_server.feed import Told
from usbip_server.inventory import Change, ChangeKind
from usbip_server.matching import given, matching
from usbip_server.replies import encodeDevices, holderFields, leaseFields
from usbip_server.timestamps import timestamp


class Word(enum.Enum):
    """
    What happens besides what servers tell (L{ChangeKind}).
    """

    ATTACHED = "attached"
    """A device was plugged in here."""

    NODES = "nodes"
    """Programs can open something else of it than they could."""

    LOST = "lost"
    """It is not plugged in here any more."""

    FAILED = "failed"
    """It could not be plugged in."""

    CONNECTED = "connected"
    """A server is there."""

    DISCONNECTED = "disconnected"
    """It is not."""


class Item(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """
    One thing that happened.

    @ivar word: what.
    @ivar seq: its number.
    @ivar time: when, in seconds since the epoch.
    @ivar server: where.
    @ivar device: to which device; C{None}: to the server.
    @ivar before: the device as it was, where a server tells.
    @ivar localDevices: what programs can open of it; C{None}: this is not about that.
    @ivar rule: the rule by which it is kept.
    @ivar message: for a person.
    """

    word: str
    seq: int
    time: float
    server: Server
    device: UsbDevice | None = None
    before: UsbDevice | None = None
    localDevices: tuple[str, ...] | None = None
    rule: str | None = None
    message: str | None = None

    def line(self, detail: bool) -> bytes:
        """It as it goes over the wire."""
        lease = None if self.device is None else self.device.lease
        return LocalNotice(
            event=self.word,
            seq=self.seq,
            time=timestamp(self.time),
            data=None if self.device is None else encodeDevices(self.device, detail),
            server=self.server.name,
            local_devices=self.localDevices,
            rule=self.rule,
            holder=None if (holder := self._holder()) is None else holderFields(holder),
            lease=leaseFields(lease) if lease and self.word == ChangeKind.LEASE.value else None,
            message=self.message,
        ).encode()

    def _holder(self) -> Holder | None:
        if self.word == ChangeKind.IMPORTED.value and self.device is not None:
            return self.device.holder
        if self.word == ChangeKind.RELEASED.value and self.before is not None:
            return self.before.holder
        return None


Listener = Callable[[Item], None]


class News:
    """
    All of it.

    @ivar seq: the number of the last item.
    """

    def __init__(self, now: Callable[[], float], keep: int) -> None:
        """
        @param now: the time, in seconds since the epoch.
        @param keep: how many items are remembered.
        """
        self._now = now
        # From the time in microseconds, so that no number comes twice.
        self.seq = self._first = int(now() * 1e6)
        self._history: deque[Item] = deque(maxlen=keep)
        self._listeners: dict[Listener, None] = {}

    def keep(self, most: int) -> None:
        """Remember so many items from now on."""
        self._history = deque(self._history, maxlen=most)

    def changed(self, server: Server, change: Change, localDevices: tuple[str, ...] | None) -> None:
        """A server has told what has happened to a device."""
        self._add(
            word=change.kind.value,
            server=server,
            device=change.device,
            before=change.before,
            localDevices=localDevices,
        )

    def happened(
        self,
        word: Word,
        server: Server,
        device: UsbDevice | None = None,
        localDevices: tuple[str, ...] | None = None,
        rule: str | None = None,
        message: str | None = None,
    ) -> Item:
        """Something has happened here."""
        return self._add(
            word=word.value,
            server=server,
            device=device,
            localDevices=localDevices,
            rule=rule,
            message=message,
        )

    def listen(self, listener: Listener) -> None:
        """Tell C{listener} of every item from now on."""
        self._listeners[listener] = None

    def leave(self, listener: Listener) -> None:
        """Tell it nothing more."""
        self._listeners.pop(listener, None)

    def after(self, seq: int) -> list[Item] | None:
        """
        The items after the one with a number.

        @return: C{None} if they are not all remembered, or the number is none of ours.
        """
        first = self._history[0].seq if self._history else self.seq + 1
        if not max(self._first, first - 1) <= seq <= self.seq:
            return None
        return list(islice(self._history, seq - first + 1, None))

    def heartbeat(self) -> bytes:
        """A sign of life, which is no item: its number is that of the last one."""
        now = timestamp(self._now())
        return LocalNotice(event="heartbeat", seq=self.seq, time=now).encode()

    def stream(self, request: LocalWatch, servers: tuple[Server, ...] | None) -> NewsStream:
        """
        What a watcher is told.

        @param servers: of which servers; C{None}: of all.
        @raise SnapshotNeeded: it cannot go on from where it wants to.
        """
        if request.since is not None and self.after(request.since) is None:
            raise SnapshotNeeded(request.since)
        return NewsStream(self, request, servers)

    def _add(
        self,
        word: str,
        server: Server,
        device: UsbDevice | None = None,
        before: UsbDevice | None = None,
        localDevices: tuple[str, ...] | None = None,
        rule: str | None = None,
        message: str | None = None,
    ) -> Item:
        self.seq += 1
        item = Item(
            word=word,
            seq=self.seq,
            time=self._now(),
            server=server,
            device=device,
            before=before,
            localDevices=localDevices,
            rule=rule,
            message=message,
        )
        self._history.append(item)
        for listener in tuple(self._listeners):
            listener(item)
        return item


class NewsStream:
    """
    What one watcher is told: see L{usbip_server.feed.Streaming}.
    """

    def __init__(self, news: News, request: LocalWatch, servers: tuple[Server, ...] | None) -> None:
        self.goesOn = request.since is not None
        self.seq = news.seq if request.since is None else request.since
        self._news = news
        self._request = request
        self._servers = servers
        self._all = not given(request)
        self._detail = bool(request.detail)
        self._tell: Callable[[Told, bytes], None] | None = None

    def begin(self, tell: Callable[[Told, bytes], None]) -> Iterator[tuple[Told, bytes]]:
        """
        Begin to tell.

        @param tell: called with each item from now on, and with it as it goes over the wire.
        @return: likewise, what has happened since C{seq}. The watcher takes its time.
        """
        self._tell = tell
        self._news.listen(self._heard)
        missed = self._news.after(self.seq) or ()
        return ((item, item.line(self._detail)) for item in missed if self._isWanted(item))

    def end(self) -> None:
        """Tell nothing more."""
        self._tell = None
        self._news.leave(self._heard)

    def among(self, found: tuple[Found, ...]) -> tuple[Found, ...]:
        """
        The devices that it is about.
        """
        return tuple(each for each in found if matching(self._request, (each.device,)))

    def _heard(self, item: Item) -> None:
        if self._tell is not None and self._isWanted(item):
            self._tell(item, item.line(self._detail))

    def _isWanted(self, item: Item) -> bool:
        if self._servers is not None and item.server not in self._servers:
            return False
        if self._all or item.device is None:
            return True
        about = (item.device,) if item.before is None else (item.device, item.before)
        return bool(matching(self._request, about))
