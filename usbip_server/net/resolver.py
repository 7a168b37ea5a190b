"""
Names of machines. Looking one up can take a quarter of a minute, and nothing can interrupt it:
so it is done in threads that nobody waits for in the end, unlike those of the reactor's pool.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IResolutionReceiver,
)
from zope.interface import implementer

from usbip_server.runtime.threads import Spawn, startThread


@implementer(IHostResolution)
class Lookup:
    """
    One that is under way.

    @ivar name: what is looked for.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        """It cannot be."""


@implementer(IHostnameResolver)
class Resolver:
    """
    Asks the system, each name in a thread of its own.
    """

    def __init__(self, reactor: Any, spawn: Spawn = startThread) -> None:
        """
        @param reactor: provides C{IReactorFromThreads}.
        """
        self._reactor = reactor
        self._spawn = spawn

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        lookup = Lookup(hostName)
        resolutionReceiver.resolutionBegan(lookup)

        def found(addresses: list[IAddress]) -> None:
            for address in addresses:
                if addressTypes is None or isinstance(address, tuple(addressTypes)):
                    resolutionReceiver.addressResolved(address)
            resolutionReceiver.resolutionComplete()

        def ask() -> None:
            self._reactor.callFromThread(found, _addresses(hostName, portNumber))

        numeric = _addresses(hostName, portNumber, socket.AI_NUMERICHOST)
        if numeric:
            found(numeric)
        else:
            self._spawn(ask)
        return lookup


def _addresses(name: str, port: int, flags: int = 0) -> list[IAddress]:
    try:
        infos = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=flags)
    except (OSError, UnicodeError):
        return []
    made: list[IAddress] = []
    for family, _, _, _, address in infos:
        if family == socket.AF_INET:
            made.append(IPv4Address("TCP", *address))
        elif family == socket.AF_INET6:
            made.append(IPv6Address("TCP", *address))
    return made
