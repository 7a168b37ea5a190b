"""
Tests of L{usbip_server.server.access.ratelimit}.
"""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from usbip_server.model.policy import LOCAL, Principal
from usbip_server.server.access.ratelimit import (
    FORGIVEN,
    FREE,
    REMEMBERED,
    TokenRateLimiter,
    siteOf,
)

GUESSER = Principal("203.0.113.9")
OTHER = Principal("198.51.100.1")


class TokenRateLimiterTests(SynchronousTestCase):
    """
    L{TokenRateLimiter}, which counts wrong tokens.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.limiter = TokenRateLimiter(self.clock.seconds)

    def fail_(self, times: int, peer: Principal = GUESSER) -> None:
        """Count wrong tokens."""
        for _ in range(times):
            self.limiter.failed(peer)

    def test_free(self) -> None:
        """The first wrong tokens of a client cause no delay, the next ones do."""
        self.fail_(FREE - 1)
        self.assertFalse(self.limiter.isSlow(GUESSER))
        self.fail_(1)
        self.assertTrue(self.limiter.isSlow(GUESSER))
        self.assertFalse(self.limiter.isSlow(OTHER))

    def test_forgiven(self) -> None:
        """After a long time without a wrong token the count is zero again, and not before."""
        self.fail_(FREE)
        self.clock.advance(FORGIVEN)
        self.assertTrue(self.limiter.isSlow(GUESSER))
        self.fail_(1)
        self.clock.advance(FORGIVEN + 1)
        self.assertFalse(self.limiter.isSlow(GUESSER))
        self.fail_(FREE - 1)
        self.assertFalse(self.limiter.isSlow(GUESSER))

    def test_bounded(self) -> None:
        """A bounded number of clients is counted; those that failed longest ago are dropped."""
        self.fail_(FREE)
        self.fail_(FREE, OTHER)
        peers = [Principal(f"10.0.{n // 256}.{n % 256}") for n in range(3 * REMEMBERED)]
        for peer in peers[: REMEMBERED - 2]:
            self.fail_(1, peer)
        self.fail_(1)  # the other is the oldest now
        self.fail_(1, peers[-1])
        slow = [self.limiter.isSlow(peer) for peer in (GUESSER, OTHER)]
        self.assertEqual(slow, [True, False])
        for peer in peers:
            self.fail_(1, peer)
        self.assertFalse(self.limiter.isSlow(GUESSER))
        self.assertEqual(len(self.limiter._failures), REMEMBERED)

    def test_sites(self) -> None:
        """
        All connections of an address are one client, a /64 network of IPv6 in whatever spelling,
        and each user on a unix socket; a text that is no address is a client of its own.
        """
        for same in (
            (GUESSER, Principal(GUESSER.address, certificate="alice")),
            (
                *(Principal("2001:db8:0:1::1"), Principal("2001:db8:0:1:ffff:ffff:ffff:ffff")),
                *(Principal("2001:0db8:0000:0001::2"), Principal("2001:db8:0:1::3%eth0")),
            ),
        ):
            self.assertEqual(len({*map(siteOf, same)}), 1, same)
        different = (
            *(GUESSER, OTHER, Principal("2001:db8:0:1::1"), Principal("2001:db8:0:2::1")),
            *(Principal("::1"), Principal(LOCAL), Principal(LOCAL, uid=0)),
            *(Principal(LOCAL, uid=1000), Principal("somewhere"), Principal("")),
        )
        self.assertEqual(len({*map(siteOf, different)}), len(different))
