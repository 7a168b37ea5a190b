"""
Why this machine itself does not let a program have a device: it is another one's here, or a
rule's.
"""

from __future__ import annotations

from collections.abc import Callable

from usbip_server.client.core.devices import Found
from usbip_server.client.service.keeping import Keeping
from usbip_server.client.service.localrequests import LocalAttach
from usbip_server.client.service.plugging import CannotPlug
from usbip_server.client.service.plugs import Plugs, placeOf
from usbip_server.client.service.wanted import Want, Wants, isLeasedBy
from usbip_server.errors import DeviceLeased, ShareError


class Kept(CannotPlug):
    """
    A device is plugged in here without a lease, or is to be. No server knows of that.
    """


class Obstacles:
    """
    All of them.
    """

    def __init__(
        self, wants: Wants, plugs: Plugs, keeping: Keeping, now: Callable[[], float]
    ) -> None:
        """
        @param now: the time, in seconds since the epoch.
        """
        self._wants = wants
        self._plugs = plugs
        self._keeping = keeping
        self._now = now

    def of(self, command: LocalAttach, found: Found) -> ShareError | None:
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

    def leased(self, want: Want, found: Found) -> ShareError:
        """
        Why a device that was leased here is not to be had by others.
        """
        lease = found.device.lease
        if lease is None or not isLeasedBy(str(want.owner), found.device):
            return CannotPlug(f"leased by {want.owner}: {found.device}")
        left = None if lease.until is None else max(0.0, lease.until - self._now())
        return DeviceLeased(found.device, lease, left)
