"""
JSON and HTTP on one port, distinguished by the first bytes, and with TLS after the handshake::

    client -> server   {"command":"list"}\n     CommandProtocol
    client -> server   POST / HTTP/1.1\r\n     a token (RFC 9110, 5.6.2) and a space: WebChannel

A method may be in lower case: browsers do not change those they do not know (C{patch}), and nothing
that a web page has sent may be taken for JSON. Connections beyond the limits get an error and are
closed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from typing import Protocol as Shape

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IHandshakeListener,
    IProtocolNegotiationFactory,
    IReactorTime,
    ISSLTransport,
    ITransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from zope.interface import implementer

from usbip_server.model.policy import Principal
from usbip_server.net.caller import principalOf
from usbip_server.net.tlserrors import reasonOf
from usbip_server.protocols.interfaces import RequestSettings
from usbip_server.protocols.lines import CommandFactory, CommandProtocol
from usbip_server.protocols.overflow import Overflow
from usbip_server.protocols.slots import NoPlace, Slot, Slots
from usbip_server.protocols.web import WebFactory
from usbip_server.runtime.repeats import Warnings

DROPPED = 2**13
"""Bytes a second that are dropped of a client that watches, or after its last request. Those of one
that sends more are left to its kernel."""

FIRST_READ, LATER_READ = 2**12, 2**16
"""Bytes to receive at a time: few, until it is clear that they are requests."""

LONGEST_METHOD = 64
"""Bytes of a method of HTTP and the empty lines before it."""

_TOKEN = re.compile(rb"[\r\n]*([!#$%&'*+.^_`|~0-9A-Za-z-]*)")


class Conversation(Shape):
    """
    A protocol that a connection can turn out to have.
    """

    @property
    def isDeaf(self) -> bool:
        """Is what comes dropped?"""

    def makeConnection(self, transport: ITransport) -> None: ...
    def dataReceived(self, data: bytes) -> None: ...
    def connectionLost(self, reason: Failure) -> None: ...
    def readConnectionLost(self) -> None: ...
    def writeConnectionLost(self) -> None: ...

    def close(self) -> None:
        """Close our side once the requests that have arrived are answered."""


@implementer(IHalfCloseableProtocol, IHandshakeListener)
class FirstByte(Protocol):
    """
    A connection: JSON unless it begins as HTTP does.
    """

    factory: FirstByteFactory
    transport: Any
    _slot: Slot | None = None
    _isUndecided = True
    _beginning = b""  # has arrived while it is undecided
    _dropped = 0  # bytes
    _pause: IDelayedCall | None = None

    def connectionMade(self) -> None:
        self._principal = self.factory.identify(self.transport)
        self.transport.bufferSize = FIRST_READ
        try:
            self._slot = self.factory.take(self)
        except NoPlace as error:
            self._isUndecided = False
            self._converse(self.factory.refuse(self, str(error)))
            return
        if ISSLTransport.providedBy(self.transport):
            self._converse(self.factory.makeHandshake(self._principal))
        else:
            # JSON until the first byte: its time-out tells a silent client what is expected.
            self._converse(self._makeCommands())

    @property
    def principal(self) -> Principal:
        """The client."""
        return self._principal

    def handshakeCompleted(self) -> None:
        """The client's certificate is known from now on."""
        if self._slot is None:
            return
        self._principal = self.factory.identify(self.transport)
        if self.factory.hasRights(self._principal):
            self._slot.allow()
        self._become(self._makeCommands())

    def dataReceived(self, data: bytes) -> None:
        if self._isUndecided:
            if self._beginning:
                data, self._beginning = self._beginning + data, b""
            if data[:1] != b"{":
                isHttp = beginsAsHttp(data)
                if isHttp is None:
                    self._beginning = data
                    return
                if isHttp:
                    data = data.lstrip(b"\r\n")
                    self._become(self.factory.web.makeChannel(self._principal, self._allow))
            self._isUndecided = False
        if self._conversation.isDeaf:
            self._drop(data)
            return
        self._conversation.dataReceived(data)
        self.transport.bufferSize = FIRST_READ if self._conversation.isDeaf else LATER_READ

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._pause is not None:
            self._pause.cancel()
        if self._slot is not None:
            self._slot.free()
            self.factory.lost(self)
        self._conversation.connectionLost(reason)

    def readConnectionLost(self) -> None:
        if self._beginning:
            self._conversation.dataReceived(self._beginning)
        self._conversation.readConnectionLost()

    def writeConnectionLost(self) -> None:
        self._conversation.writeConnectionLost()

    def close(self) -> None:
        """Close our side once the requests that have arrived are answered."""
        self._conversation.close()

    def _drop(self, data: bytes) -> None:
        """Drop bytes, L{DROPPED} in a second: to read them takes time, too."""
        self._dropped += len(data)
        if self._dropped > DROPPED and self._pause is None:
            self._pause = self.factory.clock.callLater(1, self._readOn)
            self.transport.pauseProducing()

    def _readOn(self) -> None:
        self._pause = None
        self._dropped = 0
        self.transport.resumeProducing()

    def _makeCommands(self) -> CommandProtocol:
        return self.factory.commands.make(self._principal, self._allow)

    def _allow(self) -> None:
        assert self._slot is not None
        self._slot.allow()

    def _become(self, conversation: Conversation) -> None:
        self._conversation.connectionLost(connectionDone)
        self.transport.unregisterProducer()
        self._converse(conversation)

    def _converse(self, conversation: Conversation) -> None:
        self._conversation = conversation
        conversation.makeConnection(self.transport)


