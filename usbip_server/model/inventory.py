"""
The devices known now.

A backend keeps an inventory current; requests are answered from it, and whoever wants
to know of changes subscribes. There is one way to change it, L{Inventory.replace}, so
there is one place where changes are found and numbered.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable

import msgspec
from twisted.logger import Logger

from usbip_server.model.device import DeviceState, UsbDevice, busOrder


class ChangeKind(enum.Enum):
    """
    What can happen to a device.
    """

    ADDED = "added"
    REMOVED = "removed"
    BOUND = "bound"
    UNBOUND = "unbound"
    IMPORTED = "imported"
    RELEASED = "released"
    CHANGED = "changed"
    LEASE = "lease"


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """
    One thing that happened to one device.

    @ivar seq: counts the changes, without a gap.
    @ivar device: the device after it; before it, where it was removed.
    @ivar before: the device before it, unless it was added.
    """

    kind: ChangeKind
    seq: int
    device: UsbDevice
    before: UsbDevice | None = None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """
    All devices at one moment.

    @ivar seq: the number of the last change in it: the next one is C{seq + 1}.
    @ivar devices: in bus order.
    """

    seq: int
    devices: tuple[UsbDevice, ...]


_Step = tuple[ChangeKind, UsbDevice, UsbDevice | None]
"""What happened, the device after it and before it."""

Listener = Callable[[tuple[Change, ...]], None]
"""Takes the changes that were seen together, in their order."""


class Inventory:
    """
    The devices known now, and those who want to hear of changes.

    @ivar trouble: why there can be no devices at present, for a client; C{None} when
        all is well.
    """

    _log = Logger()

    def __init__(self, seq: int = 0) -> None:
        """
        @param seq: what the numbers of the changes begin behind.
        """
        self.trouble: str | None = None
        self._devices: dict[str, UsbDevice] = {}
        self._snapshot = Snapshot(seq=seq, devices=())
        self._listeners: list[Listener] = []

    @property
    def snapshot(self) -> Snapshot:
        """The devices now. The same object until something changes."""
        return self._snapshot

    def get(self, busId: str) -> UsbDevice | None:
        """The device at a bus id, if there is one."""
        return self._devices.get(busId)

    def same(self, device: UsbDevice) -> UsbDevice | None:
        """
        What is known now of a device: C{None} if it is gone, also if another one has been
        plugged in at its place.
        """
        now = self._devices.get(device.busId)
        return now if now is not None and now.plugId == device.plugId else None

    def subscribe(self, listener: Listener) -> Snapshot:
        """
        Tell C{listener} of every change after the snapshot returned: none is lost
        between the two and none told twice.
        """
        self._listeners.append(listener)
        return self._snapshot

    def unsubscribe(self, listener: Listener) -> None:
        """Tell C{listener} nothing more."""
        self._listeners.remove(listener)

    def replace(self, found: Iterable[UsbDevice], among: Collection[str] | None = None) -> None:
        """
        Take note of what is there.

        @param found: the devices there are.
        @param among: the bus ids that were looked at: what is not found there is gone,
            and nothing is said of any other. C{None}: all were looked at.
        """
        now = {device.busId: device for device in found}
        looked = self._devices.keys() | now.keys() if among is None else among
        changed = [busId for busId in looked if self._devices.get(busId) != now.get(busId)]
        kinds = [
            change
            for busId in sorted(changed, key=busOrder)
            for change in _difference(self._devices.get(busId), now.get(busId))
        ]
        if not kinds:
            return
        for busId in changed:
            if busId in now:
                self._devices[busId] = now[busId]
            else:
                self._devices.pop(busId, None)
        first = self._snapshot.seq + 1
        self._snapshot = Snapshot(
            seq=self._snapshot.seq + len(kinds),
            devices=tuple(self._devices[busId] for busId in sorted(self._devices, key=busOrder)),
        )
        self._tell(
            tuple(
                Change(kind=kind, seq=seq, device=device, before=before)
                for seq, (kind, device, before) in enumerate(kinds, first)
            )
        )

    def _tell(self, changes: tuple[Change, ...]) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(changes)
            except Exception:
                self._log.failure("a listener failed on change {seq}", seq=changes[0].seq)


def _difference(before: UsbDevice | None, after: UsbDevice | None) -> list[_Step]:
    """
    What happened between two looks at one bus id.
    """
    if before == after:
        return []
    if before is None or after is None or before.deviceNumber != after.deviceNumber:
        return _gone(before) + ([] if after is None else [(ChangeKind.ADDED, after, None)])
    steps: list[_Step] = []
    at = before
    for kind, state in _path(before, after):
        holder = after.holder if state is DeviceState.IN_USE else None
        last = msgspec.structs.replace(after, state=state, holder=holder)
        steps.append((kind, last, at))
        at = last
    if not steps and msgspec.structs.replace(before, lease=after.lease) != after:
        steps.append((ChangeKind.CHANGED, after, before))
    if before.lease is not after.lease:
        steps.append((ChangeKind.LEASE, after, at))
    return steps


def _gone(before: UsbDevice | None) -> list[_Step]:
    if before is None:
        return []
    if before.state is not DeviceState.IN_USE:
        return [(ChangeKind.REMOVED, before, before)]
    last = msgspec.structs.replace(before, state=DeviceState.BOUND, holder=None)
    return [(ChangeKind.RELEASED, last, before), (ChangeKind.REMOVED, last, last)]


def _path(before: UsbDevice, after: UsbDevice) -> list[tuple[ChangeKind, DeviceState]]:
    """
    What has a word of its own on the way from one to the other, and where that leads.
    """
    if before.state is after.state:
        isNext = before.state is DeviceState.IN_USE and _sessionOf(before) != _sessionOf(after)
        return [*_PATHS[_IN_USE, _BOUND], *_PATHS[_BOUND, _IN_USE]] if isNext else []
    return _PATHS.get((before.state, after.state), [])


def _sessionOf(device: UsbDevice) -> float | None:
    """
    What tells one client's session from the next.
    """
    return None if device.holder is None else device.holder.since


_FREE, _BOUND, _IN_USE, _ERROR = (
    DeviceState.FREE,
    DeviceState.BOUND,
    DeviceState.IN_USE,
    DeviceState.ERROR,
)

_PATHS: dict[tuple[DeviceState, DeviceState], list[tuple[ChangeKind, DeviceState]]] = {
    (_FREE, _BOUND): [(ChangeKind.BOUND, _BOUND)],
    (_FREE, _IN_USE): [(ChangeKind.BOUND, _BOUND), (ChangeKind.IMPORTED, _IN_USE)],
    (_BOUND, _IN_USE): [(ChangeKind.IMPORTED, _IN_USE)],
    (_IN_USE, _BOUND): [(ChangeKind.RELEASED, _BOUND)],
    (_IN_USE, _FREE): [(ChangeKind.RELEASED, _BOUND), (ChangeKind.UNBOUND, _FREE)],
    (_BOUND, _FREE): [(ChangeKind.UNBOUND, _FREE)],
    (_ERROR, _BOUND): [(ChangeKind.BOUND, _BOUND)],
    (_ERROR, _IN_USE): [(ChangeKind.IMPORTED, _IN_USE)],
}
