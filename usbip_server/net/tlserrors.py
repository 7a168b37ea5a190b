"""
Why a TLS connection failed, in words.
"""

from __future__ import annotations

from OpenSSL import SSL


def openSslReason(error: SSL.Error) -> str:
    """
    What OpenSSL says is wrong, without the names of its parts: C{"wrong version number"}.
    """
    entries = error.args[0] if error.args and isinstance(error.args[0], list) else ()
    return "; ".join(entry[-1] for entry in entries if entry[-1]) or str(error)
