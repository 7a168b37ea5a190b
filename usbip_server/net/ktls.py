"""
Has the kernel taken the encryption of a TLS connection over (kernel TLS, kTLS)?
"""

from __future__ import annotations

import socket
import struct

SOL_TLS = 282
"""C{include/linux/socket.h}."""

OP_ENABLE_KTLS = 8
"""Hand the keys to the kernel, if it takes them (SSL_CTX_set_options(3)): C{ssl} has it as
C{OP_ENABLE_KTLS} since Python 3.12."""

DIRECTIONS = {"sending": 1, "receiving": 2}
"""C{TLS_TX} and C{TLS_RX} (C{include/uapi/linux/tls.h})."""

INFO = struct.Struct("=HH")
"""C{struct tls_crypto_info}: version and cipher. With no more than that as the length the
kernel tells these two of every cipher, and no key (C{do_tls_getsockopt_conf},
C{net/tls/tls_main.c})."""

NUMBER_OF = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}
"""C{TLS_1_2_VERSION} and C{TLS_1_3_VERSION}."""


def missing(connection: socket.socket, version: str | None) -> str | None:
    """
    What keeps a connection from being the kernel's to encrypt.

    @param version: of TLS, as C{SSLSocket.version} calls it.
    @return: C{None}: nothing. It has the keys of both directions, and they are for this version.
    """
    lacking = [name for name in DIRECTIONS if not _isKeyed(connection, name, version)]
    if lacking:
        return f"the kernel has no keys for {' and '.join(lacking)}"
    return None


def _isKeyed(connection: socket.socket, direction: str, version: str | None) -> bool:
    try:
        told = connection.getsockopt(SOL_TLS, DIRECTIONS[direction], INFO.size)
        number, cipher = INFO.unpack(told)
    except (OSError, struct.error):
        return False  # ENOPROTOOPT: none of TLS; EBUSY: it has no key
    return bool(cipher) and number == NUMBER_OF.get(version or "")
