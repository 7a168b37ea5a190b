"""
Device events made of inventory changes: numbered, dated, and remembered for a while.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

from usbip_server.model.criteria import given
from usbip_server.model.device import Holder, Traffic, UsbDevice
from usbip_server.model.errors import SnapshotNeeded
from usbip_server.model.inventory import Change, ChangeKind
from usbip_server.model.replies import (
    Notice,
    Reply,
    Status,
    encodeDevices,
    holderFields,
    leaseFields,
)
from usbip_server.model.requests import WatchDevices
from usbip_server.model.timestamps import timestamp
from usbip_server.runtime.eventlog import EventLog, Subscription
from usbip_server.server.devices.view import DeviceView


class Event:
    """
    One change of one device, with its time and its encoded form.

    @ivar time: in seconds since the epoch.
    """

    __slots__ = ("_lines", "_traffic", "change", "time")

    def __init__(self, change: Change, time: float, traffic: Traffic | None = None) -> None:
        """
        @param traffic: what the client that has imported or released the device has transferred.
        """
        self.change = change
        self.time = time
        self._traffic = traffic
        self._lines: dict[bool, bytes] = {}

    @property
    def kind(self) -> ChangeKind:
        """What happened, as an enum."""
        return self.change.kind

    @property
    def word(self) -> str:
        """What happened, as the wire has it: C{"bound"}."""
        return self.kind.value

    @property
    def seq(self) -> int:
        """The number of the event."""
        return self.change.seq

    @property
    def device(self) -> UsbDevice:
        """The device after the change."""
        return self.change.device

    @property
    def about(self) -> tuple[UsbDevice, ...]:
        """The device after the change and, unless it is new, before it."""
        before = self.change.before
        return (self.device,) if before is None else (self.device, before)

    @property
    def session(self) -> dict[str, Any] | None:
        """JSON of the client that has imported or released the device, and its traffic."""
        if self.kind not in (ChangeKind.IMPORTED, ChangeKind.RELEASED):
            return None
        return holderFields(self.holder or Holder(), self._traffic)

    @property
    def holder(self) -> Holder | None:
        """The client that has imported or released the device."""
        if self.kind is ChangeKind.IMPORTED:
            return self.device.holder
        before = self.change.before
        return None if before is None else before.holder

    def line(self, detail: bool) -> bytes:
        """The event as it is sent; encoded once for all clients."""
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
"""Log line of an import or a release. C{None} stands for what is not known."""

MayWatch = Callable[[UsbDevice], bool]


class DeviceEvents(EventLog[Event]):
    """
    The events of the devices that clients see.

    @ivar view: those devices.
    """

    _log = Logger()

    def __init__(self, view: DeviceView, now: Callable[[], float]) -> None:
        """
        @param now: the time, in seconds since the epoch.
        """
        self.view = view
        self._now = now
        super().__init__(self.seq, view.settings.limits.history)

    @property
    def seq(self) -> int:
        """The number of the last event."""
        return self.view.inventory.snapshot.seq

    def after(self, seq: int) -> list[Event] | None:
        self.keep(self.view.settings.limits.history)
        return super().after(seq)

    def heartbeat(self) -> Notice:
        """The line that shows that the daemon is alive, with the number of the last event."""
        return Notice(event="heartbeat", seq=self.seq, time=timestamp(self._now()))

    def watch(self, request: WatchDevices, mayWatch: MayWatch) -> tuple[Reply, Subscription[Event]]:
        """
        Return the reply to a watch command, and a subscription to the events that follow it.

        @param mayWatch: may the client see this device?
        @raise SnapshotNeeded: the events since C{request.since} are not remembered.
        """
        if request.since is not None:
            if self.after(request.since) is None:
                raise SnapshotNeeded(request.since)
            reply = Reply(status=Status.SUCCESS, seq=request.since)
            return reply, self._subscribe(request, request.since, mayWatch)
        snapshot = self.view.inventory.snapshot
        devices = tuple(d for d in request.selector.among(snapshot.devices) if mayWatch(d))
        data = encodeDevices(devices, bool(request.detail))
        reply = Reply(status=Status.SUCCESS, seq=snapshot.seq, data=data)
        return reply, self._subscribe(request, snapshot.seq, mayWatch)

    def update(self, changes: tuple[Change, ...]) -> None:
        """Make events of changes in the inventory."""
        self.keep(self.view.settings.limits.history)
        time = self._now()
        for change in changes:
            event = Event(change, time, self._traffic(change))
            self._logEvent(event)
            self._add(event)

    def _subscribe(
        self, request: WatchDevices, seq: int, mayWatch: MayWatch
    ) -> Subscription[Event]:
        isAboutAll = not given(request)

        def isWanted(event: Event) -> bool:
            if not mayWatch(event.device):
                return False
            return isAboutAll or any(map(request.selector.matches, event.about))

        return Subscription(self, request.since, seq, bool(request.detail), isWanted)

    def _traffic(self, change: Change) -> Traffic | None:
        if change.kind is ChangeKind.IMPORTED:
            return self.view.traffic(change.device)
        if change.kind is ChangeKind.RELEASED and change.before is not None:
            return self.view.traffic(change.before)
        return None

    def _logEvent(self, event: Event) -> None:
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
