"""
The desired state: the devices that clients have attached, and their leases. It outlasts the
daemon in the state file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import msgspec
from msgspec import UNSET
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from usbip_server.model.device import Lease, UsbDevice
from usbip_server.model.errors import Settle, ShareError
from usbip_server.model.identity import Identity, Twins
from usbip_server.net.caller import Caller
from usbip_server.runtime.monotonic import SystemClockWatch
from usbip_server.runtime.statefile import StateFile
from usbip_server.server.config import LiveSettings
from usbip_server.server.devices.desireddevice import DesiredDevice, State

RECONNECT = 30.0
"""Seconds for the owner of a lease that lasts as long as its connection to reconnect after a
restart of the daemon."""

REMEMBERED = 256
"""Desired devices that are remembered. Beyond that, those that are not plugged in and not leased
are removed, the least recently attached first."""


class _LeaseEnd:
    """
    What ends a lease that is in force: a timer, or the end of its owner's connection.

    @ivar at: when, by the reactor's clock; C{None}: with the connection.
    """

    def __init__(self, at: float | None) -> None:
        self.at = at
        self.timer: IDelayedCall | None = None
        self.untie: Callable[[], None] = lambda: None


class DesiredState:
    """
    The devices that are to be bound at clients' request. Ends leases when their time is over.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        now: Callable[[], float],
        settings: LiveSettings,
        present: Callable[[str], UsbDevice | None],
        onChange: Callable[[str], None],
        onLeaseEnd: Callable[[DesiredDevice], None],
        stateFile: StateFile[State] | None = None,
    ) -> None:
        """
        @param now: the time, in seconds since the epoch.
        @param present: returns the device at a bus id.
        @param onChange: called with the bus id of a device whose desired state has changed.
        @param onLeaseEnd: called with a desired device, as it was, when its lease has expired.
        @param stateFile: where it is saved; C{None}: nowhere.
        """
        self._clock = clock
        self._now = now
        self._settings = settings
        self._present = present
        self._stateFile = stateFile
        self._notify = onChange
        self._onLeaseEnd = onLeaseEnd
        self._clockWatch = SystemClockWatch(clock, now, self._clockSet)
        self._isRunning = False
        self._unsettled = 0
        self._devices: dict[tuple[Identity, str], DesiredDevice] = {}
        self._leases: dict[Lease, _LeaseEnd] = {}
        self._twins = Twins()

    def load(self) -> None:
        """
        Add what an earlier daemon has saved. No lease ends before C{start}, and none lasts longer
        than its duration from now on, whatever the system clock is.
        """
        now = self._now()
        for desired in () if self._stateFile is None else self._stateFile.open().devices:
            lease = desired.lease
            if lease is not None:
                longest = RECONNECT if lease.ttl is None else lease.ttl
                until = now + longest if lease.until is None else lease.until
                lease = msgspec.structs.replace(lease, until=min(until, now + longest))
            self._put(msgspec.structs.replace(desired, lease=lease))
        for desired in self:
            lease = desired.lease
            if lease is not None and lease.until is not None:
                left = max(0.0, lease.until - now)
                self._leases[lease] = _LeaseEnd(self._clock.seconds() + left)

    def start(self) -> None:
        """Begin to end leases when their time is over."""
        self._isRunning = True
        for desired in tuple(self):
            if desired.lease is not None:
                self._run(desired.lease)

    def stop(self) -> None:
        """End no lease any more: leases outlast the daemon, and the connections closed now."""
        self._clockWatch.stop()
        self._isRunning = False
        for end in self._leases.values():
            if end.timer is not None and end.timer.active():
                end.timer.cancel()

    def save(self) -> None:
        """Write the state file, in a thread."""
        if self._stateFile is not None:
            self._stateFile.save(self._state())

    async def saved(self, until: float) -> None:
        """
        Wait until the last change is on the disk, or cannot be saved.

        @param until: for how long, by the reactor's clock.
        """
        if self._stateFile is not None:
            await self._stateFile.written(until - self._clock.seconds())

    async def close(self, seconds: float) -> None:
        """Close the state file; see L{StateFile.close}."""
        if self._stateFile is not None:
            await self._stateFile.close(seconds)

    def _onChange(self, busId: str) -> None:
        self._notify(busId)
        self.save()

    def _state(self) -> State:
        """The content for the state file."""
        remember = self._settings.remember
        return State(
            devices=tuple(
                desired if remember else msgspec.structs.replace(desired, kept=False)
                for desired in self
                if desired.lease is not None or remember
            )
        )

    def __iter__(self) -> Iterator[DesiredDevice]:
        return iter(self._devices.values())

    def of(self, device: UsbDevice) -> DesiredDevice | None:
        """The desired state of a device; C{None} if no client wants it bound."""
        identity = Identity.of(device)
        exactly = self._devices.get((identity, device.place))
        if exactly is not None and exactly.isFor(device):
            return exactly
        return next((it for it in self if it.isAt(device) and it.isFor(device)), None)

    def added(self, devices: Iterable[UsbDevice]) -> None:
        """
        Devices were plugged in. If a device has a serial number of its own, and a desired device
        with the same identity is not where it was, then this is that device.
        """
        devices = tuple(device for device in devices if "serial" not in device.unknown)
        for device in devices:
            if self._twins.added(device):
                self._foundTwins(device)
        for device in devices:
            desired = self.of(device) or self._elsewhere(device)
            if desired is not None and (seen := desired.asSeen(device)) != desired:
                self._replace(desired, seen)
                self._onChange(device.busId)

    def _elsewhere(self, device: UsbDevice) -> DesiredDevice | None:
        """The desired device that a device is which was plugged in at another port."""
        identity = Identity.of(device)
        if not identity.isUnique or identity in self._twins:
            return None
        for desired in self:
            isMovable = not desired.atPort and not self._isPresent(desired)
            if isMovable and desired.isFor(device):
                return desired
        return None

    def _foundTwins(self, device: UsbDevice) -> None:
        """Two devices have the same identity: from now on each is recognized at its port only."""
        if device.serial is None:
            return
        self._log.info(
            "several devices have the ids and the serial number of {device} ({serial}): they are "
            "recognized at their ports only",
            device=str(device),
            serial=device.serial,
        )
        for desired in tuple(self):
            if desired.isFor(device):
                self._replace(desired, msgspec.structs.replace(desired, atPort=True))
                self._onChange(desired.busId)

    def gone(self, device: UsbDevice) -> None:
        """A device was unplugged, perhaps to be plugged in elsewhere: called before C{added}."""
        self._twins.removed(device)

    def removed(self, device: UsbDevice) -> None:
        """A device was unplugged: without C{remember} only a lease outlasts that."""
        desired = self.of(device)
        if desired is not None and desired.lease is None and not self._settings.remember:
            self.withdraw(device)

    def away(self) -> list[UsbDevice]:
        """The desired devices that are not plugged in, as far as they are remembered."""
        return [desired.device() for desired in self if not self._isPresent(desired)]

    def grant(self, owner: str, ttl: float | None, caller: Caller) -> Lease:
        """
        Make a lease that is in force from now on.

        @param ttl: seconds; C{None}: as long as the connection of C{caller}.
        """
        until = None if ttl is None else self._now() + ttl
        who = caller.principal
        lease = Lease(owner=owner, address=who.address, proof=who.proof, ttl=ttl, until=until)
        end = self._leases[lease] = _LeaseEnd(None if ttl is None else self._clock.seconds() + ttl)
        if ttl is None:
            expire = partial(self._expire, lease)
            end.untie = partial(caller.forget, expire)
            caller.whenGone(expire)
        self._run(lease)
        return lease

    def left(self, lease: Lease) -> float | None:
        """The seconds until a lease ends; C{None}: it ends with its connection."""
        end = self._leases.get(lease)
        if end is None:
            return 0.0
        return None if end.at is None else max(0.0, end.at - self._clock.seconds())

    def request(self, device: UsbDevice, lease: Lease | None) -> Settle:
        """
        Add a device, with a lease or until it is detached. The lease replaces another one.

        @return: to be called with the outcome of the bind: an error restores what was before.
        """
        before = self.of(device)
        kept = lease is None or (before is not None and before.kept)
        desired = DesiredDevice(
            vendorId=device.vendorId,
            productId=device.productId,
            serial=device.serial,
            busId=device.busId,
            kept=kept,
            lease=lease,
            atPort=Identity.of(device) in self._twins or UNSET,
        ).asSeen(device)
        return self._change(device, before, desired)

    def withdraw(self, device: UsbDevice) -> None:
        """Remove a device, and end its lease."""
        self._change(device, self.of(device), None)(None)

    def renew(self, device: UsbDevice, lease: Lease) -> None:
        """Replace the lease of a device."""
        before = self.of(device)
        assert before is not None
        self._change(device, before, msgspec.structs.replace(before, lease=lease))(None)

    def _change(
        self, device: UsbDevice, before: DesiredDevice | None, after: DesiredDevice | None
    ) -> Settle:
        self._replace(before, after)
        self._onChange(device.busId)
        self._unsettled += 1

        def settle(error: ShareError | None) -> None:
            self._unsettled -= 1
            if error is None:
                self._release(before)
                return
            current = next((other for other in self if _isSame(other, after)), None)
            if current is not None:
                self._replace(current, None if before is None else self._unexpired(before))
                self._onChange(current.busId)
            self._release(after)

        return settle

    def _replace(self, old: DesiredDevice | None, new: DesiredDevice | None) -> None:
        if old is not None:
            self._devices.pop(_key(old), None)
        if new is not None:
            self._put(new)

    def _put(self, desired: DesiredDevice) -> None:
        self._devices[_key(desired)] = desired
        if len(self._devices) > REMEMBERED:
            self._forgetOldest()

    def _forgetOldest(self) -> None:
        away = (it for it in self if it.lease is None and not self._isPresent(it))
        oldest = next(away, None)
        if oldest is not None:
            del self._devices[_key(oldest)]
            self._log.warn(
                "{busId} ({description}) is forgotten: more than {count} devices are attached, and "
                "it is not plugged in",
                busId=oldest.busId,
                description=oldest.description,
                count=REMEMBERED,
            )

    def _isPresent(self, desired: DesiredDevice) -> bool:
        there = self._present(desired.busId)
        return there is not None and desired.isAt(there) and desired.isFor(there)

    def _unexpired(self, desired: DesiredDevice) -> DesiredDevice | None:
        """What is left of a desired device if its lease has expired by now."""
        if desired.lease is None or desired.lease in self._leases:
            return desired
        return msgspec.structs.replace(desired, lease=None) if desired.kept else None

    def _run(self, lease: Lease) -> None:
        left = self.left(lease)
        if self._isRunning and left is not None:
            self._leases[lease].timer = self._clock.callLater(left, self._expire, lease)
            self._clockWatch.start()

    def _drop(self, lease: Lease) -> _LeaseEnd | None:
        end = self._leases.pop(lease, None)
        if not self._leases:
            self._clockWatch.stop()
        return end

    def _clockSet(self) -> bool:
        """
        The system clock has been set: leases last as long as before, and end at other times by it.

        @return: C{False}: not now, as leases may still be restored.
        """
        if self._unsettled:
            return False
        for desired in tuple(self):
            before = desired.lease
            if before is None or (left := self.left(before)) is None:
                continue
            end = self._leases.pop(before)
            if end.timer is not None and end.timer.active():
                end.timer.cancel()
            lease = msgspec.structs.replace(before, until=self._now() + left)
            self._leases[lease] = end
            self._put(msgspec.structs.replace(desired, lease=lease))
            self._run(lease)
            self._onChange(desired.busId)
        return True

    def _release(self, desired: DesiredDevice | None) -> None:
        """Cancel the end of a lease that no desired device has any more."""
        if desired is None or desired.lease is None:
            return
        if any(desired.lease is other.lease for other in self):
            return
        end = self._drop(desired.lease)
        if end is not None:
            end.untie()
            if end.timer is not None and end.timer.active():
                end.timer.cancel()

    def _expire(self, lease: Lease) -> None:
        """The time of a lease is over, or its connection has ended."""
        if not self._isRunning or lease not in self._leases:
            return
        desired = next((desired for desired in self if desired.lease is lease), None)
        self._drop(lease)
        if desired is None:
            return  # it is being withdrawn
        self._log.info(
            "the lease of {owner} on {busId} has ended", owner=lease.owner, busId=desired.busId
        )
        self._replace(desired, self._unexpired(desired))
        self._onLeaseEnd(desired)  # before the next one in the queue can attach the device
        self._onChange(desired.busId)


def _isSame(desired: DesiredDevice, other: DesiredDevice | None) -> bool:
    """Is one the other, perhaps at another port by now?"""
    if other is None or desired is other:
        return desired is other
    return desired.lease is not None and desired.lease is other.lease


def _key(desired: DesiredDevice) -> tuple[Identity, str]:
    return desired.identity, desired.place