def beginsAsHttp(data: bytes) -> bool | None:
    """
    Does a connection begin as HTTP does, with a method and a space, perhaps behind empty lines?

    @return: C{None} if more bytes are needed.
    """
    beginning = _TOKEN.match(data)
    assert beginning is not None  # it matches the empty string, too
    end = beginning.end()
    if end == len(data) and end < LONGEST_METHOD:
        return None
    return data[end : end + 1] == b" " and bool(beginning[1]) and end < LONGEST_METHOD


@implementer(IProtocolNegotiationFactory)
class FirstByteFactory(Factory):
    """
    Makes the connections of the control port, and counts them.

    @ivar connections: the connections within the limit.
    @ivar overflow: the connections beyond the limits.
    @ivar warnings: about clients.
    """

    noisy = False
    _log = Logger()

    def __init__(
        self,
        commands: CommandFactory,
        web: WebFactory,
        settings: RequestSettings,
        clock: IReactorTime,
        identify: Callable[[Any], Principal] = principalOf,
    ) -> None:
        """
        @param commands: makes the protocol for JSON.
        @param web: makes the protocol for HTTP.
        @param identify: identifies the client at the other end of a transport.
        """
        self.commands = commands
        self.web = web
        self.settings = settings
        self.clock = clock
        self.identify = identify
        self.hasRights = commands.responder.hasRights
        self.connections: set[FirstByte] = set()
        self.overflow = Overflow(clock)
        self.warnings = Warnings(Handshake._log, clock)
        self._slots = Slots(lambda: settings.limits.connections, self.hasRights)
        self._empty: list[Deferred[None]] = []

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        connection = FirstByte()
        connection.factory = self
        return connection

    def take(self, connection: FirstByte) -> Slot:
        """
        Take a place for a new connection.

        @raise NoPlace: there is none.
        """
        slot = self._slots.take(connection.principal)
        self.connections.add(connection)
        if self.overflow.held:
            self.overflow.drop(self._room)
        return slot

    def refuse(self, connection: FirstByte, reason: str) -> Conversation:
        """Make the protocol for a connection that got no place."""
        return self.overflow.refuse(connection.principal, reason, self._room)

    @property
    def _room(self) -> int:
        """Connections there may be beyond those with a place."""
        return self.settings.limits.connections - len(self.connections)

    def acceptableProtocols(self) -> list[bytes]:
        """
        The names for ALPN (RFC 7301). A client that offers no name is accepted too.
        """
        return [b"http/1.1"]

    def makeHandshake(self, principal: Principal) -> Handshake:
        """Make the protocol for a TLS connection before its handshake is done."""
        return Handshake(principal, self.settings.timeouts.request, self.clock, self.warnings)

    def lost(self, connection: FirstByte) -> None:
        """Forget a connection that has ended."""
        self.connections.discard(connection)
        if not self.connections:
            empty, self._empty = self._empty, []
            for deferred in empty:
                deferred.callback(None)

    async def close(self, grace: float) -> None:
        """
        Close all connections, each once the requests that have arrived are answered.

        @param grace: seconds after which the remaining connections are aborted.
        """
        self.warnings.stop()
        for connection in tuple(self.connections):
            connection.close()
        if not self.connections:
            return
        empty: Deferred[None] = Deferred()
        self._empty.append(empty)
        timer = self.clock.callLater(grace, self._abortAll)
        await empty
        if timer.active():
            timer.cancel()

    def _abortAll(self) -> None:
        for connection in tuple(self.connections):
            connection.transport.abortConnection()


class Handshake(Protocol, TimeoutMixin):
    """
    Limits the time of a TLS handshake. A handshake that fails is logged; a client that never
    begins one is not, because it may be a port probe.
    """

    transport: Any
    _log = Logger()

    def __init__(
        self, principal: Principal, seconds: float, clock: IReactorTime, warnings: Warnings
    ) -> None:
        """
        @param seconds: how long the handshake may take.
        @param warnings: where it is logged that the handshake has failed.
        """
        self._warnings = warnings
        self._principal = principal
        self._seconds = seconds
        self._clock = clock

    def callLater(self, period: float, func: Callable[[], None]) -> IDelayedCall:
        """The clock of C{TimeoutMixin}."""
        return self._clock.callLater(period, func)

    def connectionMade(self) -> None:
        self.setTimeout(self._seconds)

    @property
    def isDeaf(self) -> bool:
        """Is what comes dropped?"""
        return False

    def timeoutConnection(self) -> None:
        self._failed(f"no handshake within {self._seconds:g} s")
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.setTimeout(None)
        if isinstance(reason.value, SSL.Error):
            self._failed(reasonOf(reason.value))

    def readConnectionLost(self) -> None:
        """A client that has closed its side cannot complete the handshake."""
        self.close()

    def writeConnectionLost(self) -> None:
        """Our side is never closed alone."""

    def close(self) -> None:
        """Abort: there is no request to answer."""
        self.transport.abortConnection()

    def _failed(self, reason: str) -> None:
        self._warnings.warn(
            "{principal}: TLS handshake failed: {reason}",
            principal=str(self._principal),
            reason=reason,
        )
