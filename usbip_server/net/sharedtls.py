"""
TLS of the control port, whose connections take turns: a handshake takes the server about a
millisecond, and a client that begins many of them would keep all others waiting.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import (
    IOpenSSLServerConnectionCreator,
    IProtocolFactory,
    IReactorTime,
    ITransport,
)
from twisted.internet.protocol import connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure

from usbip_server.net.caller import principalAt
from usbip_server.net.turns import Account, Turns


class SharedTls(TLSMemoryBIOProtocol):
    """
    One connection. What has arrived is decrypted when it is the client's turn; until then no more
    is read.
    """

    factory: SharedTlsFactory
    transport: Any
    _account: Account

    def makeConnection(self, transport: ITransport) -> None:
        self._principal = principalAt(transport.getPeer())
        self._account = self.factory.turns.join(self._principal)
        self._encrypted = b""
        self._isQueued = False
        self._isLost = False
        super().makeConnection(transport)

    def dataReceived(self, data: bytes) -> None:
        self._encrypted += data
        if not self._isQueued:
            self._decrypt()

    def takeTurn(self) -> None:
        """Decrypt what has arrived."""
        self._isQueued = False
        if not self._isLost:
            self.transport.resumeProducing()
            self._decrypt()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._isLost = True
        self.factory.turns.leave(self._principal)
        super().connectionLost(reason)

    def _decrypt(self) -> None:
        account = self._account
        account.begin()
        if self.factory.turns.seconds() < account.until:
            encrypted, self._encrypted = self._encrypted, b""
            super().dataReceived(encrypted)
        else:
            self._isQueued = True
            self.transport.pauseProducing()
            account.wait(self)
        account.end()


class SharedTlsFactory(TLSMemoryBIOFactory):
    """
    Makes the connections of a server.
    """

    protocol = SharedTls

    def __init__(
        self,
        certificates: IOpenSSLServerConnectionCreator,
        above: IProtocolFactory,
        clock: IReactorTime,
    ) -> None:
        """
        @param above: makes the protocol above TLS.
        """
        super().__init__(certificates, False, above, clock)
        self.turns = Turns(clock)
