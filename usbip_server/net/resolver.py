"""
Resolves names for a reactor, in daemon threads instead of the reactor's pool: the reactor waits for
the threads of its pool when it stops, and C{getaddrinfo} can take 15 seconds.
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

from usbip_server.net.addresses import AddressInfo, lookUp
from usbip_server.runtime.threads import Spawn, startThread


@implementer(IHostResolution)
class Lookup:
    """
    A resolution in progress.

    @ivar name: the name that is resolved.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        """Does nothing: C{getaddrinfo} cannot be interrupted."""


@implementer(IHostnameResolver)
class Resolver:
    """
    Resolves each name in a thread of its own.
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
        isStarted = False

        def deliver(result: list[AddressInfo] | Exception) -> None:
            for address in [] if isinstance(result, Exception) else _twisted(result):
                if addressTypes is None or isinstance(address, tuple(addressTypes)):
                    resolutionReceiver.addressResolved(address)
            resolutionReceiver.resolutionComplete()

        def found(result: list[AddressInfo] | Exception) -> None:
            if isStarted:
                self._reactor.callFromThread(deliver, result)
            else:
                deliver(result)

        def start(look: Any) -> None:
            nonlocal isStarted
            isStarted = True
            self._spawn(look)

        lookUp(hostName, portNumber, found, start)
        return lookup


def _twisted(infos: list[AddressInfo]) -> list[IAddress]:
    made: list[IAddress] = []
    for family, _, _, _, address in infos:
        if family == socket.AF_INET:
            made.append(IPv4Address("TCP", *address))
        elif family == socket.AF_INET6:
            host, port, flow, scope = address
            # Twisted connects to the host alone, so that has to contain the interface.
            zoned = f"{host.partition('%')[0]}%{scope}" if scope else host
            made.append(IPv6Address("TCP", zoned, port, flow, scope))
    return made
