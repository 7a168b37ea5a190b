"""
Tokens: secrets that prove who somebody is, and what is kept of them.

A token is made here and never chosen by a person: 256 random bits, so that it cannot be
guessed, and a fast hash is as good as a slow one. The configuration holds only its hash, with
a salt: C{sha256$SALT$HASH}, both in hexadecimal digits.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

PREFIX = "usbip_"
"""So that people, and programs that look for secrets, see what it is."""

_HASH = re.compile(r"sha256\$[0-9a-f]{32}\$[0-9a-f]{64}", re.ASCII)


def newToken() -> str:
    """
    Make a token.
    """
    return PREFIX + secrets.token_urlsafe(32)


def hashOf(token: str, salt: str | None = None) -> str:
    """
    What to keep of a token.

    @param salt: 32 hexadecimal digits; others each time if it is not given.
    """
    salt = salt or secrets.token_hex(16)
    digest = hashlib.sha256(f"{salt}{token}".encode("utf-8", "surrogatepass")).hexdigest()
    return f"sha256${salt}${digest}"


def isHashOf(kept: str, token: str) -> bool:
    """
    Is it this token that the hash was made of? Takes as long, whatever the answer.
    """
    return hmac.compare_digest(kept, hashOf(token, kept.split("$")[1]))


def requireHash(text: str) -> None:
    """
    @raise ValueError: this is no hash of a token.
    """
    if not _HASH.fullmatch(text):
        raise ValueError(
            "`token`: what stands here is the hash of a token, sha256$...: `usbipshare token` "
            "makes both"
        )
