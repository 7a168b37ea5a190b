"""
Connections beyond the limits of L{usbip_server.protocols.slots}. Each gets an error and is closed,
at once or, if there are many, after a while: otherwise a client that connects again and again would
keep the daemon busy with accepting and refusing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime, ISSLTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure

from usbip_server.model.policy import Principal
from usbip_server.net.halfclose import LINGER, closeOurSide
from usbip_server.protocols.interfaces import refusal

AT_ONCE = 32
"""How many get the error at once, and time to read it."""

HELD_SECONDS = 1.5
"""Seconds until the others get it; old clients wait two."""

QUIET = 60.0
"""Seconds between log lines."""


class Overflow:
    """
    All connections beyond the limits.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self.clock = clock
        self.atOnce: set[Refused] = set()
        self.held: dict[Refused, None] = {}  # in the order of their arrival
        self._warnAgain = 0.0

    def refuse(self, principal: Principal, reason: str, room: int) -> Refused:
        """
        Make the protocol for a connection, and log a line about it now and then.

        @param room: how many connections may be held.
        """
        if self.clock.seconds() >= self._warnAgain:
            self._warnAgain = self.clock.seconds() + QUIET
            self._log.warn(
                "connection from {principal} refused: {reason}; others are not logged for "
                "{seconds:g} s",
                principal=str(principal),
                reason=reason,
                seconds=QUIET,
            )
        return Refused(self, reason, room)

    def drop(self, room: int) -> None:
        """Abort held connections until there are no more than so many."""
        while len(self.held) > max(0, room):
            next(iter(self.held)).abort()


class Refused(Protocol, TimeoutMixin):
    """
    One of them.
    """

    transport: Any

    def __init__(self, overflow: Overflow, reason: str, room: int) -> None:
        self._overflow = overflow
        self._reason = reason
        self._room = room

    def callLater(self, period: float, func: Callable[[], None]) -> IDelayedCall:
        """The clock of C{TimeoutMixin}."""
        return self._overflow.clock.callLater(period, func)

    def connectionMade(self) -> None:
        if len(self._overflow.atOnce) < AT_ONCE:
            self._overflow.atOnce.add(self)
            self.transport.write(refusal(self._reason).encoded)
            self.setTimeout(LINGER)
            closeOurSide(self.transport)
        elif ISSLTransport.providedBy(self.transport):
            self.transport.abortConnection()  # its handshake takes more time than everything else
        elif len(self._overflow.held) < self._room:
            self._overflow.held[self] = None
            self.setTimeout(HELD_SECONDS)
        else:
            self._tell()

    def timeoutConnection(self) -> None:
        if self in self._overflow.held:
            self._tell()
        else:
            self.transport.abortConnection()

    def readConnectionLost(self) -> None:
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Our side is closed, as intended."""

    @property
    def isDeaf(self) -> bool:
        """Is what comes dropped?"""
        return True

    def close(self) -> None:
        """There is no request to answer."""

    def abort(self) -> None:
        """Disconnect: its place is needed."""
        self._overflow.held.pop(self, None)
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.setTimeout(None)
        self._overflow.atOnce.discard(self)
        self._overflow.held.pop(self, None)

    def _tell(self) -> None:
        self.transport.write(refusal(self._reason).encoded)
        self.transport.loseConnection()
