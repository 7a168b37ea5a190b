"""
Keeps devices plugged in that are wanted, whatever happens to them, to their servers and to the
network.

There is what is wanted, and what there is; whoever finds a difference sees to it. It is looked
for whenever anything has happened, and when a pause is over; never just so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from usbip_server.client.devices import RemoteDevice
from usbip_server.client.service.devices.adoption import Adoption
from usbip_server.client.service.devices.attachments import Attachment, Attachments, Place, placeOf
from usbip_server.client.service.devices.desired import DesiredAttachment, DesiredAttachments
from usbip_server.client.service.devices.notifier import Notifier
from usbip_server.client.service.devices.operations import CannotPlug, Operations
from usbip_server.client.service.devices.retries import AT_ONCE, RetrySchedule
from usbip_server.client.service.devices.servers import ServerConnection, ServerPool
from usbip_server.model.device import DeviceState
from usbip_server.model.inventory import Change, ChangeKind
from usbip_server.runtime.latch import Latch

LASTING = 5.0
"""Seconds; what ends sooner has not worked."""

FREEABLE = (DeviceState.FREE, DeviceState.BOUND, DeviceState.ERROR)
"""In which a device may be had."""


class Reconciler:
    """
    Does it.

    @ivar claimed: devices that are somebody else's to ask for: where, and for which owner.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        links: ServerPool,
        wants: DesiredAttachments,
        plugs: Attachments,
        plugging: Operations,
        orphans: Adoption,
        telling: Notifier,
        troubles: RetrySchedule,
    ) -> None:
        """
        @param reactor: provides C{IReactorTime}.
        """
        self.claimed: list[tuple[Place, str | None]] = []
        self._reactor = reactor
        self._links = links
        self._wants = wants
        self._plugs = plugs
        self._plugging = plugging
        self._orphans = orphans
        self._telling = telling
        self._troubles = troubles
        self._isRunning = False
        self._isTidy = False
        self._isIdle = Latch(reactor)
        self._due: IDelayedCall | None = None
        self._alarm: IDelayedCall | None = None
        self._busy: dict[str, RemoteDevice] = {}
        self._waiting: dict[str, list[Deferred[Attachment]]] = {}
        self._ending: dict[str, list[Deferred[None]]] = {}

    def start(self) -> None:
        """Begin to look."""
        self._isRunning = True
        self.look()

    def stop(self) -> None:
        """Begin nothing more."""
        self._isRunning = False
        for timer in (self._due, self._alarm):
            if timer is not None and timer.active():
                timer.cancel()
        self._notice()

    async def idle(self, seconds: float) -> None:
        """After C{stop}: wait until nothing is being plugged in any more."""
        await self._isIdle.within(seconds)

    def look(self) -> None:
        """Something has happened: see what is to be done, in a moment."""
        if self._isRunning and (self._due is None or not self._due.active()):
            self._due = self._reactor.callLater(0, self._lookNow)

    def changed(self, link: ServerConnection, change: Change) -> None:
        """
        Something has happened to a device.
        """
        device = change.device
        place = link.server.name, device.busId
        plug = self._plugs.at(place)
        if plug is not None and plug.device.deviceNumber == device.deviceNumber:
            plug.become(device)
            if device.state is not DeviceState.IN_USE or change.kind is ChangeKind.REMOVED:
                self._reactor.callLater(AT_ONCE, self._suspect, plug, link)
        if change.kind in (ChangeKind.ADDED, ChangeKind.REMOVED):
            self._troubles.forget(place)
        self._troubles.hurry(place)
        self.look()

    async def now(self, want: DesiredAttachment, found: RemoteDevice) -> Attachment:
        """
        Have a device, or say why not.

        @raise CannotPlug: that.
        """
        plug = self._plugs.of(want.name)
        if plug is not None:
            return plug
        waiting: Deferred[Attachment] = Deferred()
        self._waiting.setdefault(want.name, []).append(waiting)
        if want.name not in self._busy:
            self._begin(want, found)
        return await waiting

    def isTaken(self, name: str, found: RemoteDevice) -> bool:
        """Has a want a device, or is it just getting another one than this?"""
        busy = self._busy.get(name)
        isOther = busy is not None and placeOf(busy) != placeOf(found)
        return isOther or self._plugs.of(name) is not None

    def isBusyAt(self, place: Place) -> bool:
        """Is a device just being plugged in?"""
        return place in map(placeOf, self._busy.values())

    async def finished(self, name: str) -> None:
        """If a device is just being plugged in for a want: wait until it is, or is not."""
        if name in self._busy:
            ending: Deferred[None] = Deferred()
            self._ending.setdefault(name, []).append(ending)
            await ending

    async def letGo(self, plug: Attachment) -> None:
        """
        Pull a device out; it stays so if it is not wanted any more.

        @raise CannotPlug: it is still there, and is tried again if it is not wanted.
        """
        self._plugs.remove(plug)
        busId, port, owner = plug.device.busId, plug.attached.port, plug.want.owner
        try:
            await self._plugging.pullOut(plug.server, busId, port, plug.unbinds, owner)
            self._telling.lost(plug, "it was let go")
        except CannotPlug as error:
            self._troubles.note(plug.place, str(error))
            if self._plugs.of(plug.want.name) is None:
                self._plugs.add(plug)
            raise
        finally:
            self.look()

    def over(self, plug: Attachment) -> None:
        """A device was lost."""
        link = self._links.of(plug.server)
        self._troubles.hurry()  # now there is a port that was not free before
        if self._reactor.seconds() - plug.since < LASTING:
            self._troubles.note(plug.place, "it was lost at once")
        else:
            self._troubles.forget(plug.place)
        self._troubles.lost(plug.place, plug.holder, link)
        if link is not None:
            link.doubt()
        self._telling.lost(plug, "its session has ended")
        self.look()

    def _lookNow(self) -> None:
        if not self._isRunning:
            return
        self._wants.endLeases(self._links.found())
        self._orphans.look()
        for plug in self._plugs:
            if not (self._isStillWanted(plug) or self._troubles.isPausing(plug.place)):
                Deferred.fromCoroutine(self.letGo(plug)).addErrback(self._stays, plug)
        if not self._isTidy and not self._orphans.isWaiting:
            self._isTidy = True
            self._telling.tidy(want for want in self._wants if self._plugs.of(want.name) is None)
        for want in self._wants:
            if want.name not in self._busy and self._plugs.of(want.name) is None:
                found = self._candidate(want)
                if found is not None:
                    self._begin(want, found)
        self._setAlarm()

    def _suspect(self, plug: Attachment, link: ServerConnection) -> None:
        """
        Its server says that nobody has it: if that is so, and its connection has not ended, that
        is dead.
        """
        device = link.inventory.same(plug.device)
        isInUse = device is not None and device.state is DeviceState.IN_USE
        if self._isRunning and self._plugs.of(plug.want.name) is plug and not isInUse:
            self._plugs.remove(plug)
            work = Deferred.fromCoroutine(
                self._plugging.pullOut(plug.server, plug.device.busId, plug.attached.port, False)
            )
            work.addErrback(self._stays, plug)
            work.addBoth(lambda _: self.over(plug))

    def _isStillWanted(self, plug: Attachment) -> bool:
        """
        The configuration may be another one by now: then what it says is true of what was
        plugged in before.
        """
        record = plug.attached.record
        link = None if record is None else self._links.at(record.host, record.service)
        want = self._wants.get(plug.want.name)
        if want is None or link is None:
            return False
        found = RemoteDevice(server=link.server, device=plug.device, raw={})
        if not want.isFor(found):
            return False
        plug.server = link.server
        if plug.want != want:
            plug.want = want
            self._telling.relink(plug)
        return True

    def _candidate(self, want: DesiredAttachment) -> RemoteDevice | None:
        """
        The first device that would do, of those that may be had.
        """
        if self._orphans.mayHave(want):
            return None
        taken = {plug.place for plug in self._plugs}.union(place for place, _ in self.claimed)
        for found in want.among(self._links.found()):
            place = placeOf(found)
            isTaken = place in taken or self.isBusyAt(place) or not want.mayHave(found.device)
            if not isTaken and self.isFree(found):
                return found
        return None

    def isFree(self, found: RemoteDevice) -> bool:
        """Is a device to be had at present, as far as is known?"""
        isOurs = found.device.state in FREEABLE or self._isOurs(found)
        return isOurs and not self._troubles.isPausing(placeOf(found))

    def _isOurs(self, found: RemoteDevice) -> bool:
        return self._troubles.isOurs(found, self._links.of(found.server))

    def _begin(self, want: DesiredAttachment, found: RemoteDevice) -> None:
        self._busy[want.name] = found
        work = Deferred.fromCoroutine(self._try(want, found))
        work.addErrback(self._bug, want, found)
        work.addBoth(self._done, want)

    async def _try(self, want: DesiredAttachment, found: RemoteDevice) -> None:
        try:
            isOurs = self._isOurs(found)
            attached, kept, bound = await self._plugging.plugIn(found, isOurs, want.owner)
        except CannotPlug as error:
            self._failed(want, found, error)
            return
        link = self._links.of(found.server)
        device = (link and link.inventory.same(found.device)) or found.device
        plug = Attachment(
            want, found.server, device, attached, kept, bound, self._reactor.seconds()
        )
        self._plugs.add(plug)
        self._telling.attached(plug)
        self._settle(want, lambda waiting: waiting.callback(plug))

    def _failed(self, want: DesiredAttachment, found: RemoteDevice, error: CannotPlug) -> None:
        if self._troubles.note(placeOf(found), str(error)):
            self._telling.failed(want, found, str(error))
        self._settle(want, lambda waiting: waiting.errback(Failure(error)))

    def _done(self, result: object, want: DesiredAttachment) -> None:
        self._busy.pop(want.name, None)
        self._notice()
        self.look()
        for ending in self._ending.pop(want.name, []):
            ending.callback(None)

    def _notice(self) -> None:
        if not (self._isRunning or self._busy):
            self._isIdle.happen()

    def _settle(
        self, want: DesiredAttachment, settle: Callable[[Deferred[Attachment]], None]
    ) -> None:
        for waiting in self._waiting.pop(want.name, []):
            settle(waiting)

    def _setAlarm(self) -> None:
        """
        Look again when the first pause is over.
        """
        if self._alarm is not None and self._alarm.active():
            self._alarm.cancel()
        now = self._reactor.seconds()
        later = [each for each in (*self._troubles.moments(), self._orphans.until) if each > now]
        if later:
            self._alarm = self._reactor.callLater(min(later) - now, self.look)

    def _stays(self, failure: Failure, plug: Attachment) -> None:
        if not failure.check(CannotPlug):
            self._log.failure("a bug in pulling a device out", failure)
            return
        self._log.warn(
            "{device} is still plugged in: {error}",
            device=str(plug.device),
            error=str(failure.value),
        )

    def _bug(self, failure: Failure, want: DesiredAttachment, found: RemoteDevice) -> None:
        self._log.failure("a bug in attaching {device}", failure, device=str(found))
        self._failed(want, found, CannotPlug("an error in the service: see its log"))
