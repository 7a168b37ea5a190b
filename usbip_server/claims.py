"""
Who may have a device: attach, detach, kick and renew, with regard to leases and to those
who wait.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from usbip_server.caller import Caller
from usbip_server.catalogue import Catalogue
from usbip_server.commands import (
    AttachDevice,
    DetachDevice,
    DeviceRequest,
    KickClient,
    LeaseRequest,
    RenewLease,
)
from usbip_server.device import DeviceState, Lease, UsbDevice
from usbip_server.errors import (
    DeviceAwaited,
    DeviceInUse,
    DeviceLeased,
    InvalidRequest,
    NotDone,
    NotLeased,
    OperationFailed,
    ShareError,
    StillWorking,
)
from usbip_server.keeper import Keeper
from usbip_server.matching import select
from usbip_server.operations import Operations
from usbip_server.rules import Rules, Share
from usbip_server.waiting import Queue
from usbip_server.wishes import Wishes

BUSY_PAUSE = 0.5
"""Seconds until somebody who waits tries again, after a client was seen to be quicker."""


class Claims:
    """
    Carries out the commands that change who has a device.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        rules: Rules,
        wishes: Wishes,
        operations: Operations,
        keeper: Keeper,
        clock: IReactorTime,
        now: Callable[[], float],
    ) -> None:
        """
        @param now: the time, in seconds since the epoch.
        """
        self._catalogue = catalogue
        self._rules = rules
        self._wishes = wishes
        self._operations = operations
        self._keeper = keeper
        self._clock = clock
        self.queue = Queue(
            catalogue.inventory, self._obstacle, clock, now, operations.timeouts.heartbeat
        )

    async def attach(self, command: AttachDevice, caller: Caller, until: float) -> UsbDevice:
        """
        Bind a device for somebody, perhaps after a while, perhaps with a lease.

        @param until: as of the others: when there has to be an answer, by the reactor's clock,
            unless the command says to wait.
        @raise ShareError: it is not to be had, or cannot be bound.
        """
        ttl = None if command.lease is None else command.lease.ttl
        if ttl == "connection" and not caller.lasts:
            raise InvalidRequest(
                'invalid request: `lease.ttl`: "connection" needs one that stays open: over HTTP '
                "there is none, so say for how many seconds"
            )
        end = self._clock.seconds() + (command.wait or 0)
        again = False
        while True:
            device = await self._turn(command, caller, end, again)
            if command.wait:
                until = self._clock.seconds() + self._operations.timeouts.answer
            try:
                return await self._attach(command, device, caller, until)
            except DeviceInUse:  # the inventory does not show it yet
                if self._clock.seconds() + BUSY_PAUSE >= end:
                    raise
            again = True
            await deferLater(self._clock, BUSY_PAUSE)

    async def detach(self, command: DetachDevice, caller: Caller, until: float) -> UsbDevice:
        """
        Unbind a device. One that is always shared, and that was leased, only changes hands.
        """
        device = self._select(command)
        self._requireOwner(device, command.owner, command.force)
        wish = self._wishes.of(device)
        verb = "detach"
        if self._rules.of(device).share is Share.ALWAYS:
            if wish is not None and wish.lease is not None:
                verb = "kick"
            else:
                self._keeper.rest(device)
        takeBack = self._wishes.replace(device, None)
        return await self._perform(verb, command, caller, until, takeBack)

    async def kick(self, command: KickClient, caller: Caller, until: float) -> UsbDevice:
        """End the session of the client that has imported a device."""
        self._requireOwner(self._select(command), command.owner, command.force)
        return await self._perform("kick", command, caller, until)

    async def renew(self, command: RenewLease, caller: Caller, until: float) -> UsbDevice:
        """
        Let a lease last longer.

        @raise NotLeased: there is none.
        """
        device = self._select(command)
        wish = self._wishes.of(device)
        if wish is None or wish.lease is None:
            raise NotLeased(device)
        if wish.lease.owner != command.lease.owner:
            raise DeviceLeased(device, wish.lease, self._wishes.left(wish.lease))
        asked = command.lease
        if asked.ttl is None:
            ttl = "connection" if wish.lease.ttl is None else wish.lease.ttl
            asked = msgspec.structs.replace(asked, ttl=ttl)
        lease = self._lease(asked, caller)
        self._wishes.set(device, msgspec.structs.replace(wish, lease=lease))
        self._tie(lease, caller)
        return self._catalogue.now(device)

    async def _turn(
        self, command: AttachDevice, caller: Caller, end: float, again: bool
    ) -> UsbDevice:
        """
        The device, when it may be had.
        """
        left = end - self._clock.seconds()
        if left > 0:
            return await self.queue.turn(command, caller, left, again)
        device = self._select(command)
        self._requireOwner(device, _ownerOf(command), command.force)
        waiting = self.queue.waitingFor(device)
        if waiting and not command.force:
            raise DeviceAwaited(device, waiting)
        return device

    async def _attach(
        self, command: AttachDevice, device: UsbDevice, caller: Caller, until: float
    ) -> UsbDevice:
        lease = None if command.lease is None else self._lease(command.lease, caller)
        takeBack = self._wishes.ask(device, lease)
        untie = self._tie(lease, caller)

        def undo() -> None:
            takeBack()
            untie()

        if command.force:
            await self._perform("kick", command, caller, until, undo)
        return await self._perform("attach", command, caller, until, undo)

    async def _perform(
        self,
        verb: str,
        command: DeviceRequest,
        caller: Caller,
        until: float,
        takeBack: Callable[[], None] = lambda: None,
    ) -> UsbDevice:
        try:
            return await self._operations.perform(
                verb, lambda: self._select(command), caller.principal, until, takeBack
            )
        except StillWorking:
            raise
        except ShareError:
            takeBack()
            raise

    def _select(self, request: DeviceRequest) -> UsbDevice:
        return select(request, self._catalogue.inventory.snapshot.devices)

    def _obstacle(self, device: UsbDevice, command: AttachDevice) -> OperationFailed | None:
        """
        Why somebody who waits may not have a device now.
        """
        leased = self._leased(device, _ownerOf(command), command.force)
        if leased is None and device.state is DeviceState.IN_USE and not command.force:
            return DeviceInUse(device)
        return leased

    def _requireOwner(self, device: UsbDevice, owner: str | None, force: bool | None) -> None:
        obstacle = self._leased(device, owner, force)
        if obstacle is not None:
            raise obstacle

    def _leased(
        self, device: UsbDevice, owner: str | None, force: bool | None
    ) -> DeviceLeased | None:
        lease = device.lease
        if force or lease is None or lease.owner == owner:
            return None
        return DeviceLeased(device, lease, self._wishes.left(lease))

    def _lease(self, asked: LeaseRequest, caller: Caller) -> Lease:
        ttl = asked.ttl if isinstance(asked.ttl, float) else None
        if ttl is None and caller.isGone:
            raise NotDone("the client is gone")
        return Lease(
            owner=asked.owner,
            address=caller.principal.address,
            ttl=ttl,
            until=self._wishes.until(ttl),
        )

    def _tie(self, lease: Lease | None, caller: Caller) -> Callable[[], None]:
        """
        Let a lease that lasts as long as its connection end with it.

        @return: lets it not.
        """

        def end() -> None:
            assert lease is not None
            self._wishes.endLease(lease)

        if lease is not None and lease.ttl is None:
            caller.whenGone(end)
        return lambda: caller.forget(end)


def _ownerOf(command: AttachDevice) -> str | None:
    return None if command.lease is None else command.lease.owner
