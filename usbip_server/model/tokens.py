"""
Tokens, the secrets that authenticate a client, and their hashes.

A token is generated, never chosen by a person: it has 256 random bits, so a fast hash is as safe as
a slow one. The configuration contains only salted hashes, C{sha256$SALT$HASH}, with the salt and
the hash in hexadecimal digits.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

PREFIX = "usbip_"
"""Identifies a token as one, for people and for programs that search for secrets."""

_HASH = re.compile(r"sha256\$[0-9a-f]{32}\$[0-9a-f]{64}", re.ASCII)


def newToken() -> str:
    """
    Generate a token.
    """
    return PREFIX + secrets.token_urlsafe(32)


def hashOf(token: str, salt: str | None = None) -> str:
    """
    Hash a token.

    @param salt: 32 hexadecimal digits; C{None}: random ones.
    """
    salt = salt or secrets.token_hex(16)
    digest = hashlib.sha256(f"{salt}{token}".encode("utf-8", "surrogatepass")).hexdigest()
    return f"sha256${salt}${digest}"


def isHashOf(stored: str, token: str) -> bool:
    """
    Whether a hash is that of a token. Takes the same time for either result.
    """
    return hmac.compare_digest(stored, hashOf(token, stored.split("$")[1]))


def requireHash(text: str) -> None:
    """
    Check the format of a hash.

    @raise ValueError: the text is not the hash of a token.
    """
    if not _HASH.fullmatch(text):
        raise ValueError(
            "`token`: this has to be the hash of a token, sha256$...: `usbipshare token` creates "
            "a token and its hash"
        )
