"""
Authorization: applies the configuration's C{access} to clients and devices.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence

import msgspec
from twisted.logger import Logger

from usbip_server import DOCUMENTS
from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import DeviceNotFound, NotAllowed, UnknownToken
from usbip_server.model.policy import (
    BUILT_IN,
    AccessPreset,
    Policy,
    Principal,
    Right,
    several,
    within,
)
from usbip_server.model.requests import DeviceRequest, Request
from usbip_server.model.selector import select
from usbip_server.model.tokens import isHashOf
from usbip_server.net.onlink import SHARED, Network, Networks
from usbip_server.server.access.ratelimit import TokenRateLimiter
from usbip_server.server.config import LiveSettings

Devices = tuple[UsbDevice, ...]

Unavailable = Callable[[], Sequence[tuple[UsbDevice, str]]]

REASONS = 3
"""Devices that cannot be selected of which an error contains the reason; of more it has none."""

REMEMBERED = 4096
"""Principals whose rights are cached."""

SEEING = (Right.LIST, Right.FIND, Right.WATCH)

WHERE = "`access` in the daemon's configuration says who may"


def rightOf(kind: type[Request]) -> Right:
    """The right with the name of a kind of command."""
    return Right(kind.__struct_config__.tag)


def rightsOf(command: DeviceRequest) -> tuple[Right, ...]:
    """All rights that a command needs."""
    isForced = getattr(command, "force", False)
    right = rightOf(type(command))
    return (right, Right.FORCE) if isForced else (right,)


class Rights:
    """
    The rights of one client.
    """

    def __init__(self, policy: Policy, principal: Principal) -> None:
        self._policy = policy
        self._principal = principal
        self._allow, self._deny = (
            [grant for grant in grants if policy.isAny(several(grant.who), principal)]
            for grants in (policy.allow, policy.deny)
        )
        self._allowed = frozenset(filter(self._isAllowed, Right))
        self._dependent = frozenset(filter(self._depends, Right))

    def may(self, right: Right, device: UsbDevice) -> bool:
        """
        Is it allowed for a device? Some rule allows it, and none denies it or would deny it if
        all of the device were known.
        """
        return any(grant.covers(right, device) for grant in self._allow) and not any(
            grant.mayCover(right, device) for grant in self._deny
        )

    @property
    def hasAny(self) -> bool:
        """Is anything allowed?"""
        return bool(self._allowed)

    def mayAny(self, right: Right) -> bool:
        """Is it allowed for any device?"""
        return right in self._allowed

    def among(self, right: Right, devices: Devices) -> Devices:
        """The devices for which it is allowed: the same tuple if it is allowed for all."""
        if right not in self._dependent:
            return devices if right in self._allowed else ()
        return tuple(device for device in devices if self.may(right, device))

    def require(self, right: Right, device: UsbDevice | None = None) -> None:
        """
        @param device: C{None}: is it allowed for any device?
        @raise NotAllowed: it is not allowed.
        """
        allowed = right in self._allowed if device is None else self.may(right, device)
        if not allowed:
            what = f"{right.value} {device}" if device else right.value
            advice = adviceFor(self._policy, self._principal)
            raise NotAllowed(f"{self._principal} may not {what}: {advice}", device)

    def select(
        self, command: DeviceRequest, devices: Devices, unavailable: Unavailable = list
    ) -> UsbDevice:
        """
        Return the one device that a command selects, among those it is allowed for.

        @param unavailable: returns devices that cannot be selected, with the reason of each. If the
            command is about one of them and the client may see it, the reason is in the error.
        @raise NotAllowed: it is not allowed for that device, which the client may see.
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
            try:
                device = select(command, tuple(filter(self.sees, devices)))
            except DeviceNotFound as error:
                raise self._because(error, command, unavailable) from None
            for right in rights:
                self.require(right, device)
            raise

    def _because(
        self, error: DeviceNotFound, command: DeviceRequest, unavailable: Unavailable
    ) -> DeviceNotFound:
        """Add to an error why the devices that a command is about cannot be selected."""
        reasons = [
            reason
            for device, reason in unavailable()
            if command.selector.matches(device) and self.sees(device)
        ]
        if not 0 < len(reasons) <= REASONS:
            return error
        return DeviceNotFound(f"{error}: {'; '.join(reasons)}")

    def sees(self, device: UsbDevice) -> bool:
        """May the client see the device at all?"""
        return any(self.may(right, device) for right in SEEING)

    def _isAllowed(self, right: Right) -> bool:
        """Is it allowed for any device, plugged in or not?"""
        return any(grant.isAbout(right) for grant in self._allow) and not any(
            grant.isAbout(right) and grant.devices is None for grant in self._deny
        )

    def _depends(self, right: Right) -> bool:
        """Does it depend on the device whether it is allowed?"""
        about = [grant for grant in (*self._allow, *self._deny) if grant.isAbout(right)]
        return any(grant.devices is not None for grant in about)


