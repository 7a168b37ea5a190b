"""
Who asks, and what the configuration's C{access} says of who may do what.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable, Mapping
from typing import Annotated, TypeVar, Union

import msgspec

from usbip_server.model.device import UsbDevice
from usbip_server.model.rules import UNSET, Match
from usbip_server.model.tokens import requireHash

LOCAL = "local"
"""What stands for an address where there is none: on a unix socket."""

_LOOPBACK = ("127.0.0.0/8", "::1")

_PRIVATE = (
    *_LOOPBACK,
    *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),  # RFC 1918
    *("169.254.0.0/16", "fe80::/10"),  # link-local: RFC 3927; RFC 4291, 2.5.6
    "fc00::/7",  # RFC 4193
)

T = TypeVar("T")

OneOrMany = Union[T, tuple[T, ...]]  # noqa: UP007 - "|" makes no generic alias at run time
"""In the file, one or a list."""


class Principal(msgspec.Struct, frozen=True):
    """
    Whoever is at the other end of a connection.

    @ivar address: the host's address, C{"192.0.2.7"}, or L{LOCAL} for a unix socket.
    @ivar uid: the user, on a unix socket.
    @ivar certificate: the name in its TLS certificate, which was verified.
    @ivar token: the name of the principal whose token it has shown.
    @ivar hashes: what the configuration keeps of that token: once it does not any more, it
        was shown in vain.
    """

    address: str
    uid: int | None = None
    certificate: str | None = None
    token: str | None = None
    hashes: tuple[str, ...] = ()

    @property
    def proof(self) -> str | None:
        """
        By what they are known, if it is more than an address: that can be somebody else's
        tomorrow.
        """
        return next(reversed(self._proofs), None)

    @property
    def _proofs(self) -> list[str]:
        """The strongest last."""
        kinds = ("uid", "certificate", "token")
        return [f"{kind} {it}" for kind in kinds if (it := getattr(self, kind)) is not None]

    def __str__(self) -> str:
        proofs = ", ".join(self._proofs)
        return f"{self.address} ({proofs})" if proofs else self.address


class Right(enum.Enum):
    """
    What can be allowed: the commands, the import of a device over USB/IP, and C{"force"}.
    """

    LIST = "list"
    FIND = "find"
    WATCH = "watch"
    ATTACH = "attach"
    DETACH = "detach"
    KICK = "kick"
    RENEW = "renew"
    FORCE = "force"
    """To disregard others' leases and sessions; needed beside the command."""

    IMPORT = "import"


class Who(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
):
    """
    A principal, as the configuration describes it: all that is given has to be true of
    somebody, and of a list one is enough.

    @ivar address: addresses and ranges of them, C{"192.168.7.0/24"}.
    @ivar token: hashes of tokens (L{usbip_server.model.tokens}).
    @ivar certificate: names in TLS certificates.
    @ivar uid: of a user of this machine, on a unix socket.
    """

    address: OneOrMany[str] = UNSET
    token: OneOrMany[str] = UNSET
    certificate: OneOrMany[str] = UNSET
    uid: OneOrMany[Annotated[int, msgspec.Meta(ge=0)]] = UNSET

    def __post_init__(self) -> None:
        if all(it is None for it in (self.address, self.token, self.certificate, self.uid)):
            raise ValueError("say who: `address`, `token`, `certificate` or `uid`")
        for text in several(self.address):
            _requireRange(text)
        for text in several(self.token):
            requireHash(text)
        if "" in several(self.certificate):
            raise ValueError("`certificate`: a name is empty")

    def isThis(self, principal: Principal) -> bool:
        """Is somebody this one?"""
        return (
            (self.address is None or within(principal.address, several(self.address)))
            and (self.token is None or not {*several(self.token)}.isdisjoint(principal.hashes))
            and (self.certificate is None or principal.certificate in several(self.certificate))
            and (self.uid is None or principal.uid in several(self.uid))
        )


