"""
TLS with a server: the contexts for requests and for USB/IP, and what its errors mean.
"""

from __future__ import annotations

import contextlib
import functools
import os
import ssl
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from usbip_server.client.servers import ClientTls
from usbip_server.net.ktls import OP_ENABLE_KTLS
from usbip_server.net.tlserrors import reasonOf

if TYPE_CHECKING:  # loaded where a certificate is read: it takes longer than all else here
    from cryptography.x509 import Certificate

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Ciphers of TLS 1.2 that the kernel supports (C{include/uapi/linux/tls.h})."""


class WrongTls(ValueError):
    """
    A file that the configuration of TLS names is wrong.

    @ivar key: which of them: C{"ca"}, C{"certificate"} or C{"key"}; C{None}: they do not fit
        together.
    """

    def __init__(self, key: str | None, message: str) -> None:
        super().__init__(message)
        self.key = key


def require(tls: ClientTls) -> None:
    """
    Check that the files can be read and used.

    @raise WrongTls: one cannot be.
    """
    if tls.ca is None and tls.certificate is None:
        return
    try:
        exportContext(tls)
    except WrongTls:
        raise
    except Exception as error:  # OpenSSL has errors of its own
        raise WrongTls(None, reasonOf(error, isClient=True)) from error


def controlContext(tls: ClientTls) -> ssl.SSLContext:
    """
    The context for requests.

    @raise WrongTls: a file cannot be read, or is not what it should be.
    """
    authorities = [] if tls.ca is None else certificatesIn("ca", tls.ca)
    encoded = b"".join(map(_der, authorities))
    context = ssl.create_default_context(cadata=encoded or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # `ca` may also be the certificate of one server, which `usbipshare trust` has stored.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if tls.certificate is not None:
        keyOf(tls, certificatesIn("certificate", tls.certificate)[0])
        context.load_cert_chain(tls.certificate, tls.key)
    return context


def exportContext(tls: ClientTls) -> ssl.SSLContext:
    """
    The context for USB/IP: of connections that the kernel can take over, where OpenSSL passes it
    the keys. Errors as of L{controlContext}.
    """
    context = controlContext(tls)
    # The kernel would take TLS 1.3's session tickets and key updates for USB traffic.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= OP_ENABLE_KTLS | ssl.OP_NO_RENEGOTIATION
    return context


_CREATING = threading.Lock()


@functools.lru_cache
def _cachedControlContext(tls: ClientTls, state: object) -> ssl.SSLContext:
    """
    @param state: of the files: with another state they are read again.
    """
    return controlContext(tls)


def contextFor(tls: ClientTls, isExport: bool) -> ssl.SSLContext:
    """
    The context for a connection. That for requests is shared by all servers with the same files.

    @param isExport: for USB/IP, not for requests.
    @raise WrongTls: a file cannot be read, or is not what it should be.
    """
    if isExport:
        return exportContext(tls)
    with _CREATING:
        return _cachedControlContext(tls, _stateOf(tls))


def _stateOf(tls: ClientTls) -> object:
    """Changes when one of the files is replaced."""
    paths = filter(None, (tls.ca, tls.certificate, tls.key))
    with contextlib.suppress(OSError):  # the one who reads the file has the error
        return tuple((it.st_ino, it.st_mtime_ns, it.st_size) for it in map(os.stat, paths))
    return None


def nameOf(host: str, tls: ClientTls) -> str:
    """
    The name that the certificate of a host has to be for: an address without its zone
    (C{%eth0}).
    """
    return tls.serverName or host.partition("%")[0]


def keyOf(tls: ClientTls, certificate: Certificate) -> Any:
    """
    The client's private key.

    @raise WrongTls: it cannot be read, or does not belong to the certificate.
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
    The certificates in a file: at least one.

    @param name: which of the files it is, for L{WrongTls}.
    @raise WrongTls: there are none, or it cannot be read.
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
