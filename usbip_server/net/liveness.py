"""
Detects that the other end of a Twisted connection has vanished.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime, ISSLTransport

from usbip_server.net.keepalive import KeepAlive

PROBES = 3
"""Keepalive probes without an answer after which a connection is ended."""

PROBE_SECONDS = 1.0
"""Between the two writes of a L{LivenessProbe}: time for a reset to arrive."""


class LivenessProbe:
    """
    Finds out whether a client that has closed its sending side still receives. A client that was
    killed cannot be told from one that has only closed its side until something is written: its
    kernel answers with a reset, and the next write fails.
    """

    def __init__(self, write: Callable[[], None], clock: IReactorTime) -> None:
        """
        @param write: writes something harmless to the client.
        """
        self._write = write
        self._clock = clock
        self._second: IDelayedCall | None = None

    def start(self) -> None:
        """Write now, and again after L{PROBE_SECONDS}."""
        self.stop()
        self._write()
        self._second = self._clock.callLater(PROBE_SECONDS, self._write)

    def stop(self) -> None:
        """Write nothing more. May be called at any time."""
        if self._second is not None and self._second.active():
            self._second.cancel()


def watchOver(transport: Any, seconds: float) -> None:
    """
    Have the kernel end a connection on which nothing has been received, or what was sent has not
    been acknowledged, for twice C{seconds}. Does nothing where there is no TCP socket.
    """
    below = transport
    while ISSLTransport.providedBy(below):
        below = transport = transport.transport
    handle = getattr(transport, "getHandle", lambda: None)()
    if not isinstance(handle, socket.socket):
        return
    idle = max(1, round(seconds))
    keepAlive = KeepAlive(
        idle=idle, interval=max(1, idle // PROBES), count=PROBES, userTimeout=2 * idle
    )
    with contextlib.suppress(OSError):  # the connection is closed already
        keepAlive.apply(handle)
