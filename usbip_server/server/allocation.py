"""
Who may have a device: attach, detach, kick and renew, with regard to leases and to those
who wait.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from usbip_server.model.device import DeviceState, Lease, Traffic, UsbDevice
from usbip_server.model.errors import (
    DeviceAwaited,
    DeviceInUse,
    DeviceLeased,
    DeviceNotFound,
    InvalidRequest,
    NotDone,
    NotLeased,
    OperationFailed,
    Settle,
    ShareError,
    StillWorking,
)
from usbip_server.model.policy import Principal
from usbip_server.model.requests import (
    AttachDevice,
    DetachDevice,
    DeviceRequest,
    KickClient,
    LeaseRequest,
    RenewLease,
)
from usbip_server.model.rules import Rules, Share
from usbip_server.net.caller import Caller
from usbip_server.server.access.authorizer import Authorizer
from usbip_server.server.devices.desired import DesiredState
from usbip_server.server.devices.operations import Operations
from usbip_server.server.devices.reconciler import Reconciler
from usbip_server.server.devices.view import DeviceView
from usbip_server.server.queue import WaitQueue

BUSY_PAUSE = 0.5
"""Seconds until somebody who waits tries again, after a client was seen to be quicker."""


class Allocator:
    """
    Carries out the commands that change who has a device.

    @ivar queue: those who wait.
    """

    def __init__(
        self,
        access: Authorizer,
        catalogue: DeviceView,
        rules: Rules,
        wishes: DesiredState,
        operations: Operations,
        keeper: Reconciler,
        clock: IReactorTime,
        now: Callable[[], float],
        traffic: Callable[[UsbDevice], Traffic | None],
    ) -> None:
        """
        @param now: the time, in seconds since the epoch.
        @param traffic: what a device's holder has moved.
        """
        self._access = access
        self._catalogue = catalogue
        self._rules = rules
        self._wishes = wishes
        self._operations = operations
        self._keeper = keeper
        self._clock = clock
        self._traffic = traffic
        self.queue = WaitQueue(
            access, catalogue.inventory, self._obstacle, clock, now, operations.timeouts.heartbeat
        )

    async def attach(self, command: AttachDevice, caller: Caller, until: float) -> UsbDevice:
        """
        Bind a device for somebody, perhaps after a while, perhaps with a lease.

        @param until: as of the others: when there has to be an answer, by the reactor's clock,
            unless the command says to wait.
        @raise ShareError: it is not to be had, or cannot be bound.
        """
        if command.lease is not None and command.lease.ttl == "connection":
            _requireLasting(caller)
        end = self._clock.seconds() + (command.wait or 0)
        again = False
        while True:
            device = await self._turn(command, caller, end, again)
            answer = self._clock.seconds() + self._operations.timeouts.answer
            try:
                until = max(end, answer) if command.wait else until
                return await self._attach(command, device, caller, until)
            except DeviceInUse:  # the inventory does not show it yet
                if self._clock.seconds() + BUSY_PAUSE >= end:
                    raise
            again = True
            await deferLater(self._clock, BUSY_PAUSE)

    async def detach(self, command: DetachDevice, caller: Caller, until: float) -> UsbDevice:
        """
        Unbind a device. One that is always shared, and that was leased, only changes hands;
        one that is not there is not wanted any more.
        """
        try:
            device = self._select(command, caller)
        except DeviceNotFound:
            return self._dismiss(command, caller)
        self._requireOwner(device, command.owner, command.force, caller.principal)
        isAlways = self._rules.of(device).share is Share.ALWAYS
        verb = "kick" if isAlways and device.lease is not None else "detach"

        def prepare() -> Settle:
            if isAlways and verb == "detach":
                self._keeper.rest(device)
            self._wishes.withdraw(device)  # and so it stays, however the unbind goes
            return lambda error: None

        return await self._operations.perform(
            verb,
            device,
            lambda: self._still(device, command.owner, command.force, caller.principal),
            caller.principal,
            until,
            prepare,
        )

    async def kick(self, command: KickClient, caller: Caller, until: float) -> UsbDevice:
        """End the session of the client that has imported a device."""
        device = self._select(command, caller)
        self._requireOwner(device, command.owner, command.force, caller.principal)
        return await self._operations.perform(
            "kick",
            device,
            lambda: self._still(device, command.owner, command.force, caller.principal),
            caller.principal,
            until,
        )

    async def renew(self, command: RenewLease, caller: Caller, until: float) -> UsbDevice:
        """
        Let a lease last longer.

        @raise NotLeased: there is none.
        """
        device = self._select(command, caller)
        wish = self._wishes.of(device)
        if wish is None or wish.lease is None:
            raise NotLeased(device)
        self._requireOwner(device, command.lease.owner, False, caller.principal)
        ttl = command.lease.ttl
        if ttl is None:
            ttl = "connection" if wish.lease.ttl is None else wish.lease.ttl
        if ttl == "connection":
            _requireLasting(caller)
        self._wishes.renew(device, self._grant(command.lease, ttl, caller))
        return self._catalogue.now(device)

    async def _turn(
        self, command: AttachDevice, caller: Caller, end: float, again: bool
    ) -> UsbDevice:
        """
        The device, when it may be had.
        """
        left = end - self._clock.seconds()
        if left > 0 and not (command.force and self._isThere(command, caller)):
            return await self.queue.turn(command, caller, left, again)
        device = self._select(command, caller)
        self._requireOwner(device, _ownerOf(command), command.force, caller.principal)
        waiting = self.queue.waitingFor(device)
        if waiting and not command.force:
            raise DeviceAwaited(device, waiting)
        return device

    async def _attach(
        self, command: AttachDevice, device: UsbDevice, caller: Caller, until: float
    ) -> UsbDevice:
        def still() -> UsbDevice:
            if caller.isGone:
                raise NotDone("the client is gone")
            return self._still(device, _ownerOf(command), command.force, caller.principal)

        def prepare() -> Settle:
            self._keeper.wake(device)
            asked = command.lease
            lease = None if asked is None else self._grant(asked, asked.ttl, caller)
            settle = self._wishes.ask(device, lease)
            if lease is not None:
                self.queue.free(device.busId)  # from now on the lease keeps others out
            return settle

        still()
        if command.force:
            self.queue.hold(device.busId)
        try:
            verb = "forced attach" if command.force else "attach"
            bound = await self._operations.perform(
                verb, device, still, caller.principal, until, prepare
            )
        except StillWorking:
            self.queue.freeSoon(device.busId)
            raise
        except ShareError:
            self.queue.free(device.busId)
            raise
        self.queue.freeSoon(device.busId)
        return bound

    def _dismiss(self, command: DetachDevice, caller: Caller) -> UsbDevice:
        """
        Nobody wants a device any more that is not there.

        @raise DeviceNotFound: nobody did.
        """
        away = tuple(
            msgspec.structs.replace(device, name=self._rules.of(device).name)
            for device in self._wishes.away()
        )
        device = self._access.of(caller.principal).select(command, away)
        self._requireOwner(device, command.owner, command.force, caller.principal)
        self._wishes.withdraw(device)
        return device

    def _select(self, request: DeviceRequest, caller: Caller) -> UsbDevice:
        devices = self._catalogue.inventory.snapshot.devices
        return self._access.of(caller.principal).select(request, devices)

    def _isThere(self, request: AttachDevice, caller: Caller) -> bool:
        try:
            self._select(request, caller)
        except DeviceNotFound:
            return False
        return True

    def _still(
        self, device: UsbDevice, owner: str | None, force: bool | None, principal: Principal
    ) -> UsbDevice:
        """
        A device, when other things were done to it meanwhile.

        @raise ShareError: it is gone, or somebody else's by now.
        """
        now = self._catalogue.inventory.same(device)
        if now is None:
            raise DeviceNotFound(f"{device} was unplugged in the meantime")
        self._requireOwner(now, owner, force, principal)
        return now

    def _obstacle(
        self, device: UsbDevice, command: AttachDevice, principal: Principal
    ) -> OperationFailed | None:
        """
        Why somebody who waits may not have a device now.
        """
        leased = self._leased(device, _ownerOf(command), command.force, principal)
        if leased is None and device.state is DeviceState.IN_USE and not command.force:
            return DeviceInUse(device, self._traffic(device))
        return leased

    def _requireOwner(
        self, device: UsbDevice, owner: str | None, force: bool | None, principal: Principal
    ) -> None:
        obstacle = self._leased(device, owner, force, principal)
        if obstacle is not None:
            raise obstacle

    def _leased(
        self, device: UsbDevice, owner: str | None, force: bool | None, principal: Principal
    ) -> DeviceLeased | None:
        lease = device.lease
        if force or lease is None:
            return None
        if lease.owner == owner and lease.proof in (None, principal.proof):
            return None
        return DeviceLeased(device, lease, self._wishes.left(lease))

    def _grant(self, asked: LeaseRequest, ttl: object, caller: Caller) -> Lease:
        seconds = ttl if isinstance(ttl, float) else None
        return self._wishes.grant(asked.owner, seconds, caller)


def _requireLasting(caller: Caller) -> None:
    """
    @raise InvalidRequest: the connection ends with the answer.
    """
    if not caller.lasts:
        raise InvalidRequest(
            'invalid request: `lease.ttl`: "connection" needs one that stays open: over HTTP '
            "there is none, so say for how many seconds"
        )


def _ownerOf(command: AttachDevice) -> str | None:
    return None if command.lease is None else command.lease.owner
