"""
Slows down clients that send wrong tokens.

A token has 256 random bits, so guessing is hopeless however fast it is. What the delay limits is
the work that such clients cause; a client with a right token is never delayed by them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from usbip_server.model.policy import Principal

FREE = 3
"""Wrong tokens that are refused without a delay: people mistype."""

FORGIVEN = 900.0
"""Seconds after the last wrong token at which the count begins at zero again."""

REMEMBERED = 4096
"""Sites that are counted; beyond that the oldest are dropped."""

NETWORK = 64
"""Prefix length of the IPv6 network that one site gets (RFC 6177)."""


class TokenRateLimiter:
    """
    Counts the wrong tokens from each site.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        """
        @param seconds: the reactor's clock.
        """
        self._seconds = seconds
        self._failures: dict[str, tuple[int, float]] = {}

    def failed(self, peer: Principal) -> None:
        """Count a wrong token."""
        site, now = siteOf(peer), self._seconds()
        count = self._count(site)
        self._failures.pop(site, None)
        self._failures[site] = count + 1, now
        if len(self._failures) > REMEMBERED:
            del self._failures[next(iter(self._failures))]

    def isSlow(self, peer: Principal) -> bool:
        """Is the refusal of the next wrong token to be delayed?"""
        return self._count(siteOf(peer)) >= FREE

    def _count(self, site: str) -> int:
        count, last = self._failures.get(site, (0, 0.0))
        return count if self._seconds() - last <= FORGIVEN else 0


def siteOf(peer: Principal) -> str:
    """
    What all connections of one client have in common: its address, for IPv6 its network, on a unix
    socket its user.
    """
    if peer.uid is not None:
        return f"uid {peer.uid}"
    try:
        address = ipaddress.ip_address(peer.address.partition("%")[0])
    except ValueError:
        return peer.address
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address.packed, NETWORK), strict=False))
