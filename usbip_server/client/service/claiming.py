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

from usbip_server.caller import Caller
from usbip_server.client.core.answers import Notice
from usbip_server.client.core.devices import Found
from usbip_server.client.service.adopting import Orphans
from usbip_server.client.service.keeping import Keeping
from usbip_server.client.service.links import Links
from usbip_server.client.service.localreplies import LocalNotice
from usbip_server.client.service.localrequests import LocalAttach
from usbip_server.client.service.lookup import Lookup
from usbip_server.client.service.news import News
from usbip_server.client.service.plugging import CannotPlug, Plugging
from usbip_server.client.service.plugs import Plugs, placeOf
from usbip_server.client.service.waking import Waking
from usbip_server.client.service.wanted import Want, Wants, isLeasedBy
from usbip_server.device import DeviceState
from usbip_server.errors import DeviceLeased, DeviceNotFound, NotDone, ShareError, Unreachable
from usbip_server.timestamps import timestamp

SHOWN = 5.0
"""Seconds for a server to tell of a lease that it has just granted."""


class NotHad(ShareError):
    """
    A device was found, but is not to be had.

    @ivar found: the device.
    """

    def __init__(self, found: Found, error: ShareError) -> None:
        super().__init__(str(error))
        self.found = found


class Claiming:
    """
    Gets it.

    @ivar heartbeat: seconds between signs of life to those who wait.
    """

    def __init__(
        self,
        reactor: Any,
        links: Links,
        wants: Wants,
        plugs: Plugs,
        keeping: Keeping,
        plugging: Plugging,
        orphans: Orphans,
        news: News,
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
        self._waking = Waking(reactor, news)

    async def attach(self, command: LocalAttach, caller: Caller) -> Found:
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
        waiting = Deferred.fromCoroutine(self._wait(command, caller, command.wait))
        caller.whenGone(waiting.cancel)
        try:
            return await waiting
        except CancelledError:
            raise NotDone("the client is gone") from None
        finally:
            caller.forget(waiting.cancel)
            beats.stop()

    def leased(self, want: Want, found: Found) -> ShareError:
        """
        Why a device that was leased here is not to be had by others.
        """
        lease = found.device.lease
        if lease is None or not isLeasedBy(str(want.owner), found.device):
            return CannotPlug(f"leased by {want.owner}: {found.device}")
        left = None if lease.until is None else max(0.0, lease.until - self._news.now())
        return DeviceLeased(found.device, lease, left)

    async def _wait(self, command: LocalAttach, caller: Caller, seconds: float) -> Found:
        until = self._reactor.seconds() + seconds
        said = None
        while True:
            left = max(0.0, until - self._reactor.seconds())
            try:
                return await self._attach(command, caller, left)
            except (DeviceNotFound, Unreachable) as error:
                if not left:
                    raise
                if said != str(error):
                    said = str(error)
                    caller.tell(self._notice("queued", message=said))
                await self._waking.something(left)
            except CancelledError:
                if caller.isGone:
                    raise

    async def _attach(self, command: LocalAttach, caller: Caller, left: float) -> Found:
        """
        @param left: how many seconds it may wait.
        """
        found = self._lookup.chosen(command, command.host, self._lookup.there(command.host))
        place = placeOf(found)
        try:
            obstacle = self._obstacle(command, found)
            if obstacle is not None and not left:
                raise obstacle
            if obstacle is None and await self._isHere(command, found):
                return found
            if not (left or command.lease or command.force):
                return await self._plugIn(found, None)
            self._keeping.claimed.append(place)
            try:
                found = await self._claim(command, found, caller, left)
                return await self._plugIn(found, command.owner)
            finally:
                self._keeping.claimed.remove(place)
                self._keeping.look()
        except Unreachable as error:
            if left:
                raise
            raise NotHad(found, error) from error
        except (CannotPlug, DeviceLeased) as error:
            raise NotHad(found, error) from error

    def _obstacle(self, command: LocalAttach, found: Found) -> ShareError | None:
        """
        Why this machine itself does not let a program have a device: another one has it.
        """
        plug = self._plugs.at(placeOf(found))
        want = self._wants.requested(found) if plug is None else plug.want
        if want is None or want.owner == command.owner or (plug is None and command.force):
            return None
        if want.owner is not None and (plug is not None or isLeasedBy(want.owner, found.device)):
            return self.leased(want, found)
        if plug is None:
            return None
        return CannotPlug("it is plugged in here already, without a lease: detach it first")

    async def _isHere(self, command: LocalAttach, found: Found) -> bool:
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
        self, command: LocalAttach, found: Found, caller: Caller, left: float
    ) -> Found:
        """
        Have it bound for us, in our turn.
        """
        asked: dict[str, Any] = {"detail": bool(command.detail)}
        if left:
            asked["wait"] = left
        if command.lease is not None:
            asked["lease"] = _leaseIn(command)
        if command.force:
            asked["force"] = True
        told = partial(self._told, found, caller)
        turn = Deferred.fromCoroutine(self._plugging.claim(found, asked, told))
        bound = await self._waking.unless(turn, lambda: bool(left) and self._isOld(command, found))
        if command.owner is not None:
            await self._leaseShown(found, command.owner)
        return bound

    async def _leaseShown(self, found: Found, owner: str) -> None:
        """
        A lease counts as long as its server tells of it: from now on.
        """
        until = self._reactor.seconds() + SHOWN
        while True:
            link = self._links.of(found.server)
            now = None if link is None else link.inventory.same(found.device)
            if now is not None and isLeasedBy(owner, now):
                return
            if not await self._waking.something(until - self._reactor.seconds()):
                raise CannotPlug(f"{found.server} does not tell of the lease")

    async def _plugIn(self, found: Found, owner: str | None) -> Found:
        want = self._want(found, owner)
        try:
            await self._keeping.now(want, found)
        except CannotPlug:
            if want.requested is not None:
                self._wants.withdraw(want.name)
                self._save()
            if owner is not None:
                await self._plugging.release(found.server, found.device.busId, owner)
            raise
        return found

    def _want(self, found: Found, owner: str | None) -> Want:
        want = self._wants.request(found, lambda name: self._keeping.isTaken(name, found), owner)
        self._save()
        return want

    def _isOld(self, command: LocalAttach, found: Found) -> bool:
        """
        Is it another device by now that is meant, or is it plugged in here?
        """
        try:
            now = self._lookup.chosen(command, command.host, self._lookup.there(command.host))
        except ShareError:
            return True
        stay = placeOf(found), found.device.deviceNumber
        isSame = (placeOf(now), now.device.deviceNumber) == stay
        isHere = self._plugs.at(placeOf(found)) is not None
        return not isSame or (isHere and self._obstacle(command, found) is None)

    def _told(self, found: Found, caller: Caller, notice: Notice) -> None:
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
