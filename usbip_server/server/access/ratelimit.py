"""
Slowing those down who guess tokens.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable

from usbip_server.model.errors import NotAllowed
from usbip_server.model.policy import Principal

FREE = 3
"""Wrong tokens that cost nothing: somebody mistypes."""

LONGEST = 60.0
"""Seconds of a pause; each is twice as long as the one before."""

FORGIVEN = 900.0
"""Seconds without another, after which wrong tokens are forgotten."""

REMEMBERED = 4096
"""Addresses; of more, those that were heard of longest ago are forgotten."""

NETWORK = 64
"""Bits of an IPv6 address that somebody has all addresses of (RFC 6177)."""


class TokenRateLimiter:
    """
    Remembers how often each address has shown a wrong token. A pause concerns only requests
    with a token, and all of those that come from the address: else one would try on many
    connections at a time.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        """
        @param seconds: the reactor's clock.
        """
        self._seconds = seconds
        self._failures: dict[str, tuple[int, float]] = {}

    def require(self, peer: Principal) -> None:
        """
        @raise NotAllowed: it has to wait before it may try again.
        """
        count, last = self._failures.get(_key(peer), (0, 0.0))
        passed = abs(self._seconds() - last)  # somebody may have set the clock back
        left = _pause(count) - passed
        if left > 0:
            raise NotAllowed(
                f"{count} wrong tokens came from {peer}: requests with a token are answered "
                f"again in {math.ceil(left)} s"
            )

    def failed(self, peer: Principal) -> None:
        """It has shown a wrong token."""
        now = self._seconds()
        count, last = self._failures.pop(_key(peer), (0, now))
        if abs(now - last) > FORGIVEN:
            count = 0
        self._failures[_key(peer)] = count + 1, now
        if len(self._failures) > REMEMBERED:
            del self._failures[next(iter(self._failures))]


def _pause(count: int) -> float:
    """
    Seconds, after so many wrong tokens.
    """
    return 0.0 if count <= FREE else min(LONGEST, 2.0 ** min(count - FREE - 1, 16))


def _key(peer: Principal) -> str:
    if peer.uid is not None:
        return f"uid {peer.uid}"
    try:
        address = ipaddress.ip_address(peer.address.partition("%")[0])
    except ValueError:
        return peer.address
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address.packed, NETWORK), strict=False))
