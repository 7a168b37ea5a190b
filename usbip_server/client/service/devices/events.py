"""
What happens to devices here and at all servers, for those who want to hear of it: numbered,
dated and remembered for a while.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import msgspec

from usbip_server.client.servers import Server
from usbip_server.client.service.messages import LocalNotice, LocalWatch
from usbip_server.model.device import Holder, UsbDevice
from usbip_server.model.errors import SnapshotNeeded
from usbip_server.model.inventory import Change, ChangeKind
from usbip_server.model.replies import encodeDevices, holderFields, leaseFields
from usbip_server.model.selector import given, matching
from usbip_server.model.timestamps import timestamp
from usbip_server.runtime.eventlog import EventLog, Subscription


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


class ServiceEvents(EventLog[Item]):
    """
    All of it.

    @ivar now: the time, in seconds since the epoch.
    """

    def __init__(self, now: Callable[[], float], keep: int) -> None:
        """
        @param now: the time, in seconds since the epoch.
        @param keep: how many items are remembered.
        """
        self.now = now
        # From the time in microseconds, so that no number comes twice.
        self._seq = int(now() * 1e6)
        super().__init__(self._seq, keep)

    @property
    def seq(self) -> int:
        return self._seq

    def changed(self, server: Server, change: Change, localDevices: tuple[str, ...] | None) -> None:
        """A server has told what has happened to a device."""
        self._tell(
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
        return self._tell(
            word=word.value,
            server=server,
            device=device,
            localDevices=localDevices,
            rule=rule,
            message=message,
        )

    def heartbeat(self) -> bytes:
        """A sign of life, which is no item: its number is that of the last one."""
        now = timestamp(self.now())
        return LocalNotice(event="heartbeat", seq=self.seq, time=now).encode()

    def stream(self, request: LocalWatch, servers: tuple[Server, ...] | None) -> Subscription[Item]:
        """
        What a watcher is told.

        @param servers: of which servers; C{None}: of all.
        @raise SnapshotNeeded: it cannot go on from where it wants to.
        """
        if request.since is not None and self.after(request.since) is None:
            raise SnapshotNeeded(request.since)
        isAboutAll = not given(request)

        def isWanted(item: Item) -> bool:
            if servers is not None and item.server not in servers:
                return False
            if isAboutAll or item.device is None:
                return True
            about = (item.device,) if item.before is None else (item.device, item.before)
            return bool(matching(request, about))

        return Subscription(self, request.since, self.seq, bool(request.detail), isWanted)

    def _tell(
        self,
        word: str,
        server: Server,
        device: UsbDevice | None = None,
        before: UsbDevice | None = None,
        localDevices: tuple[str, ...] | None = None,
        rule: str | None = None,
        message: str | None = None,
    ) -> Item:
        self._seq += 1
        item = Item(
            word=word,
            seq=self._seq,
            time=self.now(),
            server=server,
            device=device,
            before=before,
            localDevices=localDevices,
            rule=rule,
            message=message,
        )
        self._add(item)
        return item
