"""
A TLS client without a network.
"""

from __future__ import annotations

import ssl
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.protocol import connectionDone
from twisted.internet.task import Clock

from tests.support.fixtures import MemoryTransport
from usbip_server.net.sharedtls import SharedTlsFactory

ADDRESS = IPv4Address("TCP", "192.0.2.7", 40000)


class TlsWire:
    """
    A client, and its connection to a factory.

    @ivar received: what it was told, in plain.
    @ivar error: why it has given up.
    @ivar ended: has the server said a proper goodbye? Then the client says one, too.
    @ivar transport: what is below the server's TLS.
    """

    def __init__(
        self,
        factory: IProtocolFactory,
        certificates: Any,
        context: ssl.SSLContext,
        clock: Clock,
        speaks: bool = True,
        address: IPv4Address = ADDRESS,
        advances: bool = True,
    ) -> None:
        """
        @param factory: of the server; the TLS is added, unless it is a L{SharedTlsFactory}.
        @param speaks: does it begin a handshake?
        @param advances: let what is scheduled for now happen in each turn.
        """
        self.received = b""
        self.error: ssl.SSLError | None = None
        self.ended = False
        self.transport = MemoryTransport(address)
        self._lost = False
        self._speaks = speaks
        self._clock = clock
        self._advances = advances
        if not isinstance(factory, SharedTlsFactory):
            factory = SharedTlsFactory(certificates, factory, clock)
        self._server: Any = factory.buildProtocol(address)
        self._server.makeConnection(self.transport)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._client = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self.turn()

    def send(self, data: bytes) -> None:
        """Say something."""
        self._client.write(data)
        self.turn()

    def sendPlain(self, data: bytes) -> None:
        """Send something without encryption."""
        self._server.dataReceived(data)
        self.turn()

    def turn(self) -> None:
        """Let both go on until neither has more to say."""
        more = True
        while more:
            if self._advances:
                self._clock.advance(0)
            told = self.transport.value()
            self.transport.clear()
            self._incoming.write(told)
            if self._speaks:
                self._read()
            said = self._outgoing.read()
            if said and not self.transport.disconnecting:
                self._server.dataReceived(said)
            more = bool(told or said)
        if self.transport.disconnecting and not self._lost:
            self.drop()

    def drop(self) -> None:
        """The connection below breaks."""
        self._lost = True
        self._server.connectionLost(connectionDone)

    @property
    def version(self) -> str | None:
        """That of TLS, once the handshake is done."""
        return self._client.version() if self._client.cipher() else None

    @property
    def cipher(self) -> str:
        """Which one it is."""
        cipher = self._client.cipher()
        assert cipher is not None, self.error
        return cipher[0]

    @property
    def protocol(self) -> str | None:
        """Which of those offered it is."""
        return self._client.selected_alpn_protocol()

    @property
    def certificate(self) -> bytes | None:
        """What the server has shown, in DER."""
        return self._client.getpeercert(True)

    def _read(self) -> None:
        if self.error is not None:
            return
        try:
            self._client.do_handshake()
            while part := self._client.read(65536):
                self.received += part
            self._part()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLZeroReturnError:
            self._part()
        except ssl.SSLError as error:
            self.error = error

    def _part(self) -> None:
        if not self.ended:
            self.ended = True
            self._client.unwrap()
