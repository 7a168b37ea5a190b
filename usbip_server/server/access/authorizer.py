"""
Who may do what, as things stand: the configuration's C{access}, applied.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from twisted.logger import Logger

from usbip_server import DOCUMENTS
from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import DeviceNotFound, NotAllowed
from usbip_server.model.policy import AccessPreset, Policy, Principal, Right, several
from usbip_server.model.requests import DeviceRequest, Request
from usbip_server.model.selector import select
from usbip_server.model.tokens import isHashOf
from usbip_server.server.access.ratelimit import TokenRateLimiter

Devices = tuple[UsbDevice, ...]

REMEMBERED = 4096
"""Principals whose rights are kept at hand."""

LOOKING = (Right.LIST, Right.FIND, Right.WATCH)

WHERE = "`access` in the daemon's configuration says who may"


def rightOf(command: Request) -> Right:
    """The right that a command is called after."""
    return Right(command.__struct_config__.tag)


def rightsOf(command: DeviceRequest) -> tuple[Right, ...]:
    """All that somebody needs for a command."""
    isForced = getattr(command, "force", False)
    return (rightOf(command), Right.FORCE) if isForced else (rightOf(command),)


class Rights:
    """
    What one principal may do.
    """

    def __init__(self, policy: Policy, principal: Principal) -> None:
        self._principal = principal
        self._allow, self._deny = (
            [grant for grant in grants if policy.isAny(several(grant.who), principal)]
            for grants in (policy.allow, policy.deny)
        )

    def may(self, right: Right, device: UsbDevice) -> bool:
        """May it do that to a device? Some rule allows it, and none denies it."""
        return any(grant.covers(right, device) for grant in self._allow) and not any(
            grant.covers(right, device) for grant in self._deny
        )

    def among(self, right: Right, devices: Devices) -> Devices:
        """The devices it may do that to: the same tuple if these are all."""
        if not self._depends(right):
            return devices if self._isAllowed(right) else ()
        return tuple(device for device in devices if self.may(right, device))

    def require(self, right: Right, device: UsbDevice | None = None) -> None:
        """
        @param device: C{None} for any one.
        @raise NotAllowed: it may not do that.
        """
        allowed = self._isAllowed(right) if device is None else self.may(right, device)
        if not allowed:
            what = f"{right.value} {device}" if device else right.value
            raise NotAllowed(f"{self._principal} may not {what}: {WHERE}", device)

    def select(self, command: DeviceRequest, devices: Devices) -> UsbDevice:
        """
        The one device that a command means, of those it may be carried out on.

        @raise NotAllowed: it may not, but whoever asks may see the device.
        @raise ShareError: as L{usbip_server.model.selector.select}.
        """
        rights = rightsOf(command)
        among = devices
        for right in rights:
            self.require(right)
            among = self.among(right, among)
        try:
            return select(command, among)
        except DeviceNotFound:
            device = select(command, tuple(filter(self.sees, devices)))
            for right in rights:
                self.require(right, device)
            raise

    def sees(self, device: UsbDevice) -> bool:
        """May it know of a device?"""
        return any(self.may(right, device) for right in LOOKING)

    def _isAllowed(self, right: Right) -> bool:
        """May it do that to some device, if there is such a one?"""
        return any(grant.isAbout(right) for grant in self._allow) and not any(
            grant.isAbout(right) and grant.devices is None for grant in self._deny
        )

    def _depends(self, right: Right) -> bool:
        """Does it depend on the device?"""
        about = [grant for grant in (*self._allow, *self._deny) if grant.isAbout(right)]
        return any(grant.devices is not None for grant in about)


class Authorizer:
    """
    Knows who somebody is, and what they may do.
    """

    _log = Logger()

    def __init__(self, policy: Policy, seconds: Callable[[], float]) -> None:
        """
        @param seconds: the reactor's clock.
        """
        self._patience = TokenRateLimiter(seconds)
        self._policy = policy
        self._rights: dict[Principal, Rights] = {}

    def become(self, policy: Policy) -> None:
        """From now on this."""
        if policy != self._policy:
            self._policy = policy
            self._rights = {}
            self.tell()

    def tell(self) -> None:
        """Log who may do what, where it is everything or by default."""
        for openness in AccessPreset:
            if self._policy == openness.policy:
                self._log.info(
                    "access is {word}: {meaning}", word=openness.value, meaning=MEANING[openness]
                )

    def of(self, principal: Principal) -> Rights:
        """What somebody may do."""
        known = self._rights.get(principal)
        if known is None:
            if len(self._rights) >= REMEMBERED:
                self._rights.clear()
            known = self._rights[principal] = Rights(self._policy, principal)
        return known

    def identify(self, peer: Principal, token: str | None) -> Principal:
        """
        Who somebody is who shows a token.

        @raise NotAllowed: it is none of ours, or too many were not.
        """
        if token is None:
            return peer
        self._patience.require(peer)
        # All are tried, however early the right one is found: how long it takes tells nothing.
        known = [
            (name, kept)
            for name, who in self._policy.principals.items()
            for kept in several(who.token)
            if isHashOf(kept, token)
        ]
        if not known:
            self._patience.failed(peer)
            raise NotAllowed(f"the token that {peer} shows is not known here: {WHERE}")
        return msgspec.structs.replace(
            peer, token=known[0][0], hashes=tuple(kept for _, kept in known)
        )


MEANING = {
    AccessPreset.OPEN: "everybody who reaches this daemon may do everything",
    AccessPreset.PRIVATE: "everybody with an address in private, link-local and loopback ranges "
    f"may do everything, nobody else anything ({DOCUMENTS}/reference/configuration.md, `access`)",
    AccessPreset.LOCAL: "everybody on this machine may do everything, nobody else anything",
}
