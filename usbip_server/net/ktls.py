"""
Kernel TLS (kTLS): whether the kernel encrypts a TLS connection.
"""

from __future__ import annotations

import socket
import struct

SOL_TLS = 282
"""C{include/linux/socket.h}."""

OP_ENABLE_KTLS = 8
"""Has OpenSSL pass the keys to the kernel, if that supports it (SSL_CTX_set_options(3)). C{ssl} has
C{OP_ENABLE_KTLS} since Python 3.12."""

DIRECTIONS = {"sending": 1, "receiving": 2}
"""C{TLS_TX} and C{TLS_RX} (C{include/uapi/linux/tls.h})."""

INFO = struct.Struct("=HH")
"""C{struct tls_crypto_info}: version and cipher. If this is the length of the buffer, the kernel
returns these two for all ciphers, without the key (C{do_tls_getsockopt_conf},
C{net/tls/tls_main.c})."""

NUMBER_OF = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}
"""C{TLS_1_2_VERSION} and C{TLS_1_3_VERSION}."""


def missing(connection: socket.socket, version: str | None) -> str | None:
    """
    The reason why the kernel does not encrypt a connection.

    @param version: the version of TLS, as C{SSLSocket.version} returns it.
    @return: C{None}: the kernel has the keys of both directions, for this version.
    """
    lacking = [name for name in DIRECTIONS if not _isKeyed(connection, name, version)]
    if lacking:
        return f"the kernel has no keys for {' and '.join(lacking)}"
    return None


def _isKeyed(connection: socket.socket, direction: str, version: str | None) -> bool:
    try:
        found = connection.getsockopt(SOL_TLS, DIRECTIONS[direction], INFO.size)
        number, cipher = INFO.unpack(found)
    except (OSError, struct.error):
        return False  # ENOPROTOOPT: not a TLS socket; EBUSY: no key
    return bool(cipher) and number == NUMBER_OF.get(version or "")
