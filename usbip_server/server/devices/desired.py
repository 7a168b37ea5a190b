"""
What clients have asked for: the devices they want bound, and whose they are for a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import msgspec
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from usbip_server.model.device import Lease, UsbDevice
from usbip_server.model.errors import Settle, ShareError
from usbip_server.net.caller import Caller

RECONNECT = 30.0
"""Seconds for the owner of a lease that lasts as long as its connection to come back after
the daemon was started anew."""

Key = tuple[str, str, str | None]


class _Grant:
    """
    What a lease ends by, while it lasts.
    """

    def __init__(self) -> None:
        self.timer: IDelayedCall | None = None
        self.untie: Callable[[], None] = lambda: None


class DesiredState:
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
        self._isRunning = False
        self._wishes: dict[tuple[Key, str], DesiredDevice] = {}
        self._grants: dict[Lease, _Grant] = {}
        self._onChange: Callable[[str], None] = lambda busId: None
        self._onEnd: Callable[[DesiredDevice], None] = lambda wish: None

    def follow(
        self, onChange: Callable[[str], None], onEnd: Callable[[DesiredDevice], None]
    ) -> None:
        """
        @param onChange: called with the bus id of a device that something was asked about.
        @param onEnd: called with a wish as it was when its lease ended of itself.
        """
        self._onChange = onChange
        self._onEnd = onEnd

    def load(self, state: State) -> None:
        """Take up what was remembered by an earlier daemon. No lease ends before C{start}."""
        for wish in state.wishes:
            lease = wish.lease
            if lease is not None:
                until = self._now() + RECONNECT if lease.until is None else lease.until
                lease = msgspec.structs.replace(lease, until=until)
                self._grants[lease] = _Grant()
            self._put(msgspec.structs.replace(wish, lease=lease))

    def start(self) -> None:
        """From now on leases end when their time is over."""
        self._isRunning = True
        for wish in tuple(self):
            if wish.lease is not None:
                self._run(wish.lease)

    def stop(self) -> None:
        """From now on none ends: they outlast the daemon, and the connections closed now."""
        self._isRunning = False
        for grant in self._grants.values():
            if grant.timer is not None and grant.timer.active():
                grant.timer.cancel()

    def state(self) -> State:
        """What is to be remembered."""
        return State(
            wishes=tuple(
                wish if self.remember else msgspec.structs.replace(wish, kept=False)
                for wish in self
                if wish.lease is not None or self.remember
            )
        )

    def __iter__(self) -> Iterator[DesiredDevice]:
        return iter(self._wishes.values())

    def of(self, device: UsbDevice) -> DesiredDevice | None:
        """What was asked of a device."""
        return self._wishes.get((_key(device), device.busId))

    def moved(self, device: UsbDevice) -> None:
        """
        A device was plugged in. If it has a serial number, and what was asked was asked of
        one that is not where it was, then it is this one.
        """
        if device.serial is None or self.of(device) is not None:
            return
        for wish in tuple(self):
            there = self._present(wish.busId)
            if wish.isFor(device) and (there is None or not wish.isFor(there)):
                del self._wishes[_place(wish)]
                self._put(msgspec.structs.replace(wish, busId=device.busId))
                self._onChange(device.busId)
                return

    def away(self) -> list[UsbDevice]:
        """The devices that something was asked of and that are not there, as they were."""
        return [
            wish.device()
            for wish in self
            if (there := self._present(wish.busId)) is None or not wish.isFor(there)
        ]

    def grant(self, owner: str, ttl: float | None, caller: Caller) -> Lease:
        """
        Make a lease, which lasts from now on.

        @param ttl: seconds; C{None}: as long as the connection of C{caller}.
        """
        until = None if ttl is None else self._now() + ttl
        who = caller.principal
        lease = Lease(owner=owner, address=who.address, proof=who.proof, ttl=ttl, until=until)
        grant = self._grants[lease] = _Grant()
        if ttl is None:
            end = partial(self._expire, lease)
            grant.untie = partial(caller.forget, end)
            caller.whenGone(end)
        self._run(lease)
        return lease

    def left(self, lease: Lease) -> float | None:
        """How many seconds a lease lasts yet; C{None}: as long as its connection."""
        return None if lease.until is None else max(0.0, lease.until - self._now())

    def ask(self, device: UsbDevice, lease: Lease | None) -> Settle:
        """
        Somebody wants a device: for a time, or until it is detached. Whoever has leased it
        has no more lease.

        @return: to be told what became of it: if it went wrong, all is as it was before.
        """
        before = self.of(device)
        kept = lease is None or (before is not None and before.kept)
        return self._change(device, before, _wish(device, kept, lease))

    def withdraw(self, device: UsbDevice) -> None:
        """Nobody wants a device any more."""
        self._change(device, self.of(device), None)(None)

    def renew(self, device: UsbDevice, lease: Lease) -> None:
        """Let a lease be in place of the one there is."""
        before = self.of(device)
        assert before is not None
        self._change(device, before, msgspec.structs.replace(before, lease=lease))(None)

    def _change(
        self, device: UsbDevice, before: DesiredDevice | None, wish: DesiredDevice | None
    ) -> Settle:
        self._replace(before, wish)
        self._onChange(device.busId)

        def settle(error: ShareError | None) -> None:
            if error is None:
                self._over(before)
                return
            mine = next((other for other in self if _isSame(other, wish)), None)
            if mine is not None:
                self._replace(mine, None if before is None else self._lasting(before))
                self._onChange(mine.busId)
            self._over(wish)

        return settle

    def _replace(self, old: DesiredDevice | None, new: DesiredDevice | None) -> None:
        if old is not None:
            self._wishes.pop(_place(old), None)
        if new is not None:
            self._put(new)

    def _put(self, wish: DesiredDevice) -> None:
        self._wishes[_place(wish)] = wish

    def _lasting(self, wish: DesiredDevice) -> DesiredDevice | None:
        """
        What is left of a wish whose lease may be over by now.
        """
        if wish.lease is None or wish.lease in self._grants:
            return wish
        return msgspec.structs.replace(wish, lease=None) if wish.kept else None

    def _run(self, lease: Lease) -> None:
        left = self.left(lease)
        if self._isRunning and left is not None:
            if lease.ttl is not None:
                left = min(left, lease.ttl)  # somebody may have set the clock
            self._grants[lease].timer = self._clock.callLater(left, self._expire, lease)

    def _over(self, wish: DesiredDevice | None) -> None:
        """
        A wish is none any more: its lease has nothing more to end by.
        """
        if wish is None or wish.lease is None or any(wish.lease is other.lease for other in self):
            return
        grant = self._grants.pop(wish.lease, None)
        if grant is not None:
            grant.untie()
            if grant.timer is not None and grant.timer.active():
                grant.timer.cancel()

    def _expire(self, lease: Lease) -> None:
        """
        A lease's time is over, or its connection gone.
        """
        if not self._isRunning or lease not in self._grants:
            return
        wish = next((wish for wish in self if wish.lease is lease), None)
        del self._grants[lease]
        if wish is None:
            return  # it is being withdrawn
        self._log.info(
            "the lease of {owner} on {busId} has ended", owner=lease.owner, busId=wish.busId
        )
        self._replace(wish, self._lasting(wish))
        self._onEnd(wish)  # before anybody who waits has a turn
        self._onChange(wish.busId)


def _wish(device: UsbDevice, kept: bool, lease: Lease | None) -> DesiredDevice:
    return DesiredDevice(
        vendorId=device.vendorId,
        productId=device.productId,
        serial=device.serial,
        busId=device.busId,
        description=device.description,
        kept=kept,
        lease=lease,
    )


def _isSame(wish: DesiredDevice, other: DesiredDevice | None) -> bool:
    """
    Is it the other one, perhaps at another place by now?
    """
    if other is None or wish is other:
        return wish is other
    return wish.lease is not None and wish.lease is other.lease


def _key(device: UsbDevice) -> Key:
    """
    What a device is known again by.
    """
    return device.vendorId, device.productId, device.serial


def _place(wish: DesiredDevice) -> tuple[Key, str]:
    return (wish.vendorId, wish.productId, wish.serial), wish.busId


class DesiredDevice(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={"vendorId": "vendor_id", "productId": "product_id", "busId": "bus_id"},
):
    """
    A device that somebody wants to have bound.

    It is known again by its ids and its serial number, wherever it is plugged in; a device
    without a serial number only at the same place.

    @ivar busId: where it was when it was last seen.
    @ivar description: what it was called then.
    @ivar kept: it was attached without a lease, and stays bound until it is detached.
    @ivar lease: whose it is for a time.
    """

    vendorId: str
    productId: str
    serial: str | None
    busId: str
    description: str = "a device that is not there"
    kept: bool = False
    lease: Lease | None = None

    def isFor(self, device: UsbDevice) -> bool:
        """Is it for such a device, wherever that is plugged in?"""
        return (self.vendorId, self.productId, self.serial) == (
            device.vendorId,
            device.productId,
            device.serial,
        )

    def device(self) -> UsbDevice:
        """The device, as far as it is remembered."""
        return UsbDevice(
            vendorId=self.vendorId,
            productId=self.productId,
            serial=self.serial,
            busId=self.busId,
            description=self.description,
            lease=self.lease,
        )


class State(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    What the state file holds.
    """

    version: int = 1
    wishes: tuple[DesiredDevice, ...] = ()
