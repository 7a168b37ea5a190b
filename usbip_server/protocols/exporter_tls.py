"""
USB/IP over TLS: the handshake, and the encryption of USB traffic after it::

    client <> server   TLS handshake
    client <> server   OP_REQ_..., OP_REP_... over TLS, see L{usbip_server.protocols.exporter}
    client <> device   USB traffic over TLS, encrypted by the kernel (ktls) or this daemon (relay)

After an import the device gets the connection itself if the kernel has the keys of both
directions (C{ktls}). Otherwise it gets one end of a socket pair, and this daemon relays between
the other end and the client (C{relay}). No device gets a connection that is not encrypted.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import partial
from typing import Any

from cryptography import x509
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from usbip_server.model.device import Encryption
from usbip_server.model.errors import InvalidRequest
from usbip_server.model.policy import Principal
from usbip_server.net.caller import principalAt
from usbip_server.net.certificates import certificateName
from usbip_server.net.handover import NotEncrypted, SessionSocket
from usbip_server.net.hangup import HangupWatcher
from usbip_server.net.ktls import missing
from usbip_server.net.relay import PairRelay
from usbip_server.net.tlserrors import reasonOf
from usbip_server.net.tlssocket import TlsSocket
from usbip_server.protocols.exporter import Exporter, ExporterFactory
from usbip_server.protocols.interfaces import ExportSettings
from usbip_server.runtime.repeats import Warnings

HANDSHAKE_SECONDS = 10.0
"""Time for a client to complete the handshake."""


class Secured(Protocol):
    """
    One connection. Twisted's transport owns the socket, but neither reads nor writes: TLS runs in
    a L{TlsSocket} on a duplicate.
    """

    factory: SecuredFactory
    transport: Any
    _log = Logger()

    def __init__(self, principal: Principal) -> None:
        self._principal = principal
        self._tls: TlsSocket | None = None
        self._exporter: Exporter | None = None
        self._relay: PairRelay | None = None
        self._heard = False
        self._deadline: IDelayedCall | None = None

    def connectionMade(self) -> None:
        self.transport.pauseProducing()  # TlsSocket reads
        if not self.factory.exporter.add(self, self._principal):
            self.transport.abortConnection()
            return
        self._deadline = self.factory.reactor.callLater(HANDSHAKE_SECONDS, self._tooSlow)
        try:
            # The handshake would wait for delayed acknowledgements, of 40 ms each.
            self.transport.setTcpNoDelay(True)
            self._tls = TlsSocket(
                self.transport.getHandle(),
                self.factory.context(),
                self.factory.reactor,
                self._shaken,
                self._received,
                self._closed,
            )
        except OSError:
            self.transport.abortConnection()  # it has ended already
            return
        self._tls.start()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._handshakeOver()
        self.factory.relayed.discard(self)
        if self._tls is not None:
            self._tls.abortConnection()
        if self._exporter is not None:
            self._exporter.connectionLost(reason)

    def close(self) -> None:
        """
        End the session if it is relayed, and the connection if it carries no USB traffic yet:
        the daemon stops.
        """
        if self._relay is not None:
            self._log.info(
                "{principal}: the session is relayed, and ends with the daemon",
                principal=str(self._principal),
            )
            self._relay.end()
        if self._tls is not None:
            self._tls.loseConnection()

    def _handshakeOver(self) -> None:
        self.factory.exporter.remove(self)
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()

    def _tooSlow(self) -> None:
        if self._tls is not None:
            self._warn(f"no handshake within {HANDSHAKE_SECONDS:g} s")
            self._tls.abortConnection()

    def _shaken(self) -> None:
        assert self._tls is not None
        shown = self._tls.certificate
        if shown is not None:
            try:
                name = certificateName(x509.load_der_x509_certificate(shown))
            except ValueError as error:  # OpenSSL is less strict
                self._warn(f"the client's certificate is malformed: {error}")
                self._tls.abortConnection()
                return
            self._principal = Principal(self._principal.address, certificate=name)
        self._handshakeOver()
        self._exporter = self.factory.exporter.make(self._principal, self._carry)
        self._exporter.makeConnection(self._tls)

    def _received(self, data: memoryview) -> None:
        assert self._exporter is not None
        self._heard = True
        self._exporter.dataReceived(bytes(data))

    def _closed(self, error: Exception | None) -> None:
        """TLS has ended, by either side."""
        if self._relay is not None:
            self._relay.end()
        if error is not None and self._isLogged(error):
            self._warn(reasonOf(error))
        self.transport.loseConnection()

    def _isLogged(self, error: Exception) -> bool:
        """
        Is an error to be logged here? Not that of a port probe, nor that of a client that
        disconnects. The exporter logs an incomplete request, and L{_tooSlow} a time-out.
        """
        if self._exporter is None:
            return self._tls is not None and self._tls.spoke
        isTls = isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError)
        return isTls and (self._relay is not None or not self._heard)

    def _carry(self) -> SessionSocket:
        """
        Return the socket for the device: the connection itself only if the kernel encrypts it.

        @raise InvalidRequest: the client has sent more than its request.
        @raise NotEncrypted: the kernel cannot encrypt, and C{require_ktls} is set.
        """
        assert self._tls is not None
        connection = self.transport.getHandle()
        if self._tls.unread:
            raise InvalidRequest("unexpected data after the request")
        lacking = missing(connection, self._tls.version)
        if lacking is None:
            return SessionSocket(
                given=connection,
                connection=connection,
                encryption=Encryption.KTLS,
                begin=self._tls.giveAway,
            )
        if self.factory.settings.requireKtls:
            raise NotEncrypted(
                f"{lacking}, and `require_ktls` allows nothing else. Load the kernel's module "
                "`tls` (modprobe tls), and have the client use TLS 1.2 with AES-GCM; or set "
                "`require_ktls: false`"
            )
        relay = PairRelay(self._tls, self.factory.hangups, self.factory.reactor)
        return SessionSocket(
            given=relay.given,
            connection=connection,
            encryption=Encryption.RELAY,
            begin=partial(self._begin, relay, lacking),
            drop=relay.end,
        )

    def _begin(self, relay: PairRelay, lacking: str) -> None:
        assert self._tls is not None
        if self._tls.isOver:
            relay.end()
            return
        self._log.info(
            "{principal}: {lacking}: the USB traffic is relayed by this daemon",
            principal=str(self._principal),
            lacking=lacking,
        )
        self._relay = relay
        self.factory.relayed.add(self)
        relay.begin()

    def _warn(self, reason: str) -> None:
        self.factory.warnings.warn(
            "{principal}: no TLS: {reason}", principal=str(self._principal), reason=reason
        )


class SecuredFactory(Factory):
    """
    Makes the connections for USB/IP over TLS.

    @ivar relayed: the connections whose USB traffic this daemon relays.
    @ivar hangups: reports the end of relayed sessions.
    @ivar warnings: about clients.
    """

    noisy = False

    def __init__(
        self,
        exporter: ExporterFactory,
        context: Callable[[], ssl.SSLContext],
        settings: ExportSettings,
        reactor: Any,
    ) -> None:
        """
        @param exporter: makes the protocol above TLS.
        @param context: returns the context for the next connection. Without kernel TLS enabled
            in it (C{SSL_OP_ENABLE_KTLS}) no connection uses kernel TLS.
        @param reactor: provides C{IReactorFDSet} and C{IReactorTime}.
        """
        self.exporter = exporter
        self.context = context
        self.settings = settings
        self.reactor = reactor
        self.relayed: set[Secured] = set()
        self.hangups = HangupWatcher(reactor)
        self.warnings = Warnings(Secured._log, reactor)

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        secured = Secured(principalAt(addr))
        secured.factory = self
        return secured

    def close(self) -> None:
        """End the relayed sessions: the daemon stops. The exporter closes the others."""
        for connection in tuple(self.relayed):
            connection.close()
        self.hangups.stop()
        self.warnings.stop()
