"""
A TLS connection until its handshake is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure

from usbip_server.policy import Principal


class Handshake(Protocol, TimeoutMixin):
    """
    Waits for it, and not for ever. Nothing can be said meanwhile. One that fails is told of
    in the log, also if its time is over before it has begun; one that leaves is not, as a port
    probe is not worth a line.
    """

    transport: Any
    _log = Logger()

    def __init__(self, principal: Principal, seconds: float, clock: IReactorTime) -> None:
        """
        @param seconds: how long it may take.
        """
        self._principal = principal
        self._seconds = seconds
        self._clock = clock

    def callLater(self, period: float, func: Callable[[], None]) -> IDelayedCall:
        """What C{TimeoutMixin} uses."""
        return self._clock.callLater(period, func)

    def connectionMade(self) -> None:
        self.setTimeout(self._seconds)

    def timeoutConnection(self) -> None:
        self._failed(f"no handshake within {self._seconds:g} s")
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.setTimeout(None)
        if isinstance(reason.value, SSL.Error):
            self._failed(reasonOf(reason.value))

    def readConnectionLost(self) -> None:
        """There is no handshake with one that has closed its side."""
        self.close()

    def writeConnectionLost(self) -> None:
        """We have not asked for that."""

    def close(self) -> None:
        """There is nothing that could be answered."""
        self.transport.abortConnection()

    def _failed(self, reason: str) -> None:
        self._log.warn(
            "{principal} does not speak TLS here: {reason}",
            principal=str(self._principal),
            reason=reason,
        )


def reasonOf(error: SSL.Error) -> str:
    """
    What OpenSSL says is wrong, without the names of its parts: C{"wrong version number"}.
    """
    entries = error.args[0] if error.args and isinstance(error.args[0], list) else ()
    return "; ".join(entry[-1] for entry in entries if entry[-1]) or str(error)
