"""
Servers that no configuration names, but that announce themselves in the local network.

Nothing of them is verified: no token and no certificate of this client is shown to them.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from usbip_server.client.config import DEFAULT
from usbip_server.client.servers import CONTROL_PORT, EXPORT_PORT, ClientTls, Server
from usbip_server.net.mdns import FoundServer, privateAddresses

BROWSE_SECONDS = 1.0
"""How long a command waits for servers to answer."""

LOOPBACK_SECONDS = 0.5
"""How long this machine's own daemon may take to accept a connection."""


def serverOf(found: FoundServer) -> Server:
    """
    How to reach a server that was found: without TLS if it has a port without.
    """
    plain, secure, export, secureExport = found.ports
    isPlain = plain is not None
    port = plain if isPlain else secure
    assert port is not None
    return Server(
        name=found.name,
        host=found.addresses[0],
        port=port,
        exportPort=(export if isPlain else secureExport) or EXPORT_PORT,
        tls=None if isPlain else ClientTls(),
    )


def serversNearby(browse: Callable[[float], list[FoundServer]]) -> tuple[Server, ...]:
    """
    The servers that answer within L{BROWSE_SECONDS}. That of this machine is C{localhost}, whether
    it has announced itself or not.

    @param browse: finds servers, within some seconds.
    """
    found = browse(BROWSE_SECONDS)
    if not _listensHere():
        return tuple(map(serverOf, found))
    own = {*privateAddresses()}
    others = (serverOf(each) for each in found if own.isdisjoint(each.addresses))
    return (Server(name=DEFAULT, host=DEFAULT), *others)


def _listensHere() -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection((DEFAULT, CONTROL_PORT), LOOPBACK_SECONDS).close()
        return True
    return False
