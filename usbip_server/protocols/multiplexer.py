"""
Two protocols on one port, told apart by the first byte: a capital letter begins an HTTP
method (RFC 9110, 9.1), and nothing else does.
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

from usbip_server.model.options import Timeouts
from usbip_server.model.policy import Principal
from usbip_server.net.caller import principalAt, principalOf
from usbip_server.net.halfclose import LINGER, closeOurSide
from usbip_server.net.tlserrors import openSslReason
from usbip_server.protocols.interfaces import refusal

TURNED_AWAY = 32
"""How many connections beyond the limit may linger at a time; any more are closed at once."""


class Conversation(Shape):
    """
    What a connection can turn out to be: an C{IHalfCloseableProtocol} that can be told to
    finish.
    """

    def makeConnection(self, transport: ITransport) -> None: ...
    def dataReceived(self, data: bytes) -> None: ...
    def connectionLost(self, reason: Failure) -> None: ...
    def readConnectionLost(self) -> None: ...
    def writeConnectionLost(self) -> None: ...

    def close(self) -> None:
        """Close when what has arrived is answered."""


MakeConversation = Callable[[Principal], Conversation]


@implementer(IHalfCloseableProtocol, IHandshakeListener)
class FirstByte(Protocol):
    """
    A connection: JSON lines, unless its first byte says HTTP.
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
            # JSON, while nothing is known: it tells one that says nothing what to say.
            self._converse(self.factory.makeLines(self._principal))

    def handshakeCompleted(self) -> None:
        """With TLS it is known only now whose certificate the client has shown."""
        self._principal = self.factory.identify(self.transport)
        self._become(self.factory.makeLines(self._principal))

    def dataReceived(self, data: bytes) -> None:
        if self._undecided:
            self._undecided = False
            if data[:1].isupper():
                self._become(self.factory.makeWeb(self._principal))
        self._conversation.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.factory.lost(self)
        self._conversation.connectionLost(reason)

    def readConnectionLost(self) -> None:
        self._conversation.readConnectionLost()

    def writeConnectionLost(self) -> None:
        self._conversation.writeConnectionLost()

    def close(self) -> None:
        """Close when what has arrived is answered."""
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
    A connection beyond the limit: it is told so and closed.
    """

    factory: FirstByteFactory
    transport: Any

    def callLater(self, period: float, func: Callable[[], None]) -> IDelayedCall:
        """What C{TimeoutMixin} uses."""
        return self.factory.clock.callLater(period, func)

    def connectionMade(self) -> None:
        most = self.factory.most
        told = refusal(f"the limit of {most} connections is reached: try later")
        self.transport.write(told.encoded)
        self.setTimeout(LINGER)
        if len(self.factory.turnedAway) < TURNED_AWAY:
            self.factory.turnedAway.add(self)
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
        """As we asked."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.setTimeout(None)
        self.factory.turnedAway.discard(self)


@implementer(IProtocolNegotiationFactory)
class FirstByteFactory(Factory):
    """
    Makes the connections of the control port, and counts them.

    @ivar connections: those there are.
    @ivar turnedAway: those beyond the limit that are given time to go.
    """

    noisy = False
    _log = Logger()

    def __init__(
        self,
        makeLines: MakeConversation,
        makeWeb: MakeConversation,
        most: int,
        clock: IReactorTime,
        handshakeSeconds: float = Timeouts().request,
        identify: Callable[[Any], Principal] = principalOf,
    ) -> None:
        """
        @param most: how many connections there may be at a time.
        @param handshakeSeconds: how long a TLS handshake may take.
        @param identify: tells who is at the other end of a transport.
        """
        self.makeLines = makeLines
        self.makeWeb = makeWeb
        self.most = most
        self.clock = clock
        self.handshakeSeconds = handshakeSeconds
        self.identify = identify
        self.connections: set[FirstByte] = set()
        self.turnedAway: set[OverflowProtocol] = set()
        self._full = False
        self._empty: list[Deferred[None]] = []

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        protocol: FirstByte | OverflowProtocol
        if len(self.connections) < self.most:
            self._full = False
            protocol = FirstByte()
        else:
            if not self._full:
                self._full = True
                self._log.warn(
                    "{most} connections: turning away {principal} and others until one ends",
                    most=self.most,
                    principal=principalAt(addr),
                )
            protocol = OverflowProtocol()
        protocol.factory = self
        return protocol

    def acceptableProtocols(self) -> list[bytes]:
        """With TLS, of what clients offer by name (RFC 7301); who offers nothing may as well."""
        return [b"http/1.1"]

    def makeHandshake(self, principal: Principal) -> Handshake:
        """What a connection with TLS is at first."""
        return Handshake(principal, self.handshakeSeconds, self.clock)

    def lost(self, connection: FirstByte) -> None:
        """A connection has ended."""
        self.connections.discard(connection)
        if not self.connections:
            empty, self._empty = self._empty, []
            for deferred in empty:
                deferred.callback(None)

    async def close(self, grace: float) -> None:
        """
        Close all connections, each when what has arrived is answered.

        @param grace: seconds after which those that are left are cut off.
        """
        for connection in tuple(self.connections):
            connection.close()
        if not self.connections:
            return
        empty: Deferred[None] = Deferred()
        self._empty.append(empty)
        cutOff = self.clock.callLater(grace, self._cutOff)
        await empty
        if cutOff.active():
            cutOff.cancel()

    def _cutOff(self) -> None:
        for connection in tuple(self.connections):
            connection.transport.abortConnection()


class Handshake(Protocol, TimeoutMixin):
    """
    Waits for it, and not for ever. Nothing can be said meanwhile. One that fails is told of
    in the log; one that never begins is not, as a port probe is not worth a line.
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
            self._failed(openSslReason(reason.value))

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
