"""
JSON and HTTP on one port, distinguished by the first byte, and with TLS after the handshake::

    client -> server   {"command":"list"}\n     anything but a capital letter: CommandProtocol
    client -> server   POST / HTTP/1.1\r\n     a capital letter: WebChannel (RFC 9110, 9.1)

Connections beyond the limit get an error and are closed.
"""

from __future__ import annotations

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
from usbip_server.net.caller import principalAt, principalOf
from usbip_server.net.halfclose import LINGER, closeOurSide
from usbip_server.net.tlserrors import reasonOf
from usbip_server.protocols.interfaces import RequestSettings, refusal
from usbip_server.protocols.lines import CommandFactory
from usbip_server.protocols.web import WebFactory

OVERFLOW = 32
"""How many connections beyond the limit may linger at a time; any more are closed at once."""


class Conversation(Shape):
    """
    A protocol that a connection can turn out to have.
    """

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
    A connection: JSON unless its first byte is a capital letter.
    """

    factory: FirstByteFactory
    transport: Any
    _undecided = True

    def connectionMade(self) -> None:
        self.factory.connections.add(self)
        self._principal = self.factory.identify(self.transport)
        if ISSLTransport.providedBy(self.transport):
            self._converse(self.factory.makeHandshake(self._principal))
        else:
            # JSON until the first byte: its time-out tells a silent client what is expected.
            self._converse(self.factory.commands.make(self._principal))

    def handshakeCompleted(self) -> None:
        """The client's certificate is known from now on."""
        self._principal = self.factory.identify(self.transport)
        self._become(self.factory.commands.make(self._principal))

    def dataReceived(self, data: bytes) -> None:
        if self._undecided:
            self._undecided = False
            if data[:1].isupper():
                self._become(self.factory.web.makeChannel(self._principal))
        self._conversation.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.factory.lost(self)
        self._conversation.connectionLost(reason)

    def readConnectionLost(self) -> None:
        self._conversation.readConnectionLost()

    def writeConnectionLost(self) -> None:
        self._conversation.writeConnectionLost()

    def close(self) -> None:
        """Close our side once the requests that have arrived are answered."""
        self._conversation.close()

    def _become(self, conversation: Conversation) -> None:
        self._conversation.connectionLost(connectionDone)
        self.transport.unregisterProducer()
        self._converse(conversation)

    def _converse(self, conversation: Conversation) -> None:
        self._conversation = conversation
        conversation.makeConnection(self.transport)


@implementer(IHalfCloseableProtocol)
class OverflowProtocol(Protocol, TimeoutMixin):
    """
    A connection beyond the limit: it gets an error, and is closed.
    """

    factory: FirstByteFactory
    transport: Any

    def callLater(self, period: float, func: Callable[[], None]) -> IDelayedCall:
        """The clock of C{TimeoutMixin}."""
        return self.factory.clock.callLater(period, func)

    def connectionMade(self) -> None:
        most = self.factory.settings.limits.connections
        response = refusal(f"the limit of {most} connections is reached: try later")
        self.transport.write(response.encoded)
        self.setTimeout(LINGER)
        if len(self.factory.overflow) < OVERFLOW:
            self.factory.overflow.add(self)
            closeOurSide(self.transport)
        elif ISSLTransport.providedBy(self.transport):
            self.transport.abortConnection()  # it would wait for the client's handshake
        else:
            self.transport.loseConnection()

    def timeoutConnection(self) -> None:
        self.transport.abortConnection()

    def readConnectionLost(self) -> None:
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Our side is closed, as intended."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.setTimeout(None)
        self.factory.overflow.discard(self)


@implementer(IProtocolNegotiationFactory)
class FirstByteFactory(Factory):
    """
    Makes the connections of the control port, and counts them.

    @ivar connections: the connections within the limit.
    @ivar overflow: connections beyond the limit that have time to read the error.
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
        self.connections: set[FirstByte] = set()
        self.overflow: set[OverflowProtocol] = set()
        self._isFull = False
        self._empty: list[Deferred[None]] = []

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        protocol: FirstByte | OverflowProtocol
        most = self.settings.limits.connections
        if len(self.connections) < most:
            self._isFull = False
            protocol = FirstByte()
        else:
            if not self._isFull:
                self._isFull = True
                self._log.warn(
                    "{most} connections: refusing {principal} and others until one ends",
                    most=most,
                    principal=principalAt(addr),
                )
            protocol = OverflowProtocol()
        protocol.factory = self
        return protocol

    def acceptableProtocols(self) -> list[bytes]:
        """
        The names for ALPN (RFC 7301). A client that offers no name is accepted too.
        """
        return [b"http/1.1"]

    def makeHandshake(self, principal: Principal) -> Handshake:
        """Make the protocol for a TLS connection before its handshake is done."""
        return Handshake(principal, self.settings.timeouts.request, self.clock)

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

    def __init__(self, principal: Principal, seconds: float, clock: IReactorTime) -> None:
        """
        @param seconds: how long the handshake may take.
        """
        self._principal = principal
        self._seconds = seconds
        self._clock = clock

    def callLater(self, period: float, func: Callable[[], None]) -> IDelayedCall:
        """The clock of C{TimeoutMixin}."""
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
        """A client that has closed its side cannot complete the handshake."""
        self.close()

    def writeConnectionLost(self) -> None:
        """Our side is never closed alone."""

    def close(self) -> None:
        """Abort: there is no request to answer."""
        self.transport.abortConnection()

    def _failed(self, reason: str) -> None:
        self._log.warn(
            "{principal}: TLS handshake failed: {reason}",
            principal=str(self._principal),
            reason=reason,
        )
