"""
What clients have asked for: the devices they want bound, and whose they are for a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from usbip_server.device import Lease, UsbDevice
from usbip_server.state import State, Wish

RECONNECT = 30.0
"""Seconds for the owner of a lease that lasts as long as its connection to come back after
the daemon was started anew."""

Key = tuple[str, str, str | None]


class Wishes:
    """
    Remembers what was asked for, and ends leases when their time is over.

    @ivar remember: keep what was attached without a lease beyond its being unplugged.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        now: Callable[[], float],
        present: Callable[[str], UsbDevice | None],
        remember: bool = True,
    ) -> None:
        """
        @param now: the time, in seconds since the epoch.
        @param present: which device is at a bus id now.
        """
        self.remember = remember
        self._clock = clock
        self._now = now
        self._present = present
        self._wishes: dict[Key, dict[str, Wish]] = {}
        self._timers: dict[tuple[Key, str], IDelayedCall] = {}
        self._onChange: Callable[[str], None] = lambda busId: None
        self._onEnd: Callable[[Wish], None] = lambda wish: None

    def follow(self, onChange: Callable[[str], None], onEnd: Callable[[Wish], None]) -> None:
        """
        @param onChange: called with the bus id of a device that something was asked about.
        @param onEnd: called with a wish as it was when its lease ended of itself.
        """
        self._onChange = onChange
        self._onEnd = onEnd

    def load(self, state: State) -> None:
        """Take up what was remembered by an earlier daemon."""
        for wish in state.wishes:
            lease = wish.lease
            if lease is not None and lease.until is None:
                lease = msgspec.structs.replace(lease, until=self._now() + RECONNECT)
                wish = msgspec.structs.replace(wish, lease=lease)
            self._put(wish)

    def state(self) -> State:
        """What is to be remembered."""
        return State(
            wishes=tuple(
                wish if self.remember else msgspec.structs.replace(wish, kept=False)
                for wish in self
                if wish.lease is not None or self.remember
            )
        )

    def __iter__(self) -> Iterator[Wish]:
        return (wish for alike in self._wishes.values() for wish in alike.values())

    def of(self, device: UsbDevice) -> Wish | None:
        """
        What was asked of a device. One with a serial number is known again at another
        place, unless the one that was meant is still at its own.
        """
        alike = self._wishes.get(_key(device), {})
        if device.busId in alike or device.serial is None:
            return alike.get(device.busId)
        for wish in tuple(alike.values()):
            there = self._present(wish.busId)
            if there is None or _key(there) != _key(device):
                self._remove(wish)
                moved = msgspec.structs.replace(wish, busId=device.busId)
                self._put(moved)
                return moved
        return None

    def left(self, lease: Lease) -> float | None:
        """How many seconds a lease lasts yet; C{None}: as long as its connection."""
        return None if lease.until is None else max(0.0, lease.until - self._now())

    def until(self, ttl: float | None) -> float | None:
        """When a lease that is granted now ends."""
        return None if ttl is None else self._now() + ttl

    def ask(self, device: UsbDevice, lease: Lease | None) -> Callable[[], None]:
        """
        Somebody wants a device: for a time, or until it is detached. Whoever has leased it
        has no more lease.

        @return: takes it back, unless something else has been asked for since.
        """
        before = self.of(device)
        kept = lease is None or (before is not None and before.kept)
        return self.replace(device, _wish(device, kept, lease))

    def replace(self, device: UsbDevice, wish: Wish | None) -> Callable[[], None]:
        """
        Let this, or nothing, be what is asked of a device.

        @return: as C{ask}.
        """
        before = self.of(device)
        self.set(device, wish)
        mine = self.of(device)

        def takeBack() -> None:
            if self.of(device) is mine and mine is not before:
                self.set(device, before)

        return takeBack

    def set(self, device: UsbDevice, wish: Wish | None) -> None:
        """Let this, or nothing, be what is asked of a device."""
        before = self.of(device)
        if before == wish and _leaseOf(before) is _leaseOf(wish):
            return
        if before is not None:
            self._remove(before)
        if wish is not None:
            self._put(wish)
        self._onChange(device.busId)

    def endLease(self, lease: Lease) -> None:
        """
        A lease is over, if it still is what it was: its time, or its connection.
        """
        for wish in self:
            if wish.lease is lease:
                self._end(wish)
                return

    def stop(self) -> None:
        """End nothing any more."""
        for timer in self._timers.values():
            if timer.active():
                timer.cancel()
        self._timers.clear()

    def _end(self, wish: Wish) -> None:
        assert wish.lease is not None
        self._log.info(
            "the lease of {owner} on {busId} has ended", owner=wish.lease.owner, busId=wish.busId
        )
        self._remove(wish)
        if wish.kept:
            self._put(msgspec.structs.replace(wish, lease=None))
        self._onEnd(wish)  # before anybody who waits has a turn
        self._onChange(wish.busId)

    def _put(self, wish: Wish) -> None:
        key = wish.vendorId, wish.productId, wish.serial
        self._wishes.setdefault(key, {})[wish.busId] = wish
        if wish.lease is not None and (left := self.left(wish.lease)) is not None:
            if wish.lease.ttl is not None:
                left = min(left, wish.lease.ttl)  # somebody may have set the clock
            self._timers[key, wish.busId] = self._clock.callLater(left, self.endLease, wish.lease)

    def _remove(self, wish: Wish) -> None:
        key = wish.vendorId, wish.productId, wish.serial
        alike = self._wishes[key]
        del alike[wish.busId]
        if not alike:
            del self._wishes[key]
        timer = self._timers.pop((key, wish.busId), None)
        if timer is not None and timer.active():
            timer.cancel()


def _wish(device: UsbDevice, kept: bool, lease: Lease | None) -> Wish:
    return Wish(
        vendorId=device.vendorId,
        productId=device.productId,
        serial=device.serial,
        busId=device.busId,
        kept=kept,
        lease=lease,
    )


def _leaseOf(wish: Wish | None) -> Lease | None:
    return None if wish is None else wish.lease


def _key(device: UsbDevice) -> Key:
    """
    What a device is known again by.
    """
    return device.vendorId, device.productId, device.serial
