"""
Conflicts between the programs and rules of this machine over a device, which all are one client to
its server; and the rollback of a request that has failed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from usbip_server.client.devices import RemoteDevice
from usbip_server.client.service.devices.attachments import Place, placeOf
from usbip_server.client.service.devices.desiredstate import DesiredAttachment, isLeasedBy
from usbip_server.client.service.devices.operations import AttachFailed, Operations
from usbip_server.client.service.devices.reconciler import Reconciler
from usbip_server.client.service.devices.view import DeviceView
from usbip_server.client.service.messages import LocalAttach
from usbip_server.model.errors import DeviceLeased, ShareError
from usbip_server.runtime.latch import ChangeSignal


class KeptHere(AttachFailed):
    """
    A device is attached to this machine without a lease, or about to be.
    """


class Conflicts:
    """
    Finds what on this machine keeps a program from having a device.
    """

    def __init__(self, view: DeviceView, reconciler: Reconciler, now: Callable[[], float]) -> None:
        """
        @param now: the time, in seconds since the epoch.
        """
        self._view = view
        self._reconciler = reconciler
        self._now = now

    def of(self, command: LocalAttach, found: RemoteDevice) -> ShareError | None:
        """
        The conflict with a request.

        @return: C{None}, L{KeptHere}, or the error that names the lease of another program.
        """
        place = placeOf(found)
        isAttached = self._view.attachments.at(place) is not None
        isHere = isAttached or self._reconciler.isAttaching(place)
        desired = self._view.desiredFor(found)
        owner = None if desired is None else desired.owner
        if owner == command.owner:
            return None
        isLeased = owner is not None and (isHere or isLeasedBy(owner, found.device))
        if desired is not None and isLeased:
            return self.leased(desired, found)
        if isHere:
            return KeptHere("it is attached here already, without a lease: detach it first")
        if command.force or command.owner is None:
            return None
        if desired is not None and owner is None:
            return KeptHere(
                "it is to be attached here without a lease, and only lost for now: detach it first"
            )
        for rule in self._view.desired:
            if rule.owner is None and self._isAboutToAttach(rule, found):
                return KeptHere(f"the rule {rule.name} is about to attach it: detach it first")
        return None

    def _isAboutToAttach(self, rule: DesiredAttachment, found: RemoteDevice) -> bool:
        isUnattached = self._view.attachments.of(rule.name) is None
        isAllowed = rule.matches(found) and rule.mayAttach(found.device)
        return isUnattached and isAllowed and self._reconciler.isAvailable(found)

    def leased(self, desired: DesiredAttachment, found: RemoteDevice) -> ShareError:
        """
        The error for a device that was leased from this machine.
        """
        lease = found.device.lease
        if lease is None or not isLeasedBy(str(desired.owner), found.device):
            return AttachFailed(f"leased by {desired.owner}: {found.device}")
        left = None
        if lease.until is not None:  # by the server's clock, which may differ from this one's
            left = min(lease.ttl or math.inf, max(0.0, lease.until - self._now()))
        return DeviceLeased(found.device, lease, left)


class Rollback:
    """
    Unbinds devices that servers have bound for requests that have failed.
    """

    _log = Logger()

    def __init__(
        self,
        view: DeviceView,
        reconciler: Reconciler,
        operations: Operations,
        changes: ChangeSignal,
    ) -> None:
        """
        @param changes: signalled after each rollback.
        """
        self._view = view
        self._reconciler = reconciler
        self._operations = operations
        self._changes = changes
        self._places: list[Place] = []

    def isAt(self, place: Place) -> bool:
        """Is a device being rolled back?"""
        return place in self._places

    def begin(self, found: RemoteDevice, owner: str | None) -> None:
        """
        Roll a device back, unless it is desired, attached or reserved for the same owner.
        """
        place = placeOf(found)
        desired = self._view.desiredFor(found)
        isDesired = desired is not None and desired.owner == owner
        if owner is None and not isDesired:
            isDesired = any(each.matches(found) for each in self._view.desired)
            isDesired = isDesired or self._reconciler.isAttaching(place)
        if isDesired or self._reconciler.isReserved(place, owner):
            return
        work = Deferred.fromCoroutine(self._run(found, owner))
        work.addErrback(lambda failure: self._log.failure("bug during a rollback", failure))

    async def _run(self, found: RemoteDevice, owner: str | None) -> None:
        place = placeOf(found)
        self._places.append(place)
        try:
            with self._reconciler.reserve(place, owner):
                await self._operations.rollBack(found, owner)
        finally:
            self._places.remove(place)
            self._changes.notify()