class Authorizer:
    """
    Identifies clients by their tokens, and determines the rights of each.
    """

    _log = Logger()

    def __init__(
        self,
        settings: LiveSettings,
        seconds: Callable[[], float],
        networks: Callable[[], Networks] = tuple,
    ) -> None:
        """
        @param seconds: the reactor's clock.
        @param networks: returns the networks of this machine: the same tuple until they change.
        """
        self._settings = settings
        self._limiter = TokenRateLimiter(seconds)
        self._policy = settings.access
        self._findNetworks = networks
        self._networks: Networks = ()
        self._rights: dict[Principal, Rights] = {}

    def logPreset(self) -> None:
        """Log the access policy if it is one of the presets."""
        networks = [str(it) for it in self._findNetworks() if not _isPrivate(it)]
        for preset in AccessPreset:
            if self._settings.access == preset.policy:
                isMore = preset is AccessPreset.PRIVATE and networks
                more = "; that includes {networks}" if isMore else ""
                self._log.info(
                    "access is {word}: {meaning}" + more,
                    word=preset.value,
                    meaning=MEANING[preset],
                    networks=", ".join(networks),
                )

    def of(self, principal: Principal) -> Rights:
        """The rights of a client."""
        networks = self._findNetworks()
        if self._policy is not self._settings.access or self._networks is not networks:
            self._policy, self._networks = self._settings.access, networks
            self._rights.clear()
        known = self._rights.get(principal)
        if known is None:
            if len(self._rights) >= REMEMBERED:
                self._rights.clear()
            isOnLink = within(principal.address, map(str, networks))
            near = msgspec.structs.replace(principal, isOnLink=isOnLink)
            known = self._rights[principal] = Rights(self._policy, near)
        return known

    def identify(self, peer: Principal, token: str | None) -> Principal:
        """
        Add to a client what its token proves.

        @raise UnknownToken: the token is unknown.
        """
        if token is None:
            return peer
        # All hashes are compared even after a match, so that the time taken reveals nothing.
        known = [
            (name, hashed)
            for name, who in self._settings.access.principals.items()
            for hashed in several(who.token)
            if isHashOf(hashed, token)
        ]
        if not known:
            self._limiter.failed(peer)
            raise UnknownToken(f"the token that {peer} shows is not known here: {WHERE}")
        return msgspec.structs.replace(
            peer, token=known[0][0], hashes=tuple(hashed for _, hashed in known)
        )

    def isSlow(self, peer: Principal) -> bool:
        """Has a client sent so many wrong tokens that the refusal of the next one is delayed?"""
        return self._limiter.isSlow(peer)


def adviceFor(policy: Policy, principal: Principal) -> str:
    """
    The end of a refusal: with a preset, what to write into the configuration to allow a client.
    """
    range_ = _rangeOf(principal.address)
    for preset in (AccessPreset.PRIVATE, AccessPreset.LOCAL):
        if policy == preset.policy and range_ is not None:
            return (
                f"the daemon's `access` is {preset.value}. To allow this client too, write in its "
                f'configuration: access: {{principals: {{guest: {{address: "{range_}"}}}}, '
                f"allow: [{{who: [{preset.value}, guest]}}]}}"
            )
    return WHERE


def _rangeOf(address: str) -> str | None:
    """
    The range to allow for a client: its address, or the network of which it may have another
    address soon; C{None}: it has no address.
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    if found in SHARED:
        return str(SHARED)
    return str(found if found.version == 4 else ipaddress.ip_network((found.packed, 64), False))


def _isPrivate(network: Network) -> bool:
    return within(str(network.network_address), BUILT_IN["private"] or ())


MEANING = {
    AccessPreset.OPEN: "everybody who reaches this daemon may do everything",
    AccessPreset.PRIVATE: "everybody with an address in private, link-local and loopback ranges, "
    "or on a network of this machine, "
    f"may do everything, nobody else anything ({DOCUMENTS}/reference/configuration.md, `access`)",
    AccessPreset.LOCAL: "everybody on this machine may do everything, nobody else anything",
}
