"""
Who may have a device: attach, detach, kick and renew, with regard to leases and to the queue.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from usbip_server.model.device import DeviceState, Lease, UsbDevice
from usbip_server.model.devicerules import Share
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
from usbip_server.net.caller import Caller
from usbip_server.server.access.authorizer import Authorizer
from usbip_server.server.devices.operations import Action, Operations
from usbip_server.server.devices.reconciler import Reconciler
from usbip_server.server.devices.view import DeviceView
from usbip_server.server.queue import WaitQueue

BUSY_PAUSE = 0.5
"""Seconds until a waiting client tries again, after another client was faster."""


class Allocator:
    """
    Carries out the commands that change who has a device. C{until} of its methods is when there
    has to be an answer, by the reactor's clock.

    @ivar queue: the clients that wait.
    """

    def __init__(
        self,
        authorizer: Authorizer,
        view: DeviceView,
        operations: Operations,
        reconciler: Reconciler,
        clock: IReactorTime,
        now: Callable[[], float],
    ) -> None:
        """
        @param now: the time, in seconds since the epoch.
        """
        self._authorizer = authorizer
        self._view = view
        self._operations = operations
        self._reconciler = reconciler
        self._clock = clock
        self.queue = WaitQueue(authorizer, view, self._obstacle, clock, now)

    async def attach(self, command: AttachDevice, caller: Caller, until: float) -> UsbDevice:
        """
        Bind a device for a client, with C{wait} when it is available, with C{lease} for it alone.

        @raise ShareError: it is not available, or cannot be bound.
        """
        if command.lease is not None and command.lease.ttl == "connection":
            _requireLasting(caller)
        end = self._clock.seconds() + command.waitSeconds
        again = False
        while True:
            device = await self._turn(command, caller, end, again)
            answer = self._clock.seconds() + self._view.settings.timeouts.answer
            try:
                until = max(end, answer) if command.waitSeconds else until
                return await self._attach(command, device, caller, until)
            except DeviceInUse:  # the inventory does not show it yet
                if self._clock.seconds() + BUSY_PAUSE >= end:
                    raise
            again = True
            await deferLater(self._clock, BUSY_PAUSE)

    async def detach(self, command: DetachDevice, caller: Caller, until: float) -> UsbDevice:
        """
        Unbind a device. A leased device whose rule is C{share: always} stays bound, and only
        its session ends; one that is not plugged in is removed from the desired state.
        """
        try:
            device = self._select(command, caller)
        except DeviceNotFound:
            return self._withdrawAway(command, caller)
        self._requireOwner(device, command.owner, command.force, caller.principal)
        isAlways = self._view.rule(device).share is Share.ALWAYS
        action = Action.KICK if isAlways and device.lease is not None else Action.DETACH

        def prepare() -> Settle:
            if isAlways and action is Action.DETACH:
                self._reconciler.detached(device)
            self._view.desired.withdraw(device)  # whatever becomes of the unbind
            return lambda error: None

        return await self._operations.perform(
            action,
            device,
            lambda: self._again(device, command.owner, command.force, caller.principal),
            caller.principal,
            until,
            prepare,
        )

    async def kick(self, command: KickClient, caller: Caller, until: float) -> UsbDevice:
        """End the session of the client that has imported a device."""
        device = self._select(command, caller)
        self._requireOwner(device, command.owner, command.force, caller.principal)
        return await self._operations.perform(
            Action.KICK,
            device,
            lambda: self._again(device, command.owner, command.force, caller.principal),
            caller.principal,
            until,
        )

    async def renew(self, command: RenewLease, caller: Caller, until: float) -> UsbDevice:
        """
        Extend a lease.

        @raise NotLeased: the device has no lease.
        """
        device = self._select(command, caller)
        desired = self._view.desired.of(device)
        if desired is None or desired.lease is None:
            raise NotLeased(device)
        self._requireOwner(device, command.lease.owner, False, caller.principal)
        ttl = command.lease.ttl
        if ttl is None:
            ttl = "connection" if desired.lease.ttl is None else desired.lease.ttl
        if ttl == "connection":
            _requireLasting(caller)
        self._view.desired.renew(device, self._grant(command.lease, ttl, caller))
        return self._view.now(device)

    async def _turn(
        self, command: AttachDevice, caller: Caller, end: float, again: bool
    ) -> UsbDevice:
        """Return the device as soon as the client may have it."""
        left = end - self._clock.seconds()
        if left > 0 and not (command.force and self._isPresent(command, caller)):
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
        def again() -> UsbDevice:
            if caller.isGone:
                raise NotDone("the client is gone")
            return self._again(device, _ownerOf(command), command.force, caller.principal)

        def prepare() -> Settle:
            self._reconciler.attached(device)
            requested = command.lease
            lease = None if requested is None else self._grant(requested, requested.ttl, caller)
            settle = self._view.desired.request(device, lease)
            if lease is not None:
                self.queue.free(device.busId)  # the lease keeps other clients out
            return settle

        if "serial" in again().unknown:
            raise _unanswered(device)
        if command.force:
            self.queue.hold(device.busId)
        action = Action.FORCED_ATTACH if command.force else Action.ATTACH
        try:
            bound = await self._operations.perform(
                action, device, again, caller.principal, until, prepare
            )
        except StillWorking:
            self.queue.freeSoon(device.busId)
            raise
        except ShareError:
            self.queue.free(device.busId)
            raise
        self.queue.freeSoon(device.busId)
        return bound

    def _withdrawAway(self, command: DetachDevice, caller: Caller) -> UsbDevice:
        """
        Remove a device that is not plugged in from the desired state.

        @raise DeviceNotFound: it is not in there.
        """
        rights = self._authorizer.of(caller.principal)
        device = rights.select(command, self._view.away(), self._view.unavailable)
        self._requireOwner(device, command.owner, command.force, caller.principal)
        self._view.desired.withdraw(device)
        return device

    def _select(self, request: DeviceRequest, caller: Caller) -> UsbDevice:
        rights = self._authorizer.of(caller.principal)
        return rights.select(request, self._view.devices, self._view.unavailable)

    def _isPresent(self, request: AttachDevice, caller: Caller) -> bool:
        try:
            self._select(request, caller)
        except DeviceNotFound:
            return False
        return True

    def _again(
        self, device: UsbDevice, owner: str | None, force: bool | None, principal: Principal
    ) -> UsbDevice:
        """
        Return a device as it is after another operation on it.

        @raise ShareError: it is gone, or leased by another client now.
        """
        now = self._view.inventory.same(device)
        if now is None:
            raise DeviceNotFound(f"{device} was unplugged in the meantime")
        self._requireOwner(now, owner, force, principal)
        return now

    def _obstacle(
        self, device: UsbDevice, command: AttachDevice, principal: Principal
    ) -> OperationFailed | None:
        """Why a waiting client cannot have a device now."""
        if "serial" in device.unknown:
            return _unanswered(device)
        leased = self._leased(device, _ownerOf(command), command.force, principal)
        if leased is None and device.state is DeviceState.IN_USE and not command.force:
            return DeviceInUse(device, self._view.traffic(device))
        return leased

    def _requireOwner(
        self, device: UsbDevice, owner: str | None, force: bool | None, principal: Principal
    ) -> None:
        leased = self._leased(device, owner, force, principal)
        if leased is not None:
            raise leased

    def _leased(
        self, device: UsbDevice, owner: str | None, force: bool | None, principal: Principal
    ) -> DeviceLeased | None:
        lease = device.lease
        if force or lease is None:
            return None
        if lease.owner == owner and lease.proof in (None, principal.proof):
            return None
        return DeviceLeased(device, lease, self._view.desired.left(lease))

    def _grant(self, requested: LeaseRequest, ttl: object, caller: Caller) -> Lease:
        seconds = ttl if isinstance(ttl, float) else None
        return self._view.desired.grant(requested.owner, seconds, caller)


def _unanswered(device: UsbDevice) -> OperationFailed:
    """
    The error for a device that cannot be recognized when it is plugged in again. Its own drivers
    have its lock, without which it cannot be bound either.
    """
    return OperationFailed(
        device, f"{device} has not answered yet: its serial number is not known. Try again later"
    )


def _requireLasting(caller: Caller) -> None:
    """
    @raise InvalidRequest: the connection ends with the answer.
    """
    if not caller.lasts:
        raise InvalidRequest(
            'invalid request: `lease.ttl`: "connection" needs a connection that stays open, and '
            "an HTTP connection does not: give a number of seconds"
        )


def _ownerOf(command: AttachDevice) -> str | None:
    return None if command.lease is None else command.lease.owner
