"""
Access control: principals, and the policy in the configuration's C{access} block.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Annotated, TypeVar, Union

import msgspec

from usbip_server.model.device import UsbDevice
from usbip_server.model.devicerules import UNSET, Match
from usbip_server.model.tokens import requireHash

LOCAL = "local"
"""The address of all clients on unix sockets."""

_LOOPBACK = ("127.0.0.0/8", "::1")

_PRIVATE = (
    *_LOOPBACK,
    *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),  # RFC 1918
    *("169.254.0.0/16", "fe80::/10"),  # link-local: RFC 3927; RFC 4291, 2.5.6
    "fc00::/7",  # RFC 4193
)

T = TypeVar("T")

OneOrMany = Union[T, tuple[T, ...]]  # noqa: UP007 - "|" makes no generic alias at run time
"""A value in the configuration that may be given as one item or as a list."""


class Principal(msgspec.Struct, frozen=True, cache_hash=True):
    """
    The client at the other end of a connection, and how it is authenticated.

    @ivar address: the IP address, C{"192.0.2.7"}, or L{LOCAL} for a unix socket.
    @ivar uid: the user id of the process, on a unix socket.
    @ivar certificate: the name in its TLS certificate, which was verified.
    @ivar token: the name of the principal whose token the request contains.
    @ivar isOnLink: whether the address is on a network of this machine. Set where rights are
        determined.
    @ivar hashes: the hashes of that token in the configuration. A principal whose hash is removed
        from the configuration is not matched by them any more.
    """

    address: str
    uid: int | None = None
    certificate: str | None = None
    token: str | None = None
    hashes: tuple[str, ...] = ()
    isOnLink: bool = False

    @property
    def proof(self) -> str | None:
        """
        The strongest authentication, such as C{"token ci"}; C{None} if only the address is known,
        which another client may have later.
        """
        return next(reversed(self._proofs), None)

    @property
    def _proofs(self) -> list[str]:
        """All authentications, the strongest last."""
        kinds = ("uid", "certificate", "token")
        return [f"{kind} {it}" for kind in kinds if (it := getattr(self, kind)) is not None]

    def __str__(self) -> str:
        proofs = ", ".join(self._proofs)
        return f"{self.address} ({proofs})" if proofs else self.address


class Right(enum.Enum):
    """
    What a policy can allow: the commands, the import of a device over USB/IP, and C{"force"}.
    """

    LIST = "list"
    FIND = "find"
    WATCH = "watch"
    ATTACH = "attach"
    DETACH = "detach"
    KICK = "kick"
    RENEW = "renew"
    FORCE = "force"
    """To override leases and sessions of other clients; needed in addition to the command."""

    IMPORT = "import"

    METRICS = "metrics"
    """To read C{GET /metrics} and C{GET /health}."""

    __hash__ = object.__hash__  # C{Enum} computes the hash of the name for each look-up


class Who(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
):
    """
    The definition of a principal in the configuration. A client matches if it matches every field
    that is given; it matches a list if it matches one item.

    @ivar address: addresses and ranges, C{"192.168.7.0/24"}.
    @ivar token: hashes of tokens (L{usbip_server.model.tokens}).
    @ivar certificate: names in TLS certificates.
    @ivar uid: user ids of this machine, on unix sockets.
    """

    address: OneOrMany[str] = UNSET
    token: OneOrMany[str] = UNSET
    certificate: OneOrMany[str] = UNSET
    uid: OneOrMany[Annotated[int, msgspec.Meta(ge=0)]] = UNSET

    def __post_init__(self) -> None:
        if all(it is None for it in (self.address, self.token, self.certificate, self.uid)):
            raise ValueError("one of `address`, `token`, `certificate` and `uid` is required")
        for text in several(self.address):
            _requireRange(text)
        for text in several(self.token):
            requireHash(text)
        if "" in several(self.certificate):
            raise ValueError("`certificate`: a name must not be empty")

    def matches(self, principal: Principal) -> bool:
        """Whether a client matches the definition."""
        return (
            (self.address is None or within(principal.address, several(self.address)))
            and (self.token is None or not {*several(self.token)}.isdisjoint(principal.hashes))
            and (self.certificate is None or principal.certificate in several(self.certificate))
            and (self.uid is None or principal.uid in several(self.uid))
        )


class Grant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    An entry of C{allow} or C{deny}.

    @ivar who: names of principals.
    @ivar commands: the rights; C{None}: all rights.
    @ivar devices: the devices; C{None}: all devices.
    """

    who: OneOrMany[str]
    commands: OneOrMany[Right] = UNSET
    devices: OneOrMany[Match] = UNSET

    def isAbout(self, right: Right) -> bool:
        """Whether the entry contains a right."""
        return self.commands is None or right in several(self.commands)

    def covers(self, right: Right, device: UsbDevice) -> bool:
        """Whether the entry contains a right to a device. What is not known does not match."""
        return self.isAbout(right) and (
            self.devices is None or any(match.meets(device) for match in several(self.devices))
        )

    def mayCover(self, right: Right, device: UsbDevice) -> bool:
        """Whether it does, or may do so: something of the device is not known."""
        return self.isAbout(right) and (
            self.devices is None or any(match.mayMeet(device) for match in several(self.devices))
        )


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    The access policy: a client has a right if an entry of C{allow} contains it and no entry of
    C{deny} does.

    @ivar principals: definitions of principals by name, besides those in L{BUILT_IN}.
    """

    principals: dict[str, Who] = {}
    allow: tuple[Grant, ...] = ()
    deny: tuple[Grant, ...] = ()

    def __post_init__(self) -> None:
        owners: dict[str, str] = {}
        for name, who in self.principals.items():
            if name in BUILT_IN:
                raise ValueError(
                    f"`principals`: {name!r} is a built-in principal: choose another name"
                )
            for stored in several(who.token):
                if owners.setdefault(stored, name) != name:
                    raise ValueError(
                        f"`principals.{name}.token`: {owners[stored]!r} has the same token, and a "
                        "token identifies one principal: create another token"
                    )
        for key, grants in (("allow", self.allow), ("deny", self.deny)):
            for index, grant in enumerate(grants):
                for name in several(grant.who):
                    if name not in self.principals and name not in BUILT_IN:
                        known = ", ".join((*self.principals, *BUILT_IN))
                        raise ValueError(
                            f"`{key}.{index}.who`: unknown principal {name!r}; known are {known}"
                        )

    def isAny(self, names: Iterable[str], principal: Principal) -> bool:
        """Whether a client matches one of the principals with these names."""
        return any(self._matches(name, principal) for name in names)

    def _matches(self, name: str, principal: Principal) -> bool:
        if name in self.principals:
            return self.principals[name].matches(principal)
        ranges = BUILT_IN[name]
        isHere = principal.address == LOCAL or (name == "private" and principal.isOnLink)
        return ranges is None or isHere or within(principal.address, ranges)


BUILT_IN: Mapping[str, tuple[str, ...] | None] = {
    "anyone": None,
    "private": _PRIVATE,
    "local": _LOOPBACK,
}
"""The built-in principals, and their ranges of addresses; C{None}: all addresses. A client on a
unix socket matches all of them: the mode of the socket file controls who can connect. A client on
a network of this machine matches C{private} whatever its address."""


class AccessPreset(enum.Enum):
    """
    A L{Policy} that the configuration can name.
    """

    OPEN = "open"
    """All clients have all rights."""

    PRIVATE = "private"
    """Clients with addresses in private, link-local and loopback ranges, and those on a network of
    this machine, have all rights."""

    LOCAL = "local"
    """Clients on this machine have all rights."""

    @property
    def policy(self) -> Policy:
        """The policy."""
        who = "anyone" if self is AccessPreset.OPEN else self.value
        return Policy(allow=(Grant(who=who),))


def several(given: OneOrMany[T] | None) -> tuple[T, ...]:
    """
    A value that may be one item or a list, as a tuple.
    """
    if given is None:
        return ()
    return given if isinstance(given, tuple) else (given,)


def within(address: str, ranges: Iterable[str]) -> bool:
    """
    Whether an address is in one of several ranges; L{LOCAL} is in none. A range with a zone
    (C{fe80::%eth0/64}; RFC 4007, 11) contains only addresses of that interface.
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
    @raise ValueError: the text is not a range of addresses, or no client can be in the range.
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
    Whether two addresses are known to belong to the same machine.
    """
    return one == other or (isHere(one) and isHere(other))


@lru_cache(1024)
def isHere(address: str) -> bool:
    """
    Whether it is an address of this machine's loopback, or a unix socket.
    """
    return address == LOCAL or within(address, _LOOPBACK)
