"""
Why this machine itself does not let a program have a device: it is another one's here, or a
rule's.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from usbip_server.client.devices import RemoteDevice
from usbip_server.client.service.devices.attachments import Attachments, Place, placeOf
from usbip_server.client.service.devices.desired import (
    DesiredAttachment,
    DesiredAttachments,
    isLeasedBy,
)
from usbip_server.client.service.devices.operations import CannotPlug, Operations
from usbip_server.client.service.devices.reconciler import Reconciler
from usbip_server.client.service.messages import LocalAttach
from usbip_server.model.errors import DeviceLeased, ShareError


class Kept(CannotPlug):
    """
    A device is plugged in here without a lease, or is to be. No server knows of that.
    """


class Conflicts:
    """
    All of them.
    """

    def __init__(
        self,
        wants: DesiredAttachments,
        plugs: Attachments,
        keeping: Reconciler,
        now: Callable[[], float],
    ) -> None:
        """
        @param now: the time, in seconds since the epoch.
        """
        self._wants = wants
        self._plugs = plugs
        self._keeping = keeping
        self._now = now

    def of(self, command: LocalAttach, found: RemoteDevice) -> ShareError | None:
        """
        What is in a program's way.

        @return: C{None}: nothing; L{Kept}; or else whose lease.
        """
        plug = self._plugs.at(placeOf(found))
        isHere = plug is not None or self._keeping.isBusyAt(placeOf(found))
        want = self._wants.requested(found) if plug is None else plug.want
        owner = None if want is None else want.owner
        if owner == command.owner:
            return None
        if want is not None and owner is not None and (isHere or isLeasedBy(owner, found.device)):
            return self.leased(want, found)
        if isHere:
            return Kept("it is plugged in here already, without a lease: detach it first")
        if command.force or command.owner is None:
            return None
        if want is not None and owner is None:
            return Kept("it is attached here, without a lease, and only lost: detach it first")
        for rule in self._wants:
            isFor = rule.owner is None and self._plugs.of(rule.name) is None and rule.isFor(found)
            if isFor and rule.mayHave(found.device) and self._keeping.isFree(found):
                return Kept(f"{rule.name}, a rule here, is for it, and just about to have it")
        return None

    def leased(self, want: DesiredAttachment, found: RemoteDevice) -> ShareError:
        """
        Why a device that was leased here is not to be had by others.
        """
        lease = found.device.lease
        if lease is None or not isLeasedBy(str(want.owner), found.device):
            return CannotPlug(f"leased by {want.owner}: {found.device}")
        left = None if lease.until is None else max(0.0, lease.until - self._now())
        return DeviceLeased(found.device, lease, left)


class Rollback:
    """
    Gives it back, whoever is gone meanwhile.
    """

    _log = Logger()

    def __init__(
        self,
        wants: DesiredAttachments,
        plugs: Attachments,
        keeping: Reconciler,
        plugging: Operations,
        done: Callable[[], None],
    ) -> None:
        """
        @param done: called when one is given back.
        """
        self._wants = wants
        self._plugs = plugs
        self._keeping = keeping
        self._plugging = plugging
        self._done = done
        self._places: list[Place] = []

    def isAt(self, place: Place) -> bool:
        """Is a device just being given back?"""
        return place in self._places

    def begin(self, found: RemoteDevice, owner: str | None) -> None:
        """
        Give back what may be bound for somebody, if nobody here has it for the same owner, wants
        it, or is about to.
        """
        place = placeOf(found)
        plug = self._plugs.at(place)
        want = self._wants.requested(found) if plug is None else plug.want
        isMeant = want is not None and want.owner == owner
        if owner is None and not isMeant:
            isWanted = any(each.isFor(found) for each in self._wants)
            isMeant = isWanted or self._keeping.isBusyAt(place)
        if isMeant or (place, owner) in self._keeping.claimed:
            return
        self._places.append(place)
        self._keeping.claimed.append((place, owner))
        work = Deferred.fromCoroutine(self._plugging.giveBack(found, owner))
        work.addErrback(lambda failure: self._log.failure("a bug in giving back", failure))
        work.addBoth(lambda _: self._over(place, owner))

    def _over(self, place: Place, owner: str | None) -> None:
        self._places.remove(place)
        self._keeping.claimed.remove((place, owner))
        self._keeping.look()
        self._done()
