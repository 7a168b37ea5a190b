"""
What happens to devices, for those who want to hear of it: numbered, dated and remembered
for a while.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Protocol

from twisted.logger import Logger

from usbip_server.commands import WatchDevices
from usbip_server.device import Holder, Traffic, UsbDevice
from usbip_server.errors import SnapshotNeeded
from usbip_server.inventory import Change, ChangeKind, Inventory
from usbip_server.matching import given, matching
from usbip_server.replies import (
    Notice,
    Reply,
    Status,
    encodeDevices,
    holderFields,
    leaseFields,
)
from usbip_server.timestamps import timestamp


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


class Streaming(Protocol):
    """
    What one watcher is to be told.

    @ivar goesOn: does it go on where an earlier one has ended? Else a snapshot came first.
    @ivar seq: the number of the last event that the watcher knows of to begin with.
    """

    goesOn: bool
    seq: int

    def begin(self, tell: Callable[[Told, bytes], None]) -> Iterator[tuple[Told, bytes]]:
        """As L{Stream.begin}."""

    def end(self) -> None:
        """Tell nothing more."""


class Event:
    """
    One thing that happened to one device.

    @ivar change: what.
    @ivar time: when, in seconds since the epoch.
    """

    __slots__ = ("_lines", "_traffic", "change", "time")

    def __init__(self, change: Change, time: float, traffic: Traffic | None = None) -> None:
        """
        @param traffic: what the client that has come or gone has moved.
        """
        self.change = change
        self.time = time
        self._traffic = traffic
        self._lines: dict[bool, bytes] = {}

    @property
    def kind(self) -> ChangeKind:
        """What happened."""
        return self.change.kind

    @property
    def word(self) -> str:
        """The same in a word."""
        return self.kind.value

    @property
    def seq(self) -> int:
        """Its number."""
        return self.change.seq

    @property
    def device(self) -> UsbDevice:
        """To which device."""
        return self.change.device

    @property
    def holder(self) -> Holder | None:
        """Who has imported it, or has given it back."""
        if self.kind is ChangeKind.IMPORTED:
            return self.device.holder
        before = self.change.before
        return None if before is None else before.holder

    def line(self, detail: bool) -> bytes:
        """The event as it goes over the wire; the same bytes for everybody."""
        if detail not in self._lines:
            self._lines[detail] = self._encode(detail)
        return self._lines[detail]

    def _encode(self, detail: bool) -> bytes:
        session = self.kind in (ChangeKind.IMPORTED, ChangeKind.RELEASED)
        lease = self.device.lease if self.kind is ChangeKind.LEASE else None
        return Notice(
            event=self.kind.value,
            seq=self.change.seq,
            time=timestamp(self.time),
            data=encodeDevices(self.device, detail),
            holder=holderFields(self.holder or Holder(), self._traffic) if session else None,
            lease=None if lease is None else leaseFields(lease),
        ).encode()


Listener = Callable[[Event], None]

MayKnow = Callable[[UsbDevice], bool]


def anything(device: UsbDevice) -> bool:
    """For whoever may know of every device."""
    return True


class Feed:
    """
    Makes events of the changes in an inventory.
    """

    _log = Logger()

    def __init__(
        self,
        inventory: Inventory,
        now: Callable[[], float],
        keep: int,
        traffic: Callable[[UsbDevice], Traffic | None] = lambda device: None,
    ) -> None:
        """
        @param now: the time, in seconds since the epoch.
        @param keep: how many events are remembered.
        @param traffic: what the session of a device's holder has moved.
        """
        self._inventory = inventory
        self._now = now
        self._traffic = traffic
        self._history: deque[Event] = deque(maxlen=keep)
        self._listeners: dict[Listener, None] = {}
        self._begin = inventory.subscribe(self._changed).seq

    @property
    def seq(self) -> int:
        """The number of the last event."""
        return self._inventory.snapshot.seq

    def listen(self, listener: Listener) -> None:
        """Tell C{listener} of every event from now on."""
        self._listeners[listener] = None

    def leave(self, listener: Listener) -> None:
        """Tell it nothing more."""
        self._listeners.pop(listener, None)

    def keep(self, most: int) -> None:
        """Remember so many events from now on."""
        self._history = deque(self._history, maxlen=most)

    def after(self, seq: int) -> list[Event] | None:
        """
        The events after the one with a number.

        @return: C{None} if they are not all remembered, or the number is none of ours.
        """
        first = self._history[0].change.seq if self._history else self.seq + 1
        if not max(self._begin, first - 1) <= seq <= self.seq:
            return None
        return list(islice(self._history, seq - first + 1, None))

    def heartbeat(self) -> Notice:
        """A sign of life, which is no event: its number is that of the last one."""
        return Notice(event="heartbeat", seq=self.seq, time=timestamp(self._now()))

    def watch(self, request: WatchDevices, mayKnow: MayKnow = anything) -> tuple[Reply, Stream]:
        """
        What a watcher is answered, and what it is told from then on.

        @param mayKnow: may it know of a device?
        @raise SnapshotNeeded: it cannot go on from where it wants to.
        """
        if request.since is not None:
            if self.after(request.since) is None:
                raise SnapshotNeeded(request.since)
            reply = Reply(status=Status.SUCCESS, seq=request.since)
            return reply, Stream(self, request, request.since, mayKnow)
        snapshot = self._inventory.snapshot
        devices = tuple(d for d in matching(request, snapshot.devices) if mayKnow(d))
        data = encodeDevices(devices, bool(request.detail))
        reply = Reply(status=Status.SUCCESS, seq=snapshot.seq, data=data)
        return reply, Stream(self, request, snapshot.seq, mayKnow)

    def _changed(self, changes: tuple[Change, ...]) -> None:
        time = self._now()
        for change in changes:
            event = Event(change, time, self._moved(change))
            self._history.append(event)
            self._say(event)
            for listener in tuple(self._listeners):
                try:
                    listener(event)
                except Exception:
                    self._log.failure("a listener failed on event {seq}", seq=change.seq)

    def _moved(self, change: Change) -> Traffic | None:
        if change.kind is ChangeKind.IMPORTED:
            return self._traffic(change.device)
        if change.kind is ChangeKind.RELEASED and change.before is not None:
            return self._traffic(change.before)
        return None

    def _say(self, event: Event) -> None:
        lease = event.device.lease
        self._log.info(
            "{device} {kind}",
            device=str(event.device),
            kind=event.kind.value,
            seq=event.change.seq,
            holder=event.holder and event.holder.address,
            lease=lease and lease.owner,
        )


class Stream:
    """
    What one watcher is to be told: every event behind a number that is about a device it
    has asked for, in its order and once.

    @ivar goesOn: does it go on where an earlier one has ended? Else a snapshot came first.
    @ivar seq: the number of the last event that the watcher knows of to begin with.
    """

    def __init__(
        self, feed: Feed, request: WatchDevices, seq: int, mayKnow: MayKnow = anything
    ) -> None:
        self.goesOn = request.since is not None
        self.seq = seq
        self._feed = feed
        self._request = request
        self._all = not given(request)
        self._mayKnow = mayKnow
        self._detail = bool(request.detail)
        self._tell: Callable[[Event, bytes], None] | None = None

    def begin(self, tell: Callable[[Event, bytes], None]) -> Iterator[tuple[Event, bytes]]:
        """
        Begin to tell.

        @param tell: called with each event from now on, and with it as it goes over the wire.
        @return: likewise, what has happened since C{seq}. The watcher takes its time.
        """
        self._tell = tell
        self._feed.listen(self._heard)
        missed = self._feed.after(self.seq) or ()
        return ((event, event.line(self._detail)) for event in missed if self._isWanted(event))

    def end(self) -> None:
        """Tell nothing more."""
        self._tell = None
        self._feed.leave(self._heard)

    def _heard(self, event: Event) -> None:
        if self._tell is not None and self._isWanted(event):
            self._tell(event, event.line(self._detail))

    def _isWanted(self, event: Event) -> bool:
        if not self._mayKnow(event.device):
            return False
        if self._all:
            return True
        before = event.change.before
        about = (event.device,) if before is None else (event.device, before)
        return bool(matching(self._request, about))
