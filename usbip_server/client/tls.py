"""
TLS with a server: whom we trust, who we are, and what it means if it comes to nothing.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from usbip_server.client.servers import ClientTls
from usbip_server.net.ktls import OP_ENABLE_KTLS

if TYPE_CHECKING:  # and where there is TLS: it takes longer to load than all else that is here
    from cryptography.x509 import Certificate

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: the kernel can go on with them (C{include/uapi/linux/tls.h})."""

ALERT = b"\x15\x03"
"""How TLS answers those who do not speak it (RFC 5246, 6.2.1)."""

SPEAKS_TLS = "it speaks TLS, and is spoken to in plain: give it `tls` in client.yaml"

LEAVES = "it leaves in the handshake of TLS, which it may not speak"

OTHER_NAME = "its certificate is for another name: if that is its, say so with `server_name`"

_NAME_MISMATCH = (62, 64)
"""C{X509_V_ERR_HOSTNAME_MISMATCH} and C{X509_V_ERR_IP_ADDRESS_MISMATCH} (OpenSSL,
C{include/openssl/x509_vfy.h})."""

_NO_TLS = "it does not speak TLS"
_NOT_US = "it asks for a certificate, and takes none of ours"

MEANING = {
    "certificate verify failed": (
        "its certificate is not to be trusted: name its CA with `tls: {ca: FILE}`"
    ),
    "wrong version number": _NO_TLS,
    "packet length too long": _NO_TLS,
    "record layer failure": _NO_TLS,
    "tlsv13 alert certificate required": _NOT_US,
    "sslv3 alert handshake failure": _NOT_US,
    "ssl/tls alert handshake failure": _NOT_US,
    "sslv3 alert bad certificate": _NOT_US,
    "tlsv1 alert unknown ca": _NOT_US,
}
"""What OpenSSL's reasons mean."""


class WrongTls(ValueError):
    """
    What is configured makes no sense.

    @ivar key: which of the files it is: C{"ca"}, C{"certificate"} or C{"key"}; C{None}: none of
        them alone.
    """

    def __init__(self, key: str | None, message: str) -> None:
        super().__init__(message)
        self.key = key


def require(tls: ClientTls) -> None:
    """
    Look at the files.

    @raise WrongTls: one cannot be read, or makes no sense.
    """
    if tls.ca is None and tls.certificate is None:
        return
    try:
        exportContext(tls)
    except WrongTls:
        raise
    except Exception as error:  # OpenSSL has errors of its own
        raise WrongTls(None, reasonOf(error)) from error


def controlContext(tls: ClientTls) -> ssl.SSLContext:
    """
    For requests.

    @raise WrongTls: a file cannot be read, or makes no sense.
    """
    authorities = [] if tls.ca is None else certificatesIn("ca", tls.ca)
    encoded = b"".join(map(_der, authorities))
    context = ssl.create_default_context(cadata=encoded or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.certificate is not None:
        keyOf(tls, certificatesIn("certificate", tls.certificate)[0])
        context.load_cert_chain(tls.certificate, tls.key)
    return context


def exportContext(tls: ClientTls) -> ssl.SSLContext:
    """
    For USB/IP: the kernel can carry it on, where OpenSSL gives it the keys. Errors as of
    L{controlContext}.
    """
    context = controlContext(tls)
    # What else there is in TLS 1.3, tickets and new keys, would be taken for USB traffic.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= OP_ENABLE_KTLS | ssl.OP_NO_RENEGOTIATION
    return context


def nameOf(host: str, tls: ClientTls) -> str:
    """
    What stands in the certificate of a host. An address is without the interface that it is
    reached by.
    """
    return tls.serverName or host.partition("%")[0]


def reasonOf(error: Exception) -> str:
    """
    Why there is no TLS, for a person.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _NAME_MISMATCH:
            return OTHER_NAME
        return f"its certificate is not to be trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError):
        return LEAVES
    if isinstance(error, ssl.SSLError) and error.reason:
        return meaningOf(error.reason.replace("_", " ").lower())
    return str(error)


def meaningOf(reason: str) -> str:
    """
    The same of one of OpenSSL's reasons.
    """
    return MEANING.get(reason, f"no TLS: {reason}")


def keyOf(tls: ClientTls, certificate: Certificate) -> Any:
    """
    Our key.

    @raise WrongTls: it cannot be read, or is that of another certificate.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    name, path = ("certificate", tls.certificate) if tls.key is None else ("key", tls.key)
    assert path is not None
    pem = _read(name, path)
    try:
        key = load_pem_private_key(pem, None)
    except TypeError:
        raise WrongTls(name, f"the key in {path} is encrypted: decrypt it") from None
    except (ValueError, UnsupportedAlgorithm):
        raise WrongTls(name, f"{path} holds no private key in PEM") from None
    if key.public_key() != certificate.public_key():
        raise WrongTls(name, f"the key in {path} does not belong to {tls.certificate}")
    return key


def certificatesIn(name: str, path: str) -> list[Certificate]:
    """
    Those in a file, one at least.

    @param name: which of the files it is.
    @raise WrongTls: there are none.
    """
    from cryptography.x509 import load_pem_x509_certificates

    pem = _read(name, path)
    try:
        return load_pem_x509_certificates(pem)
    except ValueError:
        raise WrongTls(name, f"{path} holds no certificate in PEM") from None


def _der(certificate: Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.DER)


def _read(name: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise WrongTls(name, f"{path} cannot be read: {error.strerror}") from None
