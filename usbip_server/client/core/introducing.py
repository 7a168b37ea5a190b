"""
Which version of the program a server runs, as it says in HTTP::

    client: HEAD / HTTP/1.0
    server: HTTP/1.1 200 OK
            Server: usbipshare/0.1.0

"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure

from usbip_server.client.core.connecting import connect, shareOf, unreachable
from usbip_server.client.core.servers import Server
from usbip_server.versions import versionIn

MOST_LINES = 100
"""In the head of an answer."""


class Introduction(LineReceiver):
    """
    A connection for that.

    @ivar version: fires with what the server says, as far as it says something before it goes.
    """

    transport: Any

    def __init__(self, token: str | None) -> None:
        self.version: Deferred[str | None] = Deferred()
        self._token = token
        self._lines = 0

    def connectionMade(self) -> None:
        # Not 1.1: that wants to know by which of its names the server is meant.
        self.sendLine(b"HEAD / HTTP/1.0")
        if self._token is not None:
            self.sendLine(b"Authorization: Bearer " + self._token.encode())
        self.sendLine(b"")

    def lineReceived(self, line: bytes) -> None:
        self._lines += 1
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"server":
            self._end(versionIn(value.decode("latin-1").strip()))
        elif not line or self._lines == MOST_LINES:
            self._end(None)

    def lineLengthExceeded(self, line: bytes) -> None:
        self._end(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end(None)

    def _end(self, version: str | None) -> None:
        if not self.version.called:
            self.version.callback(version)


async def versionOf(reactor: Any, server: Server, seconds: float) -> str | None:
    """
    Ask a server for it.

    @param seconds: how long that may take.
    @return: C{None}: it does not say. It is no usbipshare, or one that is older than that.
    @raise Unreachable: there is no connection, or no answer in time.
    """
    until = reactor.seconds() + seconds
    asking = await connect(reactor, server, shareOf(seconds), lambda: Introduction(server.token))

    def giveUp() -> None:
        if not asking.version.called:
            asking.version.errback(unreachable(server, f"no answer within {seconds:g} s"))

    late = reactor.callLater(max(0, until - reactor.seconds()), giveUp)
    try:
        return await asking.version
    finally:
        if late.active():
            late.cancel()
        asking.transport.abortConnection()
