"""
What the daemon shows where TLS is spoken, and whose certificates it takes.

The files are read when the daemon starts and when it reads its configuration anew, and at no
other time: a process that has given up its privileges may not be able to.
"""

from __future__ import annotations

import ssl
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.ssl import AcceptableCiphers, CertificateOptions, TLSVersion
from twisted.logger import Logger
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
    What places that listen with TLS show, and ask for. All are files in PEM.

    @ivar certificate: the server's, and those between it and its CA.
    @ivar key: the key of the first; C{None}: it is in the same file.
    @ivar clientCa: whose certificates clients may show.
    @ivar requireClientCertificate: they have to show one.
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
Of TLS 1.2, the best first: Mozilla's "intermediate"
(U{https://wiki.mozilla.org/Security/Server_Side_TLS}) without DHE. The kernel can go on with
all of them (C{include/uapi/linux/tls.h}). Those of TLS 1.3 are OpenSSL's own choice.
"""

OPENSSL_KEYS_TLS_1_3 = (3, 2)
"""The first OpenSSL that hands the kernel the keys of both directions for TLS 1.3 too (its
C{CHANGES.md})."""


class Credentials(NamedTuple):
    """
    What the files hold, checked.

    @ivar options: for Twisted: the control port.
    @ivar context: for the standard library, which can have the kernel go on with the
        encryption: the export port.
    """

    options: CertificateOptions
    context: ssl.SSLContext


@implementer(IOpenSSLServerConnectionCreator)
class Certificates:
    """
    Gives each new connection what holds at the time. Those there are keep what they have.
    """

    def __init__(self, credentials: Credentials | None = None) -> None:
        """
        @param credentials: C{None} where nothing listens with TLS.
        """
        self._credentials = credentials

    def become(self, credentials: Credentials | None) -> Credentials | None:
        """
        From now on these.

        @param credentials: C{None}: nothing is to listen with TLS any more. Who connects
            before that is so gets what there was.
        @return: what held until now.
        """
        before = self._credentials
        self._credentials = credentials or before
        return before

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """See C{twisted.internet.interfaces.IOpenSSLServerConnectionCreator}."""
        assert self._credentials is not None, "it listens with TLS, and has no certificate"
        made: SSL.Connection = self._credentials.options.serverConnectionForTLS(tlsProtocol)
        return made

    @property
    def context(self) -> ssl.SSLContext:
        """For the next connection to the export port."""
        assert self._credentials is not None, "it listens with TLS, and has no certificate"
        return self._credentials.context


def read(tls: Tls) -> Credentials:
    """
    Read and check the files. A certificate that is not valid at present is only warned of:
    the clock may be wrong as well.

    @raise InvalidOption: one of them cannot be used.
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
    for path, certificates in ((tls.certificate, chain), (tls.clientCa, authorities)):
        for certificate in certificates:
            _warn(str(path), certificate)
    return Credentials(options, context)


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
    options.getContext()  # made now, so that what is wrong is known now
    return options


def _context(tls: Tls, authorities: list[x509.Certificate]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ssl.OPENSSL_VERSION_INFO < OPENSSL_KEYS_TLS_1_3:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    # What the kernel could not answer, or would take for data.
    context.options |= OP_ENABLE_KTLS | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.num_tickets = 0
    context.load_cert_chain(tls.certificate, tls.key, password="")  # nobody is asked for one
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


def _warn(path: str, certificate: x509.Certificate) -> None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= datetime.now(timezone.utc) <= end:
        _log.warn(
            "{path}: the certificate of {name} is valid from {begin} to {end} only, which is "
            "not now: whoever checks it will not take it",
            path=path,
            name=certificateName(certificate),
            begin=begin.isoformat(),
            end=end.isoformat(),
        )


def _wrong(option: str, reason: str) -> InvalidOption:
    return InvalidOption(("tls", option), reason)


_log = Logger()


def certificateName(certificate: x509.Certificate) -> str | None:
    """
    Whom a certificate names: the common name of its subject.
    """
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if names else None
