"""
The reasons of failed TLS connections in words for users: one table for C{ssl} and pyOpenSSL, for
servers and clients. Neither of the two libraries is loaded before there is an error to explain.
"""

from __future__ import annotations

from typing import Any

OTHER_NAME = (
    "the server's certificate is for another name: if that name is right, set `server_name` in "
    "client.yaml"
)

_NAME_MISMATCH = (62, 64)
"""C{X509_V_ERR_HOSTNAME_MISMATCH} and C{X509_V_ERR_IP_ADDRESS_MISMATCH} (OpenSSL,
C{include/openssl/x509_vfy.h})."""

_UNTRUSTED = ("the client's certificate is rejected", "the server's certificate is not trusted")

_LEFT = (
    "the client disconnected during the handshake",
    "the server closes the connection in the TLS handshake: it may not support TLS",
)

_NO_TLS = (
    "the client does not speak TLS",
    "the server does not use TLS on this port",
)

_REJECTED = "the client rejects this server's certificate"

_NEEDS_CERTIFICATE = (
    "the server requires a client certificate, and does not accept the one it was given, if any: "
    "set `tls: {certificate: FILE}`"
)

MEANINGS = {
    "http request": ("the client speaks HTTP", _NO_TLS[1]),
    "wrong version number": _NO_TLS,
    "packet length too long": _NO_TLS,
    "record layer failure": _NO_TLS,
    "unsupported protocol": (
        "the client supports no TLS later than 1.1",
        "the server supports no TLS later than 1.1",
    ),
    "no shared cipher": (
        "the client supports none of this server's ciphers",
        "the server supports none of the client's ciphers",
    ),
    "peer did not return a certificate": ("the client has sent no certificate", _NEEDS_CERTIFICATE),
    "certificate verify failed": (
        _UNTRUSTED[0],
        f"{_UNTRUSTED[1]}: name its CA with `tls: {{ca: FILE}}`",
    ),
    "tlsv13 alert certificate required": (_REJECTED, _NEEDS_CERTIFICATE),
    "sslv3 alert handshake failure": (
        "the client has ended the TLS handshake with an error",
        _NEEDS_CERTIFICATE,
    ),
    "ssl/tls alert handshake failure": (
        "the client has ended the TLS handshake with an error",
        _NEEDS_CERTIFICATE,
    ),
    "sslv3 alert bad certificate": (_REJECTED, _NEEDS_CERTIFICATE),
    "sslv3 alert certificate expired": (
        "the client rejects this server's expired certificate",
        _NEEDS_CERTIFICATE,
    ),
    "tlsv1 alert unknown ca": (f"{_REJECTED}: unknown CA", _NEEDS_CERTIFICATE),
}
"""OpenSSL's reasons, in lower case and with spaces, and what they mean: to the operator of a server
about a client, and to the user of a client about a server."""


def reasonOf(error: BaseException, isClient: bool = False) -> str:
    """
    The reason why TLS has failed.

    @param error: an exception of C{ssl}, of pyOpenSSL or of the connection.
    @param isClient: whether this end is the client; its other end is the server then.
    """
    import ssl

    if isinstance(error, ssl.SSLCertVerificationError):
        if isClient and error.verify_code in _NAME_MISMATCH:
            return OTHER_NAME
        return f"{_UNTRUSTED[isClient]}: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError | ConnectionError):
        return _LEFT[isClient]
    return "; ".join(_meaning(each, isClient) for each in _reasons(error)) or str(error)


def _meaning(reason: str, isClient: bool) -> str:
    if reason in MEANINGS:
        return MEANINGS[reason][isClient]
    return f"TLS failed: {reason}" if isClient else reason


def _reasons(error: BaseException) -> list[str]:
    """
    OpenSSL's reasons, C{"wrong version number"}. C{ssl} has one, C{"WRONG_VERSION_NUMBER"};
    pyOpenSSL has a list of C{(library, function, reason)}.
    """
    entries: Any = error.args[0] if error.args else None
    if isinstance(entries, list):
        return [str(entry[-1]) for entry in entries if entry[-1]]
    reason = getattr(error, "reason", None)
    return [reason.replace("_", " ").lower()] if isinstance(reason, str) and reason else []
