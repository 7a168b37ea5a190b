"""
USB/IP over TLS: the handshake, and how USB traffic is encrypted after it.

What is said over a connection is L{usbip_server.protocols.exporter}'s. When the device gets it,
either the kernel has the keys of both directions and the device gets the connection itself
(C{ktls}); or it gets one end of a pair of sockets, and this daemon carries between the other
one and the client (C{relay}). No device ever gets a connection that is not encrypted.
"""

from __future__ import annotations

import ssl
import typing
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
from usbip_server.net.relay import Relay
from usbip_server.net.tlssocket import TlsSocket

HANDSHAKE_SECONDS = 10.0
"""For a client to get through the handshake."""

MEANING = {
    "HTTP_REQUEST": "it speaks HTTP",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "UNSUPPORTED_PROTOCOL": "it speaks no TLS later than 1.1",
    "NO_SHARED_CIPHER": "it knows none of our ciphers",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it shows no certificate",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not take our certificate: it does not know our CA",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it does not take our certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it does not take our certificate, which has expired",
}
"""What OpenSSL's reasons mean (C{SSLError.reason})."""


class Exporting(typing.Protocol):
    """
    Whoever serves USB/IP, whatever it comes over.

    @ivar connections: those that carry no traffic yet, whatever they come over.
    """

    connections: set[Any]

    def admits(self, principal: Principal) -> bool:
        """Is there room for one more of these?"""

    def make(self, principal: Principal, carry: Callable[[], SessionSocket]) -> Protocol:
        """
        Make the protocol for a connection.

        @param carry: makes what carries USB traffic.
        """


class Secured(Protocol):
    """
    One connection. Twisted has it as well, for as long as it lasts, but reads nothing from it
    and writes nothing to it.
    """

    factory: SecuredFactory
    transport: Any
    _log = Logger()

    def __init__(self, principal: Principal) -> None:
        self._principal = principal
        self._tls: TlsSocket | None = None
        self._exporter: Protocol | None = None
        self._relay: Relay | None = None
        self._heard = False
        self._deadline: IDelayedCall | None = None

    def connectionMade(self) -> None:
        self.transport.pauseProducing()  # what comes is not for Twisted
        self.factory.exporter.connections.add(self)
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
            self.transport.abortConnection()  # it is gone already
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
        The daemon stops: what it encrypts itself ends, and so does what has not begun.
        """
        if self._relay is not None:
            self._log.info(
                "{principal}: its session was relayed, and ends with the daemon",
                principal=str(self._principal),
            )
            self._relay.end()
        if self._tls is not None:
            self._tls.loseConnection()

    def _handshakeOver(self) -> None:
        self.factory.exporter.connections.discard(self)
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()

    def _tooSlow(self) -> None:
        if self._tls is not None:
            self._tell(f"no handshake within {HANDSHAKE_SECONDS:g} s")
            self._tls.abortConnection()

    def _shaken(self) -> None:
        assert self._tls is not None
        shown = self._tls.certificate
        if shown is not None:
            try:
                name = certificateName(x509.load_der_x509_certificate(shown))
            except ValueError as error:  # OpenSSL is not so strict
                self._tell(f"its certificate is not well formed: {error}")
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
        """
        TLS is over, whoever has ended it.
        """
        if self._relay is not None:
            self._relay.end()
        if error is not None and self._isWorthALine(error):
            self._tell(reasonOf(error))
        self.transport.loseConnection()

    def _isWorthALine(self, error: Exception) -> bool:
        """
        A port probe is not, nor is somebody who leaves. What is cut off in the middle of a
        request the exporter tells, and L{_tooSlow} whose time is over.
        """
        if self._exporter is None:
            return self._tls is not None and self._tls.spoke
        isTls = isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError)
        return isTls and (self._relay is not None or not self._heard)

    def _carry(self) -> SessionSocket:
        """
        See L{Exporting.make}. A connection is given away only if the kernel encrypts it.
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
        if self.factory.requireKtls:
            raise NotEncrypted(
                f"{lacking}, and `require_ktls` allows nothing else. Load the kernel's module "
                "`tls` (modprobe tls), and have the client use TLS 1.2 with AES-GCM; or set "
                "`require_ktls: false`"
            )
        relay = Relay(self._tls, self.factory.hangups, self.factory.reactor)
        return SessionSocket(
            given=relay.given,
            connection=connection,
            encryption=Encryption.RELAY,
            begin=partial(self._begin, relay, lacking),
            drop=relay.end,
        )

    def _begin(self, relay: Relay, lacking: str) -> None:
        assert self._tls is not None
        if self._tls.isOver:
            relay.end()
            return
        self._log.info(
            "{principal}: {lacking}: USB traffic passes through this daemon",
            principal=str(self._principal),
            lacking=lacking,
        )
        self._relay = relay
        self.factory.relayed.add(self)
        relay.begin()

    def _tell(self, reason: str) -> None:
        self._log.warn(
            "{principal}: no TLS: {reason}", principal=str(self._principal), reason=reason
        )


class SecuredFactory(Factory):
    """
    Makes the connections of the export port with TLS.

    @ivar relayed: those whose traffic passes through here.
    @ivar requireKtls: refuse instead.
    @ivar hangups: for L{Relay}.
    """

    noisy = False

    def __init__(
        self,
        exporter: Exporting,
        context: Callable[[], ssl.SSLContext],
        requireKtls: bool,
        reactor: Any,
    ) -> None:
        """
        @param context: for the next connection. It has kernel TLS enabled
            (C{SSL_OP_ENABLE_KTLS}), or none will have it.
        @param reactor: provides C{IReactorFDSet} and C{IReactorTime}.
        """
        self.exporter = exporter
        self.context = context
        self.requireKtls = requireKtls
        self.reactor = reactor
        self.relayed: set[Secured] = set()
        self.hangups = HangupWatcher(reactor)

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        principal = principalAt(addr)
        if not self.exporter.admits(principal):
            return None
        secured = Secured(principal)
        secured.factory = self
        return secured

    def close(self) -> None:
        """The daemon stops. Handshakes are the exporter's to end."""
        for connection in tuple(self.relayed):
            connection.close()
        self.hangups.stop()


def reasonOf(error: Exception) -> str:
    """
    Why there is no TLS, for a person.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate does not pass: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError | ConnectionError):
        return "it leaves in the handshake"
    if isinstance(error, ssl.SSLError) and error.reason:
        return MEANING.get(error.reason, error.reason.replace("_", " ").lower())
    return str(error)
