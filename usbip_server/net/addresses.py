"""
Name resolution in a thread. C{getaddrinfo} can take 15 seconds, and cannot be interrupted.

This module does not import Twisted, so that a command can use it and start quickly;
L{usbip_server.net.resolver} is the same for a reactor.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

AddressInfo = tuple[int, int, int, str, Any]
"""An item of the result of C{getaddrinfo}."""

Found = Callable[[list[AddressInfo] | Exception], None]
"""Called with the addresses, or with the error of C{getaddrinfo}."""


def startDaemon(function: Callable[[], None]) -> None:
    """
    Run a function in a new daemon thread, which does not delay the end of the process.
    """
    threading.Thread(target=function, daemon=True, name="usbipshare-lookup").start()


def lookUp(
    host: str,
    port: int,
    found: Found,
    spawn: Callable[[Callable[[], None]], None] = startDaemon,
) -> None:
    """
    Resolve a name for TCP.

    @param found: called in the thread; at once, and in this thread, if C{host} is an address.
    @param spawn: starts a thread.
    """
    numeric = None
    with contextlib.suppress(socket.gaierror, UnicodeError):
        numeric = _addresses(host, port, socket.AI_NUMERICHOST)
    if numeric is not None:
        found(numeric)
        return

    def look() -> None:
        try:
            result: list[AddressInfo] | Exception = _addresses(host, port)
        except Exception as error:
            result = error
        found(result)

    spawn(look)


def _addresses(host: str, port: int, flags: int = 0) -> list[AddressInfo]:
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags))
