"""
A device that a program asks for: it may have to wait for it, want it for a time, or take it from
somebody.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall

from usbip_server.client.devices import RemoteDevice
from usbip_server.client.service.conflicts import Conflicts, Kept, Rollback
from usbip_server.client.service.devices.adoption import Adoption
from usbip_server.client.service.devices.attachments import Attachments, placeOf
from usbip_server.client.service.devices.desired import (
    DesiredAttachment,
    DesiredAttachments,
    isLeasedBy,
)
from usbip_server.client.service.devices.events import ServiceEvents
from usbip_server.client.service.devices.operations import CannotPlug, Operations
from usbip_server.client.service.devices.reconciler import Reconciler
from usbip_server.client.service.devices.servers import Lookup, ServerPool
from usbip_server.client.service.messages import LocalAttach, LocalNotice
from usbip_server.model.device import DeviceState
from usbip_server.model.errors import DeviceLeased, DeviceNotFound, NotDone, ShareError, Unreachable
from usbip_server.model.replies import ReceivedNotice
from usbip_server.model.timestamps import timestamp
from usbip_server.net.caller import Caller
from usbip_server.runtime.latch import ChangeSignal

SHOWN = 5.0
"""Seconds for a server to tell of a lease that it has just granted."""


class NotHad(ShareError):
    """
    A device was found, but is not to be had.

    @ivar found: the device.
    """

    def __init__(self, found: RemoteDevice, error: ShareError) -> None:
        super().__init__(str(error))
        self.found = found


class Acquisition:
    """
    Gets it.

    @ivar heartbeat: seconds between signs of life to those who wait.
    """

    def __init__(
        self,
        reactor: Any,
        links: ServerPool,
        wants: DesiredAttachments,
        plugs: Attachments,
        keeping: Reconciler,
        plugging: Operations,
        orphans: Adoption,
        news: ServiceEvents,
        save: Callable[[], None],
    ) -> None:
        """
        @param reactor: provides C{IReactorTime}.
        @param save: called when something else is wanted than before.
        """
        self.heartbeat = 15.0
        self._reactor = reactor
        self._links = links
        self._lookup = Lookup(links)
        self._wants = wants
        self._plugs = plugs
        self._keeping = keeping
        self._plugging = plugging
        self._orphans = orphans
        self._news = news
        self._save = save
        self._obstacles = Conflicts(wants, plugs, keeping, news.now)
        self._waking = ChangeSignal(reactor)
        news.listen(lambda item: self._waking.look())
        self._undoing = Rollback(wants, plugs, keeping, plugging, self.look)

    async def attach(self, command: LocalAttach, caller: Caller) -> RemoteDevice:
        """
        Plug a device in, perhaps after a while.

        @raise NotHad: it cannot be had.
        @raise ShareError: no device is meant, or several are.
        """
        if not command.wait:
            return await self._attach(command, caller, 0.0)
        beats = LoopingCall(lambda: caller.tell(self._notice("heartbeat")))
        beats.clock = self._reactor
        beats.start(self.heartbeat, now=False)
        caller.whenGone(self.look)
        try:
            return await self._wait(command, caller, command.wait)
        finally:
            caller.forget(self.look)
            beats.stop()

    def look(self) -> None:
        """Something has happened: those who wait look again, in a moment."""
        self._waking.look()

    def leased(self, want: DesiredAttachment, found: RemoteDevice) -> ShareError:
        """
        Why a device that was leased here is not to be had by others.
        """
        return self._obstacles.leased(want, found)

    async def _wait(self, command: LocalAttach, caller: Caller, seconds: float) -> RemoteDevice:
        until = self._reactor.seconds() + seconds
        said = None
        while not caller.isGone:
            left = max(0.0, until - self._reactor.seconds())
            try:
                return await self._attach(command, caller, left)
            except (DeviceNotFound, Unreachable, Kept) as error:
                if not left or caller.isGone:
                    raise
                if said != str(error):
                    said = str(error)
                    caller.tell(self._notice("queued", message=said))
                await self._waking.something(left)
            except CancelledError:
                pass  # what was waited for is not what is meant any more
        raise NotDone("the client is gone")

    async def _attach(self, command: LocalAttach, caller: Caller, left: float) -> RemoteDevice:
        """
        @param left: how many seconds it may wait.
        """
        found = await self._chosen(command)
        claim = placeOf(found), command.owner
        try:
            obstacle = self._obstacles.of(command, found)
            if obstacle is not None and (not left or isinstance(obstacle, Kept)):
                raise obstacle
            if obstacle is None and await self._isHere(command, found):
                return found
            self._keeping.claimed.append(claim)
            isHad = False
            try:
                if left or command.lease or command.force:
                    found = await self._claim(command, found, caller, left)
                await self._plugIn(found, command.owner)
                isHad = True
                return found
            finally:
                self._keeping.claimed.remove(claim)
                self._keeping.look()
                if not isHad:
                    self._undoing.begin(found, command.owner)
        except (Unreachable, Kept) as error:
            if left:
                raise
            raise NotHad(found, error) from error
        except (CannotPlug, DeviceLeased) as error:
            raise NotHad(found, error) from error

    async def _chosen(self, command: LocalAttach) -> RemoteDevice:
        """
        The device that is meant, when nothing is being undone there any more.
        """
        while True:
            found = self._now(command)
            if not self._undoing.isAt(placeOf(found)):
                return found
            await self._waking.something(SHOWN)

    def _now(self, command: LocalAttach) -> RemoteDevice:
        return self._lookup.chosen(command, command.host, self._lookup.there(command.host))

    async def _isHere(self, command: LocalAttach, found: RemoteDevice) -> bool:
        """
        Is it plugged in here? What others have plugged in is kept from now on.

        @raise CannotPlug: its lease cannot be renewed.
        """
        place = placeOf(found)
        plug = self._plugs.at(place)
        if plug is not None:
            if command.lease is not None:
                await self._plugging.renew(found, _leaseIn(command))
            self._wants.confirm(plug.want)  # it may be here only as it could not be pulled out
            self._save()
            return True
        if command.lease is not None or command.force:
            return False
        if found.device.state is not DeviceState.IN_USE or self._keeping.isBusyAt(place):
            return False
        attached = await self._orphans.at(found)
        if attached is None or self._keeping.isBusyAt(place):
            return False
        if self._plugs.at(place) is None:
            self._orphans.adopt(attached, found, self._want(found, None))
        return True

    async def _claim(
        self, command: LocalAttach, found: RemoteDevice, caller: Caller, left: float
    ) -> RemoteDevice:
        """
        Have it bound for us, in our turn.
        """
        asked: dict[str, Any] = {"detail": bool(command.detail)}
        if left:
            asked["wait"] = left
        if command.lease is not None:
            asked["lease"] = _leaseIn(command)
        if command.force and self._obstacles.of(command, found) is None:
            asked["force"] = True  # not from others here: their lease is waited for
        told = partial(self._told, found, caller)
        turn = Deferred.fromCoroutine(self._plugging.claim(found, asked, told))
        bound = await self._waking.unless(
            turn, lambda: bool(left) and (caller.isGone or self._isOld(command, found))
        )
        await self._settled(command, bound)
        if left and caller.isGone:
            raise NotDone("the client is gone")
        return bound

    async def _settled(self, command: LocalAttach, bound: RemoteDevice) -> None:
        """
        A lease counts as long as its server tells of it: from now on. And who had the device
        here is about to lose it.

        @raise ShareError: that does not come to pass.
        """
        until = self._reactor.seconds() + SHOWN
        while True:
            found: RemoteDevice | None = bound
            if command.owner is not None:
                found = self._shown(bound, command.owner)
            obstacle = None if found is None else self._obstacles.of(command, found)
            if found is not None and obstacle is None:
                return
            if not await self._waking.something(until - self._reactor.seconds()):
                raise obstacle or CannotPlug(f"{bound.server} does not tell of the lease")

    def _shown(self, found: RemoteDevice, owner: str) -> RemoteDevice | None:
        link = self._links.of(found.server)
        now = None if link is None else link.inventory.same(found.device)
        if now is None or not isLeasedBy(owner, now):
            return None
        return msgspec.structs.replace(found, device=now)

    async def _plugIn(self, found: RemoteDevice, owner: str | None) -> None:
        before = self._wants.requested(found)
        want = self._want(found, owner)
        try:
            await self._keeping.now(want, found)
        except CannotPlug:
            if before is not None and before.owner != owner:
                self._wants.confirm(before)
            elif before is None and want.requested is not None:
                self._wants.withdraw(want.name)
            self._save()
            await self._keeping.finished(want.name)
            raise

    def _want(self, found: RemoteDevice, owner: str | None) -> DesiredAttachment:
        want = self._wants.request(found, lambda name: self._keeping.isTaken(name, found), owner)
        self._save()
        return want

    def _isOld(self, command: LocalAttach, found: RemoteDevice) -> bool:
        """
        Is it another device by now that is meant, or is it plugged in here? While its server is
        not watched nobody knows.
        """
        link = self._links.of(found.server)
        if link is not None and not link.isUp:
            return False
        try:
            now = self._now(command)
        except ShareError:
            return True
        stay = placeOf(found), found.device.deviceNumber
        if (placeOf(now), now.device.deviceNumber) != stay:
            return True
        obstacle = self._obstacles.of(command, now)
        isHere = self._plugs.at(placeOf(found)) is not None
        return isHere and (obstacle is None or isinstance(obstacle, Kept))

    def _told(self, found: RemoteDevice, caller: Caller, notice: ReceivedNotice) -> None:
        """
        Its server says where we are in its queue.
        """
        if notice.get("event") == "queued":
            said: dict[str, Any] = {"place": notice.get("place"), "message": notice.get("message")}
            if "data" in notice:
                said["data"] = msgspec.Raw(msgspec.json.encode(notice["data"]))
            caller.tell(self._notice("queued", server=found.server.name, **said))

    def _notice(self, word: str, **keys: Any) -> bytes:
        return LocalNotice(event=word, time=timestamp(self._news.now()), **keys).encode()


def _leaseIn(command: LocalAttach) -> dict[str, Any]:
    asked: dict[str, Any] = msgspec.to_builtins(command.lease)
    return asked
