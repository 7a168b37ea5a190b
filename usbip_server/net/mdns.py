"""
Servers in the local network, which announce themselves with multicast DNS (RFC 6762, RFC 6763).

C{zeroconf} is imported when it is used: it takes as much memory as a third of the daemon.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from zeroconf import ServiceInfo, Zeroconf

SERVICE = "_usbipshare._tcp.local."
"""The type of a server's port for requests."""

USBIP_SERVICE = "_usbip._tcp.local."
"""The type of a port for USB/IP without TLS, for other programs."""

MOST_FOUND = 256
"""Servers that a client takes from the network."""


class Ports(NamedTuple):
    """
    The TCP ports of a server; C{None}: there is none.

    @ivar requests: for requests without TLS.
    @ivar secureRequests: for requests with TLS.
    @ivar export: for USB/IP without TLS.
    @ivar secureExport: for USB/IP with TLS.
    """

    requests: int | None = None
    secureRequests: int | None = None
    export: int | None = None
    secureExport: int | None = None

    @property
    def properties(self) -> dict[str, str]:
        """The ports for TXT records (RFC 6763, 6), but for the one of the SRV record."""
        named = {
            "tls": self.secureRequests,
            "export": self.export,
            "export_tls": self.secureExport,
        }
        return {key: str(port) for key, port in named.items() if port is not None}


class Announcement(NamedTuple):
    """
    What is announced.

    @ivar name: the name of the server, for people.
    @ivar version: of its program.
    @ivar ports: its ports.
    @ivar interfaces: the names of the interfaces; empty: all.
    """

    name: str
    version: str
    ports: Ports
    interfaces: tuple[str, ...] = ()


class FoundServer(NamedTuple):
    """
    A server that has announced itself. Nothing of it is verified.

    @ivar addresses: its addresses, IPv4 first; IPv6 ones that are link-local with their interface.
    """

    name: str
    addresses: tuple[str, ...]
    version: str
    ports: Ports


def privateAddresses(interfaces: Sequence[str] = ()) -> tuple[str, ...]:
    """
    The private addresses of this machine (RFC 1918, RFC 4193, link-local), without loopback.

    @param interfaces: the names of the interfaces; empty: all.
    """
    import ifaddr

    found = []
    for adapter in ifaddr.get_adapters():
        if interfaces and adapter.name not in interfaces:
            continue
        for each in adapter.ips:
            text = each.ip if isinstance(each.ip, str) else each.ip[0]
            address = ipaddress.ip_address(text.partition("%")[0])
            if address.is_private and not address.is_loopback:
                found.append(text)
    return tuple(found)


def browse(seconds: float, addresses: Sequence[str] | None = None) -> list[FoundServer]:
    """
    Find servers. Blocks.

    @param seconds: how long to wait for answers.
    @param addresses: of this machine, where to ask; C{None}: the private ones.
    """
    from zeroconf import ServiceBrowser, ServiceStateChange, Zeroconf

    until = time.monotonic() + seconds
    here = privateAddresses() if addresses is None else tuple(addresses)
    if not here:
        return []
    names: dict[str, None] = {}

    def changed(
        zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        if state_change is not ServiceStateChange.Removed and len(names) < MOST_FOUND:
            names[name] = None

    try:
        client = Zeroconf(interfaces=list(here))
    except OSError:
        return []  # no network
    try:
        browser = ServiceBrowser(client, SERVICE, handlers=[changed])
        time.sleep(max(0.0, until - time.monotonic()))
        browser.cancel()
        infos = [_infoOf(client, name) for name in names]
    finally:
        client.close()
    found = [server for info in infos if info is not None and (server := _server(info))]
    return sorted(found, key=lambda server: server.name)


def _infoOf(client: Zeroconf, name: str) -> ServiceInfo | None:
    """What is known of a service by now, from the answers that have come."""
    from zeroconf import ServiceInfo

    info = ServiceInfo(SERVICE, name)
    return info if info.load_from_cache(client) else None


def _server(info: ServiceInfo) -> FoundServer | None:
    """
    The server of an answer; C{None} if the answer makes no sense. Anybody can send one.
    """
    name = info.name.removesuffix(f".{SERVICE}")
    texts = {
        key.decode(errors="replace"): (value or b"").decode(errors="replace")
        for key, value in info.properties.items()
    }
    secure = _port(texts.get("tls"))
    ports = Ports(
        requests=None if info.port == secure else _port(str(info.port)),
        secureRequests=secure,
        export=_port(texts.get("export")),
        secureExport=_port(texts.get("export_tls")),
    )
    addresses = sorted(info.parsed_scoped_addresses(), key=lambda it: ":" in it)
    isUsable = name.isprintable() and name.strip() and addresses
    if not isUsable or (ports.requests is None and secure is None):
        return None
    version = texts.get("version", "")
    return FoundServer(name, tuple(addresses), version if version.isprintable() else "", ports)


def _port(text: str | None) -> int | None:
    if text is None or not (text.isascii() and text.isdigit() and len(text) < 6):
        return None
    return int(text) if 0 < int(text) < 65536 else None
