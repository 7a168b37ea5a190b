"""
A connection to a server's port for requests, with TLS or without.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

from twisted.internet.defer import CancelledError
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import (
    ConnectingCancelledError,
    ConnectionLost,
    DNSLookupError,
    TimeoutError,
)
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol

from usbip_server.client.core.reaching import unreachable
from usbip_server.client.core.servers import Server
from usbip_server.client.core.twistedtls import TLS_ERRORS, creatorFor, reasonOf

P = TypeVar("P", bound=Protocol)


async def connect(reactor: Any, server: Server, seconds: float, make: Callable[[], P]) -> P:
    """
    Connect to a server.

    @param seconds: how long that may take.
    @param make: makes the protocol.
    @raise Unreachable: it cannot be reached. Whether it is who it should be is known only when
        it is asked something.
    """
    try:
        endpoint: IStreamClientEndpoint = HostnameEndpoint(
            reactor, server.host, server.port, timeout=seconds
        )
        if server.tls is not None:
            endpoint = wrapClientTLS(creatorFor(server.host, server.tls), endpoint)
    except ValueError as error:
        raise unreachable(server, str(error)) from error
    late = f"no connection within {seconds:g} s"
    factory = Factory.forProtocol(make)
    factory.noisy = False
    connecting = endpoint.connect(factory)
    giveUp = reactor.callLater(seconds, connecting.cancel)
    try:
        return cast(P, await connecting)
    except (CancelledError, ConnectingCancelledError) as error:
        if giveUp.active():  # whoever waits for it does not any more
            raise CancelledError from error
        raise unreachable(server, late) from error
    except TimeoutError as error:
        raise unreachable(server, late) from error
    except Exception as error:
        raise unreachable(server, reason(error) if giveUp.active() else late) from error
    finally:
        if giveUp.active():
            giveUp.cancel()


def reason(error: BaseException | None) -> str:
    """
    What has gone wrong with a connection, less what is for programmers.
    """
    if isinstance(error, DNSLookupError):
        return "there is no machine of this name"
    if isinstance(error, ConnectionLost):
        return "the connection breaks"
    if isinstance(error, TLS_ERRORS):
        return reasonOf(error)
    number = getattr(error, "osError", None)
    if isinstance(number, int):
        return os.strerror(number)
    return str(error).rstrip(".") or type(error).__name__
