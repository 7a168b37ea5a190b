"""
Noticing that the other end of a Twisted connection is gone.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime, ISSLTransport

PROBES = 3


ASK_AGAIN = 1.0
"""Seconds for a refusal to come back."""


class LivenessProbe:
    """
    Finds out whether a client that has closed its side still listens. One that was killed
    looks like that too: its kernel refuses what we say, and that is noticed when we speak
    again.
    """

    def __init__(self, say: Callable[[], None], clock: IReactorTime) -> None:
        self._say = say
        self._clock = clock
        self._again: IDelayedCall | None = None

    def ask(self) -> None:
        """Speak twice."""
        self.end()
        self._say()
        self._again = self._clock.callLater(ASK_AGAIN, self._say)

    def end(self) -> None:
        """It does not matter any more."""
        if self._again is not None and self._again.active():
            self._again.cancel()


def watchOver(transport: Any, seconds: float) -> None:
    """
    Have the kernel end a connection whose other end is not there any more: one on which
    nothing is said (tcp(7), C{SO_KEEPALIVE}) after twice C{seconds}, and one on which what
    we say is not acknowledged (C{TCP_USER_TIMEOUT}) likewise. Does nothing where there is
    no TCP.
    """
    below = transport
    while ISSLTransport.providedBy(below):
        below = transport = transport.transport
    handle = getattr(transport, "getHandle", lambda: None)()
    if not isinstance(handle, socket.socket) or handle.family == socket.AF_UNIX:
        return
    idle = max(1, round(seconds))
    with contextlib.suppress(OSError):  # it is gone already
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, idle // PROBES))
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 2000 * idle)
