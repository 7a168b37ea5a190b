"""
Attaches and detaches devices for local programs. C{wait}, C{lease} and C{force} are passed on to
the server of the device: one connection to it lasts as long as the program waits, and what the
server reports about the place in its queue goes to the program::

    program: {"command":"attach","serial":"S1","wait":60}
    service:     to the server of S1: {"command":"attach","bus":"1-1","wait":60}
    program: {"event":"queued","place":1,...}
    program: {"status":"success",...}      it is bound at the server, and attached here
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall

from usbip_server.client.attach import Attached
from usbip_server.client.devices import RemoteDevice, deviceIn
from usbip_server.client.servers import Server
from usbip_server.client.service.config import LiveSettings
from usbip_server.client.service.conflicts import Conflicts, KeptHere, Rollback
from usbip_server.client.service.devices.adoption import Adoption
from usbip_server.client.service.devices.attachments import placeOf
from usbip_server.client.service.devices.desiredstate import DesiredAttachment, isLeasedBy
from usbip_server.client.service.devices.operations import AttachFailed, Operations
from usbip_server.client.service.devices.reconciler import Reconciler
from usbip_server.client.service.devices.view import DeviceView
from usbip_server.client.service.messages import LocalAttach, LocalDetach, encodeNotice
from usbip_server.model.errors import (
    ClientError,
    DeviceLeased,
    DeviceNotFound,
    NotDone,
    ShareError,
    Unreachable,
)
from usbip_server.model.replies import ReceivedNotice, encodeDevices
from usbip_server.net.caller import Caller
from usbip_server.runtime.latch import ChangeSignal

LEASE_SECONDS = 5.0
"""For a server to report a lease that it has granted."""


class RequestFailed(ClientError):
    """
    The device of a request was found, but it could not be attached or detached.

    @ivar found: the device.
    """

    def __init__(self, found: RemoteDevice, error: ShareError) -> None:
        super().__init__(str(error))
        self.found = found


class Acquisition:
    """
    Carries out C{attach}.
    """

    def __init__(
        self,
        reactor: Any,
        settings: LiveSettings,
        view: DeviceView,
        reconciler: Reconciler,
        operations: Operations,
        conflicts: Conflicts,
        rollback: Rollback,
        changes: ChangeSignal,
        now: Callable[[], float],
    ) -> None:
        """
        @param reactor: provides C{IReactorTime}.
        @param changes: signalled after each event; then programs that wait select a device again.
        @param now: the time, in seconds since the epoch.
        """
        self._reactor = reactor
        self._settings = settings
        self._view = view
        self._reconciler = reconciler
        self._operations = operations
        self._conflicts = conflicts
        self._rollback = rollback
        self._changes = changes
        self._now = now

    async def attach(self, command: LocalAttach, caller: Caller) -> RemoteDevice:
        """
        Attach a device for a program, and keep it attached.

        @raise RequestFailed: the device cannot be attached.
        @raise ShareError: the request selects no device, or several.
        """
        if not command.wait:
            return await self._attach(command, caller, 0.0)
        heartbeats = LoopingCall(self._tell, caller, "heartbeat")
        heartbeats.clock = self._reactor
        heartbeats.start(self._settings.config.timeouts.heartbeat, now=False)
        caller.whenGone(self._changes.notify)
        try:
            return await self._wait(command, caller, command.wait)
        finally:
            caller.forget(self._changes.notify)
            heartbeats.stop()

    async def _wait(self, command: LocalAttach, caller: Caller, seconds: float) -> RemoteDevice:
        until = self._reactor.seconds() + seconds
        reason = None
        while not caller.isGone:
            left = max(0.0, until - self._reactor.seconds())
            try:
                return await self._attach(command, caller, left)
            except (DeviceNotFound, Unreachable, KeptHere) as error:
                if not left or caller.isGone:
                    raise
                if reason != str(error):
                    reason = str(error)
                    self._tell(caller, "queued", message=reason)
                await self._changes.wait(left)
            except CancelledError:
                pass  # the criteria select another device now
        raise NotDone("the client is gone")

    async def _attach(self, command: LocalAttach, caller: Caller, left: float) -> RemoteDevice:
        """
        @param left: how many seconds the program waits.
        """
        found = await self._selected(command)
        try:
            conflict = self._conflicts.of(command, found)
            if conflict is not None and (not left or isinstance(conflict, KeptHere)):
                raise conflict
            if conflict is None and await self._isAttached(command, found):
                return found
            try:
                with self._reconciler.reserve(placeOf(found), command.owner):
                    if left or command.lease or command.force:
                        found = await self._bind(command, found, caller, left)
                    await self._attachHere(found, command.owner)
                    return found
            except BaseException:
                self._rollback.begin(found, command.owner)
                raise
        except (Unreachable, KeptHere) as error:
            if left:
                raise
            raise RequestFailed(found, error) from error
        except (AttachFailed, DeviceLeased) as error:
            raise RequestFailed(found, error) from error

    async def _selected(self, command: LocalAttach) -> RemoteDevice:
        """
        The selected device, after the rollback of an earlier request for it.
        """
        while True:
            found = self._select(command)
            if not self._rollback.isAt(placeOf(found)):
                return found
            await self._changes.wait(LEASE_SECONDS)

    def _select(self, command: LocalAttach) -> RemoteDevice:
        return self._view.select(command, command.host, self._view.devices(command.host))

    async def _isAttached(self, command: LocalAttach, found: RemoteDevice) -> bool:
        """
        Is the device attached to this machine, if only by another program? Then keep it.

        @raise AttachFailed: its lease cannot be renewed.
        """
        attachment = self._view.attachments.at(placeOf(found))
        if attachment is None:
            if command.lease is not None or command.force:
                return False
            return await self._reconciler.adopt(found, lambda: self._request(found, None))
        if command.lease is not None:
            await self._operations.renew(found, _leaseOf(command))
        self._view.desired.restore(attachment.desired)  # it may be here as its detach has failed
        return True

    async def _bind(
        self, command: LocalAttach, found: RemoteDevice, caller: Caller, left: float
    ) -> RemoteDevice:
        """
        Pass the request on to the server of the device.

        @raise CancelledError: the program does not wait for this device any more.
        """
        request: dict[str, Any] = {}
        if left:
            request["wait"] = left
        if command.lease is not None:
            request["lease"] = _leaseOf(command)
        if command.force and self._conflicts.of(command, found) is None:
            request["force"] = True  # but not against a lease of another program here
        told = partial(self._passOn, command, found.server, caller)
        binding = Deferred.fromCoroutine(self._operations.bind(found, request, told))
        bound = await self._changes.unless(
            binding, lambda: bool(left) and (caller.isGone or self._isOutdated(command, found))
        )
        await self._leaseShown(command, bound)
        if left and caller.isGone:
            raise NotDone("the client is gone")
        return bound

    async def _leaseShown(self, command: LocalAttach, bound: RemoteDevice) -> None:
        """
        Wait until the server reports the lease in its events, as a lease is kept as long as it
        does; and until the device is detached from this machine, if it was taken from a program.

        @raise ShareError: that does not happen.
        """
        until = self._reactor.seconds() + LEASE_SECONDS
        while True:
            now = self._view.now(bound) if command.owner is not None else bound
            isShown = command.owner is None or isLeasedBy(command.owner, now.device)
            conflict = self._conflicts.of(command, now) if isShown else None
            if isShown and conflict is None:
                return
            if not await self._changes.wait(until - self._reactor.seconds()):
                raise conflict or AttachFailed(f"{bound.server} does not report the lease")

    async def _attachHere(self, found: RemoteDevice, owner: str | None) -> None:
        before = self._view.desired.requested(found)
        desired = self._request(found, owner)
        try:
            await self._reconciler.attach(desired, found)
        except AttachFailed:
            if before is not None and before.owner != owner:
                self._view.desired.restore(before)
            elif before is None and desired.requested is not None:
                self._view.desired.withdraw(desired.name)
            await self._reconciler.finished(desired.name)
            raise

    def _request(self, found: RemoteDevice, owner: str | None) -> DesiredAttachment:
        return self._view.desired.request(
            found, owner, lambda name: self._reconciler.isTaken(name, found)
        )

    def _isOutdated(self, command: LocalAttach, found: RemoteDevice) -> bool:
        """
        Do the criteria select another device now, or is this one attached here by now? Unknown
        while its server is not connected: then the place in its queue is kept.
        """
        server = self._view.servers.of(found.server)
        if server is not None and not server.isUp:
            return False
        try:
            now = self._select(command)
        except ShareError:
            return True
        identity = placeOf(found), found.device.deviceNumber
        if (placeOf(now), now.device.deviceNumber) != identity:
            return True
        conflict = self._conflicts.of(command, now)
        isHere = self._view.attachments.at(placeOf(found)) is not None
        return isHere and (conflict is None or isinstance(conflict, KeptHere))

    def _passOn(
        self, command: LocalAttach, server: Server, caller: Caller, notice: ReceivedNotice
    ) -> None:
        if notice.get("event") == "queued":
            data = notice.get("data")
            if data is not None and not command.detail:
                data = encodeDevices(deviceIn(server, data), False)
            place, message = notice.get("place"), notice.get("message")
            self._tell(
                caller, "queued", data=data, server=server.name, place=place, message=message
            )

    def _tell(self, caller: Caller, event: str, **keys: Any) -> None:
        caller.tell(encodeNotice(event, self._now(), **keys))


class Release:
    """
    Carries out C{detach}.
    """

    def __init__(
        self,
        view: DeviceView,
        reconciler: Reconciler,
        operations: Operations,
        adoption: Adoption,
        conflicts: Conflicts,
    ) -> None:
        self._view = view
        self._reconciler = reconciler
        self._operations = operations
        self._adoption = adoption
        self._conflicts = conflicts

    async def detach(self, command: LocalDetach) -> RemoteDevice:
        """
        Detach a device from this machine, and do not keep it attached any more.

        @raise RequestFailed: it is not attached by this service, leased by another owner, or the
            kernel does not detach it.
        @raise ShareError: the request selects no device, or several.
        """
        found = self._view.select(command, command.host, self._view.detachable(command.host))
        attachment = self._view.attachments.at(placeOf(found))
        requested = self._view.desired.requested(found)
        if attachment is None and requested is None:
            reason = _notOurs(await self._adoption.portOf(found))
            raise RequestFailed(found, AttachFailed(reason))
        both = requested, None if attachment is None else attachment.desired
        desired = {each.name: each for each in both if each is not None}
        for each in desired.values():
            if each.owner not in (None, command.owner) and not command.force:
                raise RequestFailed(found, self._conflicts.leased(each, found))
        for name in desired:
            self._view.desired.withdraw(name)
            await self._reconciler.finished(name)
        attachment = self._view.attachments.at(placeOf(found))
        if attachment is not None:
            try:
                await self._reconciler.detach(attachment)
            except AttachFailed as error:
                raise RequestFailed(found, error) from error
        elif requested is not None and requested.owner is not None:
            busId = found.device.busId
            await self._operations.unbind(found.server, busId, requested.owner)
        return found


def _leaseOf(command: LocalAttach) -> dict[str, Any]:
    lease: dict[str, Any] = msgspec.to_builtins(command.lease)
    return lease


def _notOurs(attached: Attached | None) -> str:
    if attached is None:
        return "it is not attached to this machine"
    return (
        f"it is attached here to port {attached.port}, but not by this service: attach it first, "
        "or detach it with the program that has attached it"
    )
