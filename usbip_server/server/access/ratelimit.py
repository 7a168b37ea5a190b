"""
Rate-limits failed token attempts.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable

from usbip_server.model.errors import NotAllowed
from usbip_server.model.policy import Principal
from usbip_server.runtime.backoff import BackoffOptions

FREE = 3
"""Wrong tokens without a pause: people mistype."""

PAUSES = BackoffOptions(first=1.0, longest=60.0)
"""Between requests with a token, after each further wrong one."""

FORGIVEN = 900.0
"""Seconds after the last wrong token at which the count begins anew."""

REMEMBERED = 4096
"""Addresses that are counted; beyond that the oldest are dropped."""

NETWORK = 64
"""Prefix length of the IPv6 network that one site gets (RFC 6177)."""


class TokenRateLimiter:
    """
    Counts the wrong tokens from each address. After some of them, requests with a token from
    that address are refused for a while: on all its connections, or an attacker would open many.
    Requests without a token are not affected.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        """
        @param seconds: the reactor's clock.
        """
        self._seconds = seconds
        self._failures: dict[str, tuple[int, float]] = {}

    def require(self, peer: Principal) -> None:
        """
        @raise NotAllowed: the address is in a pause.
        """
        count, last = self._failures.get(_key(peer), (0, 0.0))
        passed = abs(self._seconds() - last)  # the clock may have been set back
        left = _pause(count) - passed
        if left > 0:
            raise NotAllowed(
                f"{count} wrong tokens came from {peer}: requests with a token are answered "
                f"again in {math.ceil(left)} s"
            )

    def failed(self, peer: Principal) -> None:
        """Count a wrong token."""
        now = self._seconds()
        count, last = self._failures.pop(_key(peer), (0, now))
        if abs(now - last) > FORGIVEN:
            count = 0
        self._failures[_key(peer)] = count + 1, now
        if len(self._failures) > REMEMBERED:
            del self._failures[next(iter(self._failures))]


def _pause(count: int) -> float:
    """
    The length of the pause after so many wrong tokens, in seconds.
    """
    return PAUSES.after(count - FREE)


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
