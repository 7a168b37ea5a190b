"""
The devices that are present now, and the changes between two states of them.

A backend keeps its inventory current with L{Inventory.replace}, which computes the changes, numbers
them and passes them to the subscribers.
"""

from __future__ import annotations

import bisect
import enum
from collections import deque
from collections.abc import Callable, Collection, Iterable

import msgspec
from twisted.logger import Logger

from usbip_server.model.device import DeviceState, UsbDevice, busOrder
from usbip_server.model.errors import BackendUnavailable


class ChangeKind(enum.Enum):
    """
    The kinds of changes of a device.
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
    One change of one device.

    @ivar seq: the number of the change; numbers are consecutive.
    @ivar device: the device after the change; if it was removed, the device before the change.
    @ivar before: the device before the change; C{None} if it was added.
    """

    kind: ChangeKind
    seq: int
    device: UsbDevice
    before: UsbDevice | None = None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """
    All devices at one moment.

    @ivar seq: the number of the last change before it.
    @ivar devices: in bus order.
    """

    seq: int
    devices: tuple[UsbDevice, ...]


_Step = tuple[ChangeKind, UsbDevice, UsbDevice | None]
"""The kind of a change, the device after it, and the device before it."""

Listener = Callable[[tuple[Change, ...]], None]
"""Called with the changes of one L{Inventory.replace}, in order."""


class Inventory:
    """
    The devices that are present now, and the subscribers to changes.

    @ivar trouble: why there can be no devices at present, as a message for clients; C{None}:
        there can be.
    @ivar excluded: devices that are plugged in and cannot be shared, by their bus ids, as far as
        the backend knows them; C{trouble} is the reason, as in C{"is a hub"}.
    """

    _log = Logger()

    def __init__(self, seq: int = 0) -> None:
        """
        @param seq: the number before that of the first change.
        """
        self.trouble: str | BackendUnavailable | None = None
        self.excluded: dict[str, UsbDevice] = {}
        self._devices: dict[str, UsbDevice] = {}
        self._order: list[str] = []  # the bus ids
        self._seq = seq
        self._snapshot: Snapshot | None = None  # made when it is needed
        self._listeners: dict[Listener, int] = {}  # each with the last number it knows of
        self._undelivered: deque[tuple[Change, ...]] = deque()
        self._isDelivering = False

    @property
    def snapshot(self) -> Snapshot:
        """The devices now. The same object is returned until the next change."""
        if self._snapshot is None:
            devices = tuple(self._devices[busId] for busId in self._order)
            self._snapshot = Snapshot(seq=self._seq, devices=devices)
        return self._snapshot

    def get(self, busId: str) -> UsbDevice | None:
        """The device at a bus id; C{None} if there is none."""
        return self._devices.get(busId)

    def same(self, device: UsbDevice) -> UsbDevice | None:
        """
        The present state of a device; C{None} if it was unplugged, even if another device is at
        its bus id now.
        """
        now = self._devices.get(device.busId)
        return now if now is not None and now.plugId == device.plugId else None

    def subscribe(self, listener: Listener) -> Snapshot:
        """
        Call C{listener} for every change after the snapshot that is returned. No change is
        missing between the two, and none is in both.
        """
        self._listeners[listener] = self._seq
        return self.snapshot

    def unsubscribe(self, listener: Listener) -> None:
        """Stop calling C{listener}."""
        self._listeners.pop(listener, None)

    def replace(self, found: Iterable[UsbDevice], among: Collection[str] | None = None) -> None:
        """
        Update the devices, and call the listeners with the changes: first those of devices that
        are gone, so that a device that was moved is at no time in two places, then the others, each
        in bus order.

        @param found: the devices that were found.
        @param among: the bus ids that were read: a device at one of them that is not in C{found} is
            removed; devices at other bus ids are kept. C{None}: all bus ids were read.
        """
        now = {device.busId: device for device in found}
        wasRead = self._devices.keys() | now.keys() if among is None else among
        changed = [busId for busId in wasRead if self._devices.get(busId) != now.get(busId)]
        kinds = [
            change
            for busId in sorted(changed, key=lambda it: (it in now, busOrder(it)))
            for change in _difference(self._devices.get(busId), now.get(busId))
        ]
        if not kinds:
            return
        for busId in changed:
            if busId not in now:
                del self._devices[busId]
                self._order.remove(busId)
                continue
            if busId not in self._devices:
                bisect.insort(self._order, busId, key=busOrder)
            self._devices[busId] = now[busId]
        first = self._seq + 1
        self._seq += len(kinds)
        self._snapshot = None
        self._undelivered.append(
            tuple(
                Change(kind=kind, seq=seq, device=device, before=before)
                for seq, (kind, device, before) in enumerate(kinds, first)
            )
        )
        if not self._isDelivering:
            self._deliver()

    def _deliver(self) -> None:
        """
        Call the listeners. A listener may call C{replace}: its changes are delivered when all
        listeners have received the changes before them, so that numbers only rise.
        """
        self._isDelivering = True
        while self._undelivered:
            changes = self._undelivered.popleft()
            for listener, seq in tuple(self._listeners.items()):
                if changes[0].seq <= seq or listener not in self._listeners:
                    continue
                try:
                    listener(changes)
                except Exception:
                    self._log.failure("a listener failed on change {seq}", seq=changes[0].seq)
        self._isDelivering = False


def _difference(before: UsbDevice | None, after: UsbDevice | None) -> list[_Step]:
    """
    The changes between two states of one bus id.
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
    The changes of state between two states of one device, each with the state after it.
    """
    if before.state is after.state:
        isNext = before.state is DeviceState.IN_USE and _sessionOf(before) != _sessionOf(after)
        return [*_PATHS[_IN_USE, _BOUND], *_PATHS[_BOUND, _IN_USE]] if isNext else []
    return _PATHS.get((before.state, after.state), [])


def _sessionOf(device: UsbDevice) -> float | None:
    """
    A value that distinguishes the session of one client from the next.
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
