"""
The networks that this machine is connected to without a router between: getifaddrs(3).
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import socket
from collections.abc import Callable, Iterable, Iterator

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

Networks = tuple[Network, ...]

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
"""An address of this machine, with its network."""

TAILSCALE = ipaddress.ip_network("fd7a:115c:a1e0::/48")
"""Each node of Tailscale has an address of this network, and another one of L{SHARED}."""

SHARED = ipaddress.ip_network("100.64.0.0/10")
"""RFC 6598. Nodes of Tailscale are reached by a route each, not by a network of the interface."""

WIDEST = {4: 8, 6: 32}
"""The shortest prefix of a network that can be one with neighbours, for each version of IP: an
interface of a VPN may have all addresses."""

MAX_AGE = 10.0
"""Seconds after which the addresses of this machine are read again."""

IFF_UP = 1

_ADDRESS_AT = {socket.AF_INET: (4, 4), socket.AF_INET6: (8, 16)}
"""Offset and length of the address in C{struct sockaddr_in} and C{struct sockaddr_in6}."""


class _IfAddrs(ctypes.Structure):
    """C{struct ifaddrs}."""


_IfAddrs._fields_ = [
    ("next", ctypes.POINTER(_IfAddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.c_void_p),
    ("netmask", ctypes.c_void_p),
    ("other", ctypes.c_void_p),
    ("data", ctypes.c_void_p),
]


def addresses() -> list[Interface]:
    """
    The addresses of the interfaces that are up.

    @raise OSError: they cannot be read.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    first = ctypes.POINTER(_IfAddrs)()
    if libc.getifaddrs(ctypes.byref(first)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        return list(_read(first))
    finally:
        libc.freeifaddrs(first)


def _read(item: ctypes._Pointer[_IfAddrs]) -> Iterator[Interface]:
    while item:
        each = item.contents
        item = each.next
        if not each.flags & IFF_UP or not each.address or not each.netmask:
            continue
        family = ctypes.cast(each.address, ctypes.POINTER(ctypes.c_ushort)).contents.value
        if family in _ADDRESS_AT:
            offset, length = _ADDRESS_AT[socket.AddressFamily(family)]
            both = (each.address, each.netmask)
            own, mask = (ctypes.string_at(it + offset, length) for it in both)
            yield ipaddress.ip_interface((own, int.from_bytes(mask, "big").bit_count()))


def networksOf(found: Iterable[Interface]) -> Networks:
    """
    The networks of these addresses, except those that contain nothing else, and those wider than
    L{WIDEST}. With Tailscale, its nodes too.
    """
    found = tuple(found)
    networks: set[Network] = {
        it.network
        for it in found
        if WIDEST[it.version] <= it.network.prefixlen < it.network.max_prefixlen
    }
    if any(it.version == 6 and it.ip in TAILSCALE for it in found):
        networks.add(SHARED)
    return tuple(sorted(networks, key=lambda it: (it.version, it.network_address, it.prefixlen)))


class OnLink:
    """
    The networks at present: the same tuple until they change.
    """

    def __init__(
        self,
        seconds: Callable[[], float],
        read: Callable[[], Iterable[Interface]] = addresses,
    ) -> None:
        """
        @param seconds: the reactor's clock.
        """
        self._seconds = seconds
        self._read = read
        self._until = -MAX_AGE
        self._networks: Networks = ()

    def networks(self) -> Networks:
        """The networks; none if they cannot be read."""
        now = self._seconds()
        if now >= self._until:
            self._until = now + MAX_AGE
            try:
                networks = networksOf(self._read())
            except OSError:
                networks = ()
            if networks != self._networks:
                self._networks = networks
        return self._networks
