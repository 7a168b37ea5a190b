"""
A level-triggered reconciler: compares the desired attachments with the actual ones, after each
event and when a retry is due, and starts the operations that make up the difference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from usbip_server.client.devices import RemoteDevice
from usbip_server.client.service.devices.adoption import Adoption
from usbip_server.client.service.devices.attachments import Attachment, Place, placeOf
from usbip_server.client.service.devices.desiredstate import DesiredAttachment
from usbip_server.client.service.devices.notifier import Notifier
from usbip_server.client.service.devices.operations import AttachFailed, Operations
from usbip_server.client.service.devices.retries import SOONEST, RetrySchedule
from usbip_server.client.service.devices.servers import ServerConnection
from usbip_server.client.service.devices.view import DeviceView
from usbip_server.model.device import DeviceState
from usbip_server.model.inventory import Change, ChangeKind
from usbip_server.runtime.latch import Latch

LASTING_SECONDS = 5.0
"""A session that ends sooner counts as a failed attempt."""


class _Attempt:
    """
    A device that is being attached.

    @ivar results: fire with the attachment, or fail with L{AttachFailed}.
    @ivar ended: fire when the attempt has ended, either way.
    """

    def __init__(self, found: RemoteDevice) -> None:
        self.found = found
        self.results: list[Deferred[Attachment]] = []
        self.ended: list[Deferred[None]] = []


class Reconciler:
    """
    Attaches and detaches devices, one attempt at a time for each desired attachment.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        view: DeviceView,
        operations: Operations,
        adoption: Adoption,
        retries: RetrySchedule,
        notifier: Notifier,
    ) -> None:
        """
        @param reactor: provides C{IReactorTime}.
        """
        self._reactor = reactor
        self._view = view
        self._operations = operations
        self._adoption = adoption
        self._retries = retries
        self._notifier = notifier
        self._isRunning = False
        self._isTidy = False
        self._idle = Latch(reactor)
        self._soon: IDelayedCall | None = None
        self._alarm: IDelayedCall | None = None
        self._attempts: dict[str, _Attempt] = {}
        self._reserved: list[tuple[Place, str | None]] = []

    def start(self) -> None:
        """Begin to reconcile."""
        self._isRunning = True
        self.look()

    def stop(self) -> None:
        """Start no more operations."""
        self._isRunning = False
        for timer in (self._soon, self._alarm):
            if timer is not None and timer.active():
                timer.cancel()
        self._noteIdle()

    async def idle(self, seconds: float) -> None:
        """After L{stop}: wait until the attempts in progress have ended."""
        await self._idle.within(seconds)

    def look(self) -> None:
        """Reconcile in the next turn of the reactor."""
        if self._isRunning and (self._soon is None or not self._soon.active()):
            self._soon = self._reactor.callLater(0, self._reconcile)

    def changed(self, server: ServerConnection, change: Change) -> None:
        """Reconcile after the change of a device at its server."""
        device = change.device
        place = server.server.name, device.busId
        attachment = self._view.attachments.at(place)
        if attachment is not None and attachment.device.deviceNumber == device.deviceNumber:
            attachment.update(device)
            if device.state is not DeviceState.IN_USE or change.kind is ChangeKind.REMOVED:
                self._reactor.callLater(SOONEST, self._endIfDead, attachment, server)
        if change.kind in (ChangeKind.ADDED, ChangeKind.REMOVED):
            self._retries.forget(place)
        self._retries.hasten(place)
        self.look()

    def ended(self, attachment: Attachment) -> None:
        """Reconcile after the end of a session."""
        server = self._view.servers.of(attachment.server)
        self._retries.hasten()  # a port is free again
        if self._reactor.seconds() - attachment.since < LASTING_SECONDS:
            self._retries.failed(attachment.place, "its session ended at once")
        else:
            self._retries.forget(attachment.place)
        self._retries.lost(attachment.place, attachment.holder, server)
        if server is not None:
            server.verify()
        self._notifier.lost(attachment, "its session has ended")
        self.look()

    async def attach(self, desired: DesiredAttachment, found: RemoteDevice) -> Attachment:
        """
        Attach a device now, or join the attempt in progress.

        @raise AttachFailed: it could not be attached.
        """
        attachment = self._view.attachments.of(desired.name)
        if attachment is not None:
            return attachment
        result: Deferred[Attachment] = Deferred()
        attempt = self._attempts.get(desired.name) or _Attempt(found)
        attempt.results.append(result)
        if desired.name not in self._attempts:
            self._begin(desired, attempt)
        return await result

    async def adopt(self, found: RemoteDevice, desired: Callable[[], DesiredAttachment]) -> bool:
        """
        Keep a device attached that another program has attached to this machine.

        @param desired: called if there is such a device.
        @return: is there?
        """
        place = placeOf(found)
        if found.device.state is not DeviceState.IN_USE or self.isAttaching(place):
            return False
        attached = await self._adoption.portOf(found)
        if attached is None or self.isAttaching(place):
            return False
        if self._view.attachments.at(place) is None:
            self._adoption.adopt(attached, found, desired())
        return True

    async def detach(self, attachment: Attachment) -> None:
        """
        Detach a device; it is attached again if it is still desired.

        @raise AttachFailed: it is still attached. That is retried if it is not desired.
        """
        attachments = self._view.attachments
        attachments.remove(attachment)
        try:
            await self._operations.detach(attachment, attachment.unbinds)
            self._notifier.lost(attachment, "detached by the service")
        except AttachFailed as error:
            self._retries.failed(attachment.place, str(error))
            if attachments.of(attachment.desired.name) is None:
                attachments.add(attachment)
            raise
        finally:
            self.look()

    @contextlib.contextmanager
    def reserve(self, place: Place, owner: str | None) -> Iterator[None]:
        """
        Do not attach a device for anything else while a program acquires it.

        @param owner: the owner of the requested lease.
        """
        self._reserved.append((place, owner))
        try:
            yield
        finally:
            self._reserved.remove((place, owner))
            self.look()

    def isReserved(self, place: Place, owner: str | None) -> bool:
        """Is a device reserved for this owner?"""
        return (place, owner) in self._reserved

    def isTaken(self, name: str, found: RemoteDevice) -> bool:
        """Has a desired attachment a device, or is another device being attached for it?"""
        attempt = self._attempts.get(name)
        isOther = attempt is not None and placeOf(attempt.found) != placeOf(found)
        return isOther or self._view.attachments.of(name) is not None

    def isAttaching(self, place: Place) -> bool:
        """Is a device being attached?"""
        return any(placeOf(attempt.found) == place for attempt in self._attempts.values())

    async def finished(self, name: str) -> None:
        """Wait for the end of the attempt for a desired attachment, if there is one."""
        attempt = self._attempts.get(name)
        if attempt is not None:
            ended: Deferred[None] = Deferred()
            attempt.ended.append(ended)
            await ended

    def isAvailable(self, found: RemoteDevice) -> bool:
        """Can a device be attached, as far as its state is known?"""
        isFree = found.device.state is not DeviceState.IN_USE or self._isDeadSession(found)
        return isFree and not self._retries.isPausing(placeOf(found))

    def _reconcile(self) -> None:
        if not self._isRunning:
            return
        view = self._view
        view.desired.observe(view.servers.found())
        self._adoption.identify()
        for attachment in view.attachments:
            isPausing = self._retries.isPausing(attachment.place)
            if not (self._isStillDesired(attachment) or isPausing):
                self._start(self.detach(attachment), attachment)
        if not self._isTidy and not self._adoption.isWaiting:
            self._isTidy = True
            self._notifier.tidy(
                desired for desired in view.desired if view.attachments.of(desired.name) is None
            )
        for desired in view.desired:
            if desired.name not in self._attempts and view.attachments.of(desired.name) is None:
                found = self._candidate(desired)
                if found is not None:
                    self._begin(desired, _Attempt(found))
        self._setAlarm()

    def _isStillDesired(self, attachment: Attachment) -> bool:
        """
        Is it still desired, perhaps with other settings? Then these are taken over.
        """
        server = self._view.origin(attachment.attached)
        desired = self._view.desired.get(attachment.desired.name)
        if desired is None or server is None:
            return False
        found = RemoteDevice(server=server.server, device=attachment.device, raw={})
        if not desired.matches(found):
            return False
        attachment.server = server.server
        if attachment.desired != desired:
            attachment.desired = desired
            self._notifier.relink(attachment)
        return True

    def _candidate(self, desired: DesiredAttachment) -> RemoteDevice | None:
        """
        The first selected device that can be attached.
        """
        if self._adoption.mayFulfil(desired):
            return None
        taken = {attachment.place for attachment in self._view.attachments}
        taken.update(place for place, _ in self._reserved)
        for found in desired.among(self._view.servers.found()):
            place = placeOf(found)
            isTaken = place in taken or self.isAttaching(place)
            if not isTaken and desired.mayAttach(found.device) and self.isAvailable(found):
                return found
        return None

    def _isDeadSession(self, found: RemoteDevice) -> bool:
        return self._retries.isDeadSession(found, self._view.servers.of(found.server))

    def _begin(self, desired: DesiredAttachment, attempt: _Attempt) -> None:
        self._attempts[desired.name] = attempt
        work = Deferred.fromCoroutine(self._try(desired, attempt))
        work.addErrback(self._bug, desired, attempt)
        work.addBoth(lambda _: self._attemptEnded(desired, attempt))

    async def _try(self, desired: DesiredAttachment, attempt: _Attempt) -> None:
        found = attempt.found
        isDead = self._isDeadSession(found)
        try:
            attached, connection, bound = await self._operations.attach(
                found, desired.owner, isDead
            )
        except AttachFailed as error:
            self._failed(desired, attempt, error)
            return
        device = self._view.now(found).device
        attachment = Attachment(
            desired=desired,
            server=found.server,
            device=device,
            attached=attached,
            connection=connection,
            bound=bound,
            since=self._reactor.seconds(),
            holder=device.holder,
        )
        self._view.attachments.add(attachment)
        self._notifier.attached(attachment)
        _settle(attempt, lambda result: result.callback(attachment))

    def _failed(self, desired: DesiredAttachment, attempt: _Attempt, error: AttachFailed) -> None:
        if self._retries.failed(placeOf(attempt.found), str(error)):
            self._notifier.failed(desired, attempt.found, str(error))
        _settle(attempt, lambda result: result.errback(Failure(error)))

    def _attemptEnded(self, desired: DesiredAttachment, attempt: _Attempt) -> None:
        del self._attempts[desired.name]
        self._noteIdle()
        self.look()
        for ended in attempt.ended:
            ended.callback(None)

    def _endIfDead(self, attachment: Attachment, server: ServerConnection) -> None:
        """
        Detach a device whose server shows that it is not imported: its connection is dead.
        """
        attachments = self._view.attachments
        device = server.inventory.same(attachment.device)
        isInUse = device is not None and device.state is DeviceState.IN_USE
        isCurrent = attachments.of(attachment.desired.name) is attachment
        if self._isRunning and isCurrent and not isInUse:
            attachments.remove(attachment)
            detaching = self._operations.detach(attachment, unbind=False)
            work = self._start(detaching, attachment)
            work.addBoth(lambda _: self.ended(attachment))

    def _start(self, detaching: Any, attachment: Attachment) -> Deferred[None]:
        work: Deferred[None] = Deferred.fromCoroutine(detaching)
        return work.addErrback(self._stillAttached, attachment)

    def _noteIdle(self) -> None:
        if not (self._isRunning or self._attempts):
            self._idle.fire()

    def _setAlarm(self) -> None:
        if self._alarm is not None and self._alarm.active():
            self._alarm.cancel()
        now = self._reactor.seconds()
        times = [each for each in (*self._retries.times(), self._adoption.until) if each > now]
        if times:
            self._alarm = self._reactor.callLater(min(times) - now, self.look)

    def _stillAttached(self, failure: Failure, attachment: Attachment) -> None:
        if not failure.check(AttachFailed):
            self._log.failure("bug while detaching {device}", failure, device=attachment.device)
            return
        self._log.warn(
            "{device} is still attached: {error}",
            device=str(attachment.device),
            error=str(failure.value),
        )

    def _bug(self, failure: Failure, desired: DesiredAttachment, attempt: _Attempt) -> None:
        self._log.failure("bug while attaching {device}", failure, device=str(attempt.found))
        self._failed(desired, attempt, AttachFailed("an internal error: see the service's log"))


def _settle(attempt: _Attempt, settle: Callable[[Deferred[Attachment]], None]) -> None:
    results, attempt.results = attempt.results, []
    for result in results:
        settle(result)
