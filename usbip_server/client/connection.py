"""
A Twisted connection to a server, with or without TLS.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from cryptography import x509
from OpenSSL import SSL, crypto
from service_identity import VerificationError
from twisted.internet._sslverify import IOpenSSLTrustRoot  # twisted.internet.ssl has no name for it
from twisted.internet.defer import CancelledError
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import (
    ConnectingCancelledError,
    ConnectionLost,
    DNSLookupError,
    TimeoutError,
)
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import TLSVersion, optionsForClientTLS
from zope.interface import implementer

from usbip_server.client.jsonclient import unreachable
from usbip_server.client.servers import ClientTls, Server
from usbip_server.client.tls import certificatesIn, keyOf, nameOf
from usbip_server.net.tlserrors import OTHER_NAME, reasonOf

TLS_ERRORS = (SSL.Error, VerificationError)
"""The errors of a connection whose TLS handshake failed."""


def creatorFor(host: str, tls: ClientTls) -> IOpenSSLClientConnectionCreator:
    """
    TLS for requests.

    @raise WrongTls: a file cannot be read, or is not what it should be.
    """
    root = None if tls.ca is None else _TrustRoot(certificatesIn("ca", tls.ca))
    more: dict[str, Any] = {"raiseMinimumTo": TLSVersion.TLSv1_2}
    if tls.certificate is not None:
        chain = certificatesIn("certificate", tls.certificate)
        more["certificate"], *more["extraCertChain"] = map(_inOpenSsl, chain)
        more["privateKey"] = crypto.PKey.from_cryptography_key(keyOf(tls, chain[0]))
    return optionsForClientTLS(nameOf(host, tls), trustRoot=root, extraCertificateOptions=more)


_inOpenSsl = crypto.X509.from_cryptography


@implementer(IOpenSSLTrustRoot)
class _TrustRoot:
    """
    Certificates to trust: of CAs, or those of servers themselves, as C{usbipshare trust} stores
    them.
    """

    def __init__(self, certificates: Sequence[x509.Certificate]) -> None:
        self._certificates = certificates

    def _addCACertsToContext(self, context: SSL.Context) -> None:
        """Called by Twisted; the interface has this one private method."""
        store = context.get_cert_store()
        assert store is not None
        for certificate in self._certificates:
            store.add_cert(_inOpenSsl(certificate))
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)


P = TypeVar("P", bound=Protocol)


async def connect(reactor: Any, server: Server, seconds: float, make: Callable[[], P]) -> P:
    """
    Connect to a server.

    @param seconds: how long that may take.
    @param make: makes the protocol.
    @raise Unreachable: it cannot be connected to. A TLS handshake that fails is reported by the
        first request.
    """
    try:
        endpoint: IStreamClientEndpoint = HostnameEndpoint(
            reactor, server.host, server.port, timeout=seconds
        )
        if server.tls is not None:
            endpoint = wrapClientTLS(creatorFor(server.host, server.tls), endpoint)
    except ValueError as error:
        raise unreachable(server, str(error)) from error
    late = f"no connection within {seconds:g} s"
    factory = Factory.forProtocol(make)
    factory.noisy = False
    connecting = endpoint.connect(factory)
    giveUp = reactor.callLater(seconds, connecting.cancel)
    try:
        return cast(P, await connecting)
    except (CancelledError, ConnectingCancelledError) as error:
        if giveUp.active():  # it was cancelled by the caller
            raise CancelledError from error
        raise unreachable(server, late) from error
    except TimeoutError as error:
        raise unreachable(server, late) from error
    except Exception as error:
        raise unreachable(server, reason(error) if giveUp.active() else late) from error
    finally:
        if giveUp.active():
            giveUp.cancel()


def reason(error: BaseException | None) -> str:
    """
    The reason why a connection failed, in words for users.
    """
    if isinstance(error, DNSLookupError):
        return "there is no machine of this name"
    if isinstance(error, ConnectionLost):
        return "the connection was lost"
    if isinstance(error, VerificationError):
        return OTHER_NAME
    if isinstance(error, SSL.Error):
        return reasonOf(error, isClient=True)
    number = getattr(error, "osError", None)
    if isinstance(number, int):
        return os.strerror(number)
    return str(error).rstrip(".") or type(error).__name__
