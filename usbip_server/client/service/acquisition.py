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

from collections.abc import Awaitable, Callable
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


class WaitingPrograms:
    """
    Repeats the attempts of programs that wait for a device, and sends them notices.

    @ivar changes: signalled after each event; then an attempt is repeated.
    """

    def __init__(
        self,
        reactor: Any,
        settings: LiveSettings,
        changes: ChangeSignal,
        now: Callable[[], float],
    ) -> None:
        """
        @param reactor: provides C{IReactorTime}.
        @param now: the time, in seconds since the epoch.
        """
        self.changes = changes
        self._reactor = reactor
        self._settings = settings
        self._now = now

    async def run(
        self, caller: Caller, seconds: float, attempt: Callable[[float], Awaitable[RemoteDevice]]
    ) -> RemoteDevice:
        """
        Repeat an attempt until it succeeds or the time is over.

        @param attempt: is given the seconds that are left. It raises C{CancelledError} if the
            criteria of the program select another device now.
        @raise NotDone: the program is gone.
        """
        heartbeats = LoopingCall(self.tell, caller, "heartbeat")
        heartbeats.clock = self._reactor
        heartbeats.start(self._settings.config.timeouts.heartbeat, now=False)
        caller.whenGone(self.changes.notify)
        until = self._reactor.seconds() + seconds
        reason = None
        try:
            while not caller.isGone:
                left = max(0.0, until - self._reactor.seconds())
                try:
                    return await attempt(left)
                except (DeviceNotFound, Unreachable, KeptHere) as error:
                    if not left or caller.isGone:
                        raise
                    if reason != str(error):
                        reason = str(error)
                        self.tell(caller, "queued", message=reason)
                    await self.changes.wait(left)
                except CancelledError:
                    pass
            raise NotDone("the client is gone")
        finally:
            caller.forget(self.changes.notify)
            heartbeats.stop()

    def tell(self, caller: Caller, event: str, **keys: Any) -> None:
        """Send a notice to a program. The keys are those of L{encodeNotice}."""
        caller.tell(encodeNotice(event, self._now(), **keys))


class Acquisition:
    """
    Carries out C{attach}.
    """

    def __init__(
        self,
        waiting: WaitingPrograms,
        view: DeviceView,
        reconciler: Reconciler,
        operations: Operations,
        conflicts: Conflicts,
        rollback: Rollback,
    ) -> None:
        self._waiting = waiting
        self._view = view
        self._reconciler = reconciler
        self._operations = operations
        self._conflicts = conflicts
        self._rollback = rollback

    async def attach(self, command: LocalAttach, caller: Caller) -> RemoteDevice:
        """
        Attach a device for a program, and keep it attached.

        @raise RequestFailed: the device cannot be attached.
        @raise ShareError: the request selects no device, or several.
        """
        attempt = partial(self._attach, command, caller)
        wait = command.waitSeconds
        return await (self._waiting.run(caller, wait, attempt) if wait else attempt(0.0))

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
        while self._rollback.isAt(placeOf(found := self._select(command))):
            await self._waiting.changes.wait(LEASE_SECONDS)
        return found

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
        bound = await self._waiting.changes.unless(
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
        error: ShareError | None = None

        def isShown() -> bool:
            nonlocal error
            now = self._view.now(bound) if command.owner is not None else bound
            if command.owner is None or isLeasedBy(command.owner, now.device):
                error = self._conflicts.of(command, now)
            else:
                error = AttachFailed(f"{bound.server} does not report the lease")
            return error is None

        await self._waiting.changes.until(isShown, LEASE_SECONDS)
        if error is not None:
            raise error

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
            self._waiting.tell(
                caller, "queued", data=data, server=server.name, place=place, message=message
            )


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
