"""
Finds out whether this machine itself is reached through a network adapter: on a Raspberry Pi up to
model 3 the built-in one is a USB device (LAN9514).
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterator
from typing import NamedTuple

from usbip_server.kernel.attributes import DEVICES
from usbip_server.kernel.importers import established
from usbip_server.kernel.mounts import DEPTH
from usbip_server.kernel.system import ISystem

INTERFACES = "class/net"

UPPER = "upper_"
"""Begins the name of a link to an interface that contains this one, such as a bridge
(C{netdev_adjacent_sysfs_add}, C{net/core/dev.c})."""

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class _Route(NamedTuple):
    network: _Network
    interface: str


def networkUsesOf(system: ISystem, busId: str) -> tuple[str, ...]:
    """
    How this machine is reached through the network adapter in a device: C{"eth0 has the default
    route"}, C{"eth0 carries the connection of 192.0.2.7"}.

    @return: a sentence for each use; empty if the device is not a network adapter, or nobody is
        connected through it.
    """
    names = sorted(_interfaces(system, f"{DEVICES}/{busId}", DEPTH))
    if not names:
        return ()
    ipv4, ipv6 = system.routes()
    routes = [*_ipv4Routes(ipv4), *_ipv6Routes(ipv6)]
    peers = sorted({connection.remote for connection in established(system.connections(), None)})
    uses = []
    for name in names:
        own = {name, *_above(system, name, DEPTH)}
        if any(route.interface in own and route.network.prefixlen == 0 for route in routes):
            uses.append(f"{name} has the default route")
        uses += [
            f"{name} carries the connection of {peer}"
            for peer in peers
            if own & _towards(routes, peer)
        ][:1]
    return tuple(uses)


def _interfaces(system: ISystem, path: str, depth: int) -> Iterator[str]:
    try:
        names = system.directories(path)
    except OSError:
        return
    for name in names:
        if name == "net":
            yield from system.directories(f"{path}/{name}")
        elif depth > 1:
            yield from _interfaces(system, f"{path}/{name}", depth - 1)


def _above(system: ISystem, interface: str, depth: int) -> Iterator[str]:
    """
    The bridges, bonds and VLANs that an interface is a part of.
    """
    try:
        names = system.list(f"{INTERFACES}/{interface}")
    except OSError:
        return
    for name in names:
        upper = name.removeprefix(UPPER)
        if upper != name:
            yield upper
            if depth > 1:
                yield from _above(system, upper, depth - 1)


def _towards(routes: list[_Route], peer: str) -> set[str]:
    """
    The interfaces with the most specific route to an address. There may be several to a link-local
    one.
    """
    address = ipaddress.ip_address(peer)
    if address.is_loopback:
        return set()
    fitting = [route for route in routes if address in route.network]
    longest = max((route.network.prefixlen for route in fitting), default=0)
    return {route.interface for route in fitting if route.network.prefixlen == longest}


def _ipv4Routes(table: bytes) -> Iterator[_Route]:
    """
    The routes in C{/proc/net/route} (C{fib_route_seq_show}, C{net/ipv4/fib_trie.c}).
    """
    for line in table.splitlines()[1:]:
        try:
            interface, target, _, _, _, _, _, mask, *_ = line.decode("ascii", "replace").split()
            network = int.from_bytes(int(target, 16).to_bytes(4, sys.byteorder), "big")
            bits = int(mask, 16).bit_count()
            yield _Route(ipaddress.IPv4Network((network, bits), strict=False), interface)
        except (ValueError, OverflowError):
            continue


def _ipv6Routes(table: bytes) -> Iterator[_Route]:
    """
    The routes in C{/proc/net/ipv6_route} (C{ipv6_route_native_seq_show}, C{net/ipv6/ip6_fib.c}).
    """
    for line in table.splitlines():
        try:
            target, bits, *_, interface = line.decode("ascii", "replace").split()
            network = ipaddress.IPv6Network((bytes.fromhex(target), int(bits, 16)), strict=False)
            yield _Route(network, interface)
        except ValueError:
            continue