class Grant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    Some may do something, or may not.

    @ivar who: names of principals.
    @ivar commands: what; C{None}: everything.
    @ivar devices: to which devices; C{None}: to all.
    """

    who: OneOrMany[str]
    commands: OneOrMany[Right] = UNSET
    devices: OneOrMany[Match] = UNSET

    def isAbout(self, right: Right) -> bool:
        """Does it say something of this?"""
        return self.commands is None or right in several(self.commands)

    def covers(self, right: Right, device: UsbDevice) -> bool:
        """Does it say something of doing this to a device?"""
        return self.isAbout(right) and (
            self.devices is None or any(match.meets(device) for match in several(self.devices))
        )


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    Who may do what: some C{allow} says so, and no C{deny} does.

    @ivar principals: what those are called that L{BUILT_IN} does not name.
    """

    principals: dict[str, Who] = {}
    allow: tuple[Grant, ...] = ()
    deny: tuple[Grant, ...] = ()

    def __post_init__(self) -> None:
        owners: dict[str, str] = {}
        for name, who in self.principals.items():
            if name in BUILT_IN:
                raise ValueError(f"`principals`: {name!r} is there already: choose another name")
            for kept in several(who.token):
                if owners.setdefault(kept, name) != name:
                    raise ValueError(
                        f"`principals.{name}.token`: it is that of {owners[kept]!r} too, and a "
                        "token says who somebody is: make another one"
                    )
        for key, grants in (("allow", self.allow), ("deny", self.deny)):
            for index, grant in enumerate(grants):
                for name in several(grant.who):
                    if name not in self.principals and name not in BUILT_IN:
                        known = ", ".join((*self.principals, *BUILT_IN))
                        raise ValueError(
                            f"`{key}.{index}.who`: there is no principal {name!r}, only {known}"
                        )

    def isAny(self, names: Iterable[str], principal: Principal) -> bool:
        """Is somebody one of those that are called this?"""
        return any(self._isThis(name, principal) for name in names)

    def _isThis(self, name: str, principal: Principal) -> bool:
        if name in self.principals:
            return self.principals[name].isThis(principal)
        ranges = BUILT_IN[name]
        isLocal = principal.address == LOCAL
        return ranges is None or isLocal or within(principal.address, ranges)


BUILT_IN: Mapping[str, tuple[str, ...] | None] = {
    "anyone": None,
    "private": _PRIVATE,
    "local": _LOOPBACK,
}
"""Principals that need no description. Whoever is on a unix socket is one of all of them: the
file's mode says who that can be."""


class AccessPreset(enum.Enum):
    """
    A L{Policy} in a word.
    """

    OPEN = "open"
    """Everybody may do everything."""

    PRIVATE = "private"
    """Everybody in private, link-local and loopback ranges may."""

    LOCAL = "local"
    """Everybody on this machine may."""

    @property
    def policy(self) -> Policy:
        """The same at length."""
        who = "anyone" if self is AccessPreset.OPEN else self.value
        return Policy(allow=(Grant(who=who),))


def several(given: OneOrMany[T] | None) -> tuple[T, ...]:
    """
    What stands in the file as one or as a list, as a tuple.
    """
    if given is None:
        return ()
    return given if isinstance(given, tuple) else (given,)


def within(address: str, ranges: Iterable[str]) -> bool:
    """
    Is an address in one of these ranges? The word for none is in none. A range with a zone
    (C{fe80::%eth0/64}; RFC 4007, 11) is for that interface only.
    """
    host, _, zone = address.partition("%")
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return False
    networks = map(ipaddress.ip_network, ranges)
    return any(found in network and _zone(network) in (None, zone) for network in networks)


def _requireRange(text: str) -> None:
    """
    @raise ValueError: this is no range of addresses, or one that nobody can be in.
    """
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"`address`: {error}") from None
    if getattr(network.network_address, "ipv4_mapped", None) is not None:
        raise ValueError(f"`address`: {text!r} is IPv4 in IPv6: write it as IPv4, 192.0.2.0/24")


def _zone(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str | None:
    return getattr(network.network_address, "scope_id", None)


def sameHost(one: str, other: str) -> bool:
    """
    Do two addresses belong to one machine, as far as that can be told from them?
    """
    return one == other or (_isHere(one) and _isHere(other))


def _isHere(address: str) -> bool:
    return address == LOCAL or within(address, _LOOPBACK)
