"""
What happens to devices, for those who want to hear of it: numbered, dated and remembered
for a while.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

from usbip_server.model.device import Holder, Traffic, UsbDevice
from usbip_server.model.errors import SnapshotNeeded
from usbip_server.model.inventory import Change, ChangeKind, Inventory
from usbip_server.model.replies import (
    Notice,
    Reply,
    Status,
    encodeDevices,
    holderFields,
    leaseFields,
)
from usbip_server.model.requests import WatchDevices
from usbip_server.model.selector import given, matching
from usbip_server.model.timestamps import timestamp
from usbip_server.runtime.eventlog import EventLog, Subscription


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
    def about(self) -> tuple[UsbDevice, ...]:
        """The device as it is, and as it was."""
        before = self.change.before
        return (self.device,) if before is None else (self.device, before)

    @property
    def session(self) -> dict[str, Any] | None:
        """The contract's JSON for the client that has come or gone, and what it has moved."""
        if self.kind not in (ChangeKind.IMPORTED, ChangeKind.RELEASED):
            return None
        return holderFields(self.holder or Holder(), self._traffic)

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
        lease = self.device.lease if self.kind is ChangeKind.LEASE else None
        return Notice(
            event=self.kind.value,
            seq=self.change.seq,
            time=timestamp(self.time),
            data=encodeDevices(self.device, detail),
            holder=self.session,
            lease=None if lease is None else leaseFields(lease),
        ).encode()


SESSION = "{device} {kind}: {holder}, since {since}, {bytes_in} bytes in, {bytes_out} out"
"""What the log says of a client that has come or gone. C{None} is what is not known."""

MayKnow = Callable[[UsbDevice], bool]


class DeviceEvents(EventLog[Event]):
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
        super().__init__(inventory.subscribe(self._changed).seq, keep)

    @property
    def seq(self) -> int:
        """The number of the last event."""
        return self._inventory.snapshot.seq

    def heartbeat(self) -> Notice:
        """A sign of life, which is no event: its number is that of the last one."""
        return Notice(event="heartbeat", seq=self.seq, time=timestamp(self._now()))

    def watch(self, request: WatchDevices, mayKnow: MayKnow) -> tuple[Reply, Subscription[Event]]:
        """
        What a watcher is answered, and what it is told from then on.

        @param mayKnow: may it know of a device?
        @raise SnapshotNeeded: it cannot go on from where it wants to.
        """
        if request.since is not None:
            if self.after(request.since) is None:
                raise SnapshotNeeded(request.since)
            reply = Reply(status=Status.SUCCESS, seq=request.since)
            return reply, self._stream(request, request.since, mayKnow)
        snapshot = self._inventory.snapshot
        devices = tuple(d for d in matching(request, snapshot.devices) if mayKnow(d))
        data = encodeDevices(devices, bool(request.detail))
        reply = Reply(status=Status.SUCCESS, seq=snapshot.seq, data=data)
        return reply, self._stream(request, snapshot.seq, mayKnow)

    def _stream(self, request: WatchDevices, seq: int, mayKnow: MayKnow) -> Subscription[Event]:
        isAboutAll = not given(request)

        def isWanted(event: Event) -> bool:
            if not mayKnow(event.device):
                return False
            return isAboutAll or bool(matching(request, event.about))

        return Subscription(self, request.since, seq, bool(request.detail), isWanted)

    def _changed(self, changes: tuple[Change, ...]) -> None:
        time = self._now()
        for change in changes:
            event = Event(change, time, self._moved(change))
            self._say(event)
            self._add(event)

    def _moved(self, change: Change) -> Traffic | None:
        if change.kind is ChangeKind.IMPORTED:
            return self._traffic(change.device)
        if change.kind is ChangeKind.RELEASED and change.before is not None:
            return self._traffic(change.before)
        return None

    def _say(self, event: Event) -> None:
        lease, session = event.device.lease, event.session
        self._log.info(
            "{device} {kind}" if session is None else SESSION,
            device=str(event.device),
            kind=event.kind.value,
            seq=event.change.seq,
            lease=lease and lease.owner,
            holder=event.holder and event.holder.address,
            **{key: value for key, value in (session or {}).items() if key != "address"},
        )
