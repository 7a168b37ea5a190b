"""
The server's certificate and the CA of its clients, with reload.

The files are read when the daemon starts and when it reloads its configuration, at no other time:
a process that has dropped its privileges may not be able to read them.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.ssl import AcceptableCiphers, CertificateOptions, TLSVersion
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from usbip_server.model.options import InvalidOption
from usbip_server.net.ktls import OP_ENABLE_KTLS as OP_ENABLE_KTLS
from usbip_server.net.tlserrors import reasonOf


class Tls(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={
        "clientCa": "client_ca",
        "requireClientCertificate": "require_client_certificate",
    },
):
    """
    The C{tls} block. All files are in PEM format.

    @ivar certificate: the file of the server's certificate and its intermediate certificates.
    @ivar key: the file of its key; C{None}: the key is in the same file.
    @ivar clientCa: the file of the CA of clients' certificates.
    @ivar requireClientCertificate: whether clients have to send a certificate.
    """

    certificate: str
    key: str | None = None
    clientCa: str | None = None
    requireClientCertificate: bool = False

    def __post_init__(self) -> None:
        if self.requireClientCertificate and self.clientCa is None:
            raise ValueError("`require_client_certificate` needs `client_ca`: whose?")


CIPHERS = ":".join(
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-RSA-CHACHA20-POLY1305",
    )
)
"""
The ciphers of TLS 1.2, the best first: Mozilla's "intermediate"
(U{https://wiki.mozilla.org/Security/Server_Side_TLS}) without DHE. The kernel supports all of them
(C{include/uapi/linux/tls.h}). Those of TLS 1.3 are OpenSSL's defaults.
"""

OPENSSL_KEYS_TLS_1_3 = (3, 2)
"""The first version of OpenSSL that passes the keys of both directions to the kernel for TLS 1.3
(C{CHANGES.md})."""


class Validity(NamedTuple):
    """
    When a certificate is valid.

    @ivar path: its file.
    @ivar name: the common name in it; C{None}: it has none.
    """

    path: str
    name: str | None
    begin: datetime
    end: datetime


class Credentials(NamedTuple):
    """
    The content of the files, checked.

    @ivar options: for requests, whose TLS is Twisted's.
    @ivar context: for USB/IP, whose TLS is that of C{ssl}, which supports kernel TLS.
    @ivar validities: of all certificates in the files.
    """

    options: CertificateOptions
    context: ssl.SSLContext
    validities: tuple[Validity, ...]


@implementer(IOpenSSLServerConnectionCreator)
class Certificates:
    """
    Has the credentials for new connections. Existing connections keep theirs.
    """

    def __init__(self, credentials: Credentials | None = None) -> None:
        """
        @param credentials: C{None} if no endpoint has TLS.
        """
        self._credentials = credentials

    def replace(self, credentials: Credentials | None) -> Credentials | None:
        """
        Replace the credentials.

        @param credentials: C{None}: no endpoint has TLS any more. Connections that are made before
            the endpoints are closed get the old ones.
        @return: the credentials before.
        """
        before = self._credentials
        self._credentials = credentials or before
        return before

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """See C{twisted.internet.interfaces.IOpenSSLServerConnectionCreator}."""
        assert self._credentials is not None, "an endpoint with TLS has no certificate"
        made: SSL.Connection = self._credentials.options.serverConnectionForTLS(tlsProtocol)
        return made

    @property
    def expiries(self) -> Mapping[str, float]:
        """
        When a certificate in each file expires first, in seconds since the epoch.
        """
        found: dict[str, float] = {}
        for each in () if self._credentials is None else self._credentials.validities:
            found[each.path] = min(found.get(each.path, inf), each.end.timestamp())
        return found

    @property
    def context(self) -> ssl.SSLContext:
        """The context for the next USB/IP connection."""
        assert self._credentials is not None, "an endpoint with TLS has no certificate"
        return self._credentials.context


def read(tls: Tls) -> Credentials:
    """
    Read and check the files. A certificate that is not valid at present is accepted, as the clock
    may be wrong.

    @raise InvalidOption: a file cannot be used.
    """
    chain = _certificates("certificate", tls.certificate)
    key = _key(tls)
    if key.public_key() != chain[0].public_key():
        raise _wrong(
            "certificate" if tls.key is None else "key",
            f"the key in {tls.key or tls.certificate} does not belong to the first certificate "
            f"in {tls.certificate}, which has to be the server's own",
        )
    authorities = [] if tls.clientCa is None else _certificates("client_ca", tls.clientCa)
    try:
        options = _options(tls, key, chain, authorities)
        context = _context(tls, authorities)
    except SSL.Error as error:
        raise _wrong("certificate", f"OpenSSL does not take it: {reasonOf(error)}") from None
    except (OSError, TypeError) as error:  # an ssl.SSLError is an OSError
        raise _wrong("certificate", f"OpenSSL does not take it: {error}") from None
    validities = tuple(
        Validity(str(path), certificateName(it), it.not_valid_before_utc, it.not_valid_after_utc)
        for path, certificates in ((tls.certificate, chain), (tls.clientCa, authorities))
        for it in certificates
    )
    return Credentials(options, context, validities)


def _options(
    tls: Tls, key: Any, chain: list[x509.Certificate], authorities: list[x509.Certificate]
) -> CertificateOptions:
    first, *others = map(crypto.X509.from_cryptography, chain)
    options = CertificateOptions(
        privateKey=crypto.PKey.from_cryptography_key(key),
        certificate=first,
        extraCertChain=others,
        acceptableCiphers=AcceptableCiphers.fromOpenSSLCipherString(CIPHERS),
        raiseMinimumTo=TLSVersion.TLSv1_2,
        verify=bool(authorities),
        caCerts=[crypto.X509.from_cryptography(authority) for authority in authorities],
        requireCertificate=tls.requireClientCertificate,
    )
    options.getContext()  # raises what is wrong
    return options


def _context(tls: Tls, authorities: list[x509.Certificate]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ssl.OPENSSL_VERSION_INFO < OPENSSL_KEYS_TLS_1_3:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    # The kernel could not process these, or would take them for data.
    context.options |= OP_ENABLE_KTLS | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.num_tickets = 0
    context.load_cert_chain(tls.certificate, tls.key, password="")  # instead of a prompt
    if authorities:
        encoded = b"".join(authority.public_bytes(Encoding.DER) for authority in authorities)
        context.load_verify_locations(cadata=encoded)
        isRequired = tls.requireClientCertificate
        context.verify_mode = ssl.CERT_REQUIRED if isRequired else ssl.CERT_OPTIONAL
    return context


def _key(tls: Tls) -> Any:
    path = tls.key or tls.certificate
    option = "certificate" if tls.key is None else "key"
    pem = _bytes(option, path)
    try:
        return load_pem_private_key(pem, None)
    except TypeError:
        reason = f"the key in {path} is encrypted: decrypt it (openssl pkey -in {path} -out ...)"
    except (ValueError, UnsupportedAlgorithm):
        reason = f"{path} holds no private key in PEM"
        if tls.key is None:
            reason += ": say with `key` which file does"
    raise _wrong(option, reason)


def _certificates(option: str, path: str) -> list[x509.Certificate]:
    """
    @return: at least one.
    """
    try:
        return x509.load_pem_x509_certificates(_bytes(option, path))
    except ValueError:
        reason = f"{path} holds no certificate in PEM, which begins -----BEGIN CERTIFICATE-----"
        raise _wrong(option, reason) from None


def _bytes(option: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _wrong(option, f"{path} cannot be read: {error.strerror}") from None


def _wrong(option: str, reason: str) -> InvalidOption:
    return InvalidOption(("tls", option), reason)


def certificateName(certificate: x509.Certificate) -> str | None:
    """
    The common name of a certificate's subject; C{None} if it has none.
    """
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if names else None
