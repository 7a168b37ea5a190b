"""
The event log of the client service: what servers report, and what happens to devices on this
machine.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import msgspec

from usbip_server.client.servers import Server
from usbip_server.client.service.config import LiveSettings
from usbip_server.client.service.messages import LocalWatch, encodeNotice
from usbip_server.model.criteria import given
from usbip_server.model.device import Holder, UsbDevice
from usbip_server.model.errors import SnapshotNeeded
from usbip_server.model.inventory import ChangeKind
from usbip_server.model.replies import encodeDevices, holderFields, leaseFields
from usbip_server.runtime.eventlog import EventLog, Subscription


class ServiceEventKind(enum.Enum):
    """
    The kinds of events besides those that servers report (L{ChangeKind}).
    """

    ATTACHED = "attached"
    """A device was attached to this machine."""

    NODES = "nodes"
    """The nodes of an attached device have changed."""

    LOST = "lost"
    """A device is not attached any more."""

    FAILED = "failed"
    """A device could not be attached."""

    CONNECTED = "connected"
    """The service has connected to a server."""

    DISCONNECTED = "disconnected"
    """A server is not connected any more, or could not be."""


class ServiceEvent(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """
    One event.

    @ivar word: its kind.
    @ivar seq: its number.
    @ivar time: seconds since the epoch.
    @ivar device: C{None}: it is about the server.
    @ivar before: the device before a change that its server reports.
    @ivar localDevices: the nodes of the device; C{None}: the event has none.
    @ivar rule: the name of the rule that keeps the device attached.
    @ivar message: a reason, for people.
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
        """Encode it for a client."""
        lease = None if self.device is None else self.device.lease
        holder = self._holder()
        return encodeNotice(
            self.word,
            self.time,
            self.seq,
            data=None if self.device is None else encodeDevices(self.device, detail),
            server=self.server.name,
            local_devices=self.localDevices,
            rule=self.rule,
            holder=None if holder is None else holderFields(holder),
            lease=leaseFields(lease) if lease and self.word == ChangeKind.LEASE.value else None,
            message=self.message,
        )

    def _holder(self) -> Holder | None:
        if self.word == ChangeKind.IMPORTED.value and self.device is not None:
            return self.device.holder
        if self.word == ChangeKind.RELEASED.value and self.before is not None:
            return self.before.holder
        return None


class ServiceEvents(EventLog[ServiceEvent]):
    """
    Numbers, dates and keeps the events.

    @ivar now: the time, in seconds since the epoch.
    """

    def __init__(self, now: Callable[[], float], settings: LiveSettings) -> None:
        self.now = now
        self._settings = settings
        # From the time in microseconds: no number of an earlier process is used again.
        self._seq = int(now() * 1e6)
        super().__init__(self._seq, settings.config.limits.history)

    @property
    def seq(self) -> int:
        return self._seq

    def record(
        self,
        kind: ServiceEventKind | ChangeKind,
        server: Server,
        device: UsbDevice | None = None,
        nodes: tuple[str, ...] | None = None,
        rule: str | None = None,
        message: str | None = None,
        before: UsbDevice | None = None,
    ) -> ServiceEvent:
        """
        Add an event. Parameters are those of L{ServiceEvent}.
        """
        self._seq += 1
        event = ServiceEvent(
            word=kind.value,
            seq=self._seq,
            time=self.now(),
            server=server,
            device=device,
            before=before,
            localDevices=nodes,
            rule=rule,
            message=message,
        )
        self._add(event)
        return event

    def heartbeat(self, isNumbered: bool = True) -> bytes:
        """A line that is no event; with the number of the last one if it C{isNumbered}."""
        return encodeNotice("heartbeat", self.now(), self.seq if isNumbered else None)

    def subscribe(
        self, request: LocalWatch, servers: tuple[Server, ...] | None
    ) -> Subscription[ServiceEvent]:
        """
        The events that a client watches.

        @param servers: of which servers; C{None}: of all.
        @raise SnapshotNeeded: events after C{since} are not kept any more.
        """
        if request.since is not None and self.after(request.since) is None:
            raise SnapshotNeeded(request.since)
        hasCriteria = bool(given(request))

        def isSelected(event: ServiceEvent) -> bool:
            if servers is not None and event.server not in servers:
                return False
            if not hasCriteria or event.device is None:
                return True
            states = (event.device,) if event.before is None else (event.device, event.before)
            return any(map(request.selector.matches, states))

        return Subscription(self, request.since, self.seq, bool(request.detail), isSelected)
