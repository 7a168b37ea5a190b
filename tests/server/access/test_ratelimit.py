"""
Tests of L{usbip_server.server.access.ratelimit}.
"""

from __future__ import annotations

import re

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from usbip_server.model.errors import NotAllowed
from usbip_server.model.policy import LOCAL, AccessPreset, Policy, Principal, Who
from usbip_server.model.tokens import hashOf
from usbip_server.server.access.authorizer import Authorizer
from usbip_server.server.access.ratelimit import (
    FORGIVEN,
    FREE,
    PAUSES,
    REMEMBERED,
    TokenRateLimiter,
)
from usbip_server.server.config import LiveSettings, Settings

GUESSER = Principal("203.0.113.9")
TOKEN = "usbip_0123456789abcdef"


class RateLimiterTestCase(SynchronousTestCase):
    """
    Somebody guesses.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.limiter = TokenRateLimiter(self.clock.seconds)

    def fail_(self, times: int, peer: Principal = GUESSER) -> None:
        """Show wrong tokens, without regard to pauses."""
        for _ in range(times):
            self.limiter.failed(peer)

    def isPaused(self, peer: Principal = GUESSER) -> bool:
        """Does somebody have to wait?"""
        try:
            self.limiter.require(peer)
        except NotAllowed:
            return True
        return False

    def pause(self, peer: Principal = GUESSER) -> int:
        """For how many seconds; the time is over then."""
        seconds = 0
        while self.isPaused(peer):
            self.clock.advance(1)
            seconds += 1
        return seconds


class PauseTests(RateLimiterTestCase):
    """
    How long one has to wait.
    """

    def test_free(self) -> None:
        """The first wrong tokens cause no pause."""
        for _ in range(FREE):
            self.assertFalse(self.isPaused())
            self.fail_(1)
        self.assertFalse(self.isPaused())

    def test_doubles(self) -> None:
        """Each further one doubles the pause, up to the longest."""
        self.fail_(FREE)
        pauses = []
        for _ in range(9):
            self.fail_(1)
            pauses.append(self.pause())
        self.assertEqual(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60])

    def test_longest(self) -> None:
        """The pause has an upper limit."""
        self.fail_(5000)
        self.assertEqual(self.pause(), PAUSES.longest)

    def test_message(self) -> None:
        """The error contains the reason and the remaining time, which is never 0."""
        self.fail_(FREE + 3)
        error = self.assertRaises(NotAllowed, self.limiter.require, GUESSER)
        self.assertEqual(
            str(error),
            f"{FREE + 3} wrong tokens came from 203.0.113.9: requests with a token are answered "
            "again in 4 s",
        )
        self.clock.advance(3.9)
        error = self.assertRaises(NotAllowed, self.limiter.require, GUESSER)
        self.assertIn("again in 1 s", str(error))

    def test_inVain(self) -> None:
        """Requests during the pause do not extend it: programs that retry are not locked out."""
        self.fail_(FREE + 3)
        for _ in range(100):
            self.assertTrue(self.isPaused())
        self.assertEqual(self.pause(), 4)

    def test_forgiven(self) -> None:
        """After a long time without a wrong token the count begins anew, and not before."""
        self.fail_(FREE + 4)
        self.clock.advance(FORGIVEN)
        self.fail_(1)
        self.assertEqual(self.pause(), 16)
        self.clock.advance(FORGIVEN + 1)
        self.fail_(FREE)
        self.assertFalse(self.isPaused())

    def test_clock(self) -> None:
        """A change of the clock extends no pause."""
        for seconds in (-86400, 86400, -FORGIVEN / 2):
            self.fail_(FREE)
            self.clock.rightNow += seconds
            self.assertFalse(self.isPaused())
            self.fail_(4)
            self.clock.rightNow += seconds
            self.assertLessEqual(self.pause(), 2 * PAUSES.longest)
            self.clock.advance(2 * FORGIVEN)
        self.fail_(FREE + 4)
        self.clock.rightNow -= 3
        self.assertLessEqual(self.pause(), 8 + 2 * 3)


class WhoTests(RateLimiterTestCase):
    """
    Who has to wait.
    """

    def together(self, *peers: Principal) -> None:
        """They wait together: whatever one shows counts for all."""
        for guesser in peers:
            limiter = self.limiter = TokenRateLimiter(self.clock.seconds)
            for _ in range(FREE + 1):
                limiter.failed(guesser)
            self.assertEqual([self.isPaused(peer) for peer in peers], [True] * len(peers), guesser)

    def apart(self, *peers: Principal) -> None:
        """None waits for what another has shown."""
        for guesser in peers:
            self.limiter = TokenRateLimiter(self.clock.seconds)
            self.fail_(FREE + 1, guesser)
            paused = [peer for peer in peers if self.isPaused(peer)]
            self.assertEqual(paused, [guesser])

    def test_addresses(self) -> None:
        """All connections from one address are counted together."""
        self.apart(GUESSER, Principal("203.0.113.10"), Principal("2001:db8::9"), Principal(LOCAL))

    def test_ipv6(self) -> None:
        """A /64 network of IPv6 is counted as one address, in whatever spelling."""
        self.together(
            *(Principal("2001:db8:0:1::1"), Principal("2001:db8:0:1:ffff:ffff:ffff:ffff")),
            *(Principal("2001:0db8:0000:0001::2"), Principal("2001:db8:0:1::3%eth0")),
        )
        self.apart(Principal("2001:db8:0:1::1"), Principal("2001:db8:0:2::1"), Principal("::1"))

    def test_users(self) -> None:
        """On a unix socket each user is counted."""
        self.apart(Principal(LOCAL, uid=0), Principal(LOCAL, uid=1000), Principal(LOCAL))

    def test_certificates(self) -> None:
        """Another certificate does not begin another count."""
        self.together(GUESSER, Principal(GUESSER.address, certificate="alice"))

    def test_noAddress(self) -> None:
        """A text that is no address is counted as it is."""
        self.apart(Principal("somewhere"), Principal("elsewhere"), Principal(""))

    def test_bounded(self) -> None:
        """A bounded number of addresses is counted; the oldest are dropped."""
        other = Principal("198.51.100.1")
        self.fail_(FREE + 1)
        self.fail_(FREE + 1, other)
        addresses = [Principal(f"10.0.{n // 256}.{n % 256}") for n in range(3 * REMEMBERED)]
        for peer in addresses[: REMEMBERED - 2]:
            self.fail_(1, peer)
        self.fail_(1)  # heard of again: the other is the oldest now
        self.fail_(1, addresses[-1])
        self.assertTrue(self.isPaused())
        self.assertFalse(self.isPaused(other))
        for peer in addresses:
            self.fail_(1, peer)
        self.assertFalse(self.isPaused())
        self.assertEqual(len(self.limiter._failures), REMEMBERED)


class TokenTests(SynchronousTestCase):
    """
    What a pause is about.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        policy = Policy(principals={"ci": Who(token=hashOf(TOKEN))})
        self.settings = LiveSettings(Settings(access=policy))
        self.access = Authorizer(self.settings, self.clock.seconds)
        for _ in range(FREE + 1):
            self.assertRaises(NotAllowed, self.access.identify, GUESSER, "usbip_guessed")

    def test_withToken(self) -> None:
        """During a pause the right token is refused too, so that it cannot be recognized."""
        messages = [
            re.sub("usbip_.*", "", str(self.assertRaises(NotAllowed, self.try_, shown)))
            for shown in (TOKEN, "usbip_guessed")
        ]
        self.assertEqual(messages[0], messages[1])
        self.clock.advance(1)
        self.assertEqual(self.try_(TOKEN).token, "ci")

    def test_without(self) -> None:
        """Requests without a token are not affected."""
        self.assertIs(self.access.identify(GUESSER, None), GUESSER)

    def test_rightOneForgivesNothing(self) -> None:
        """A right token between wrong ones does not reset the count."""
        for pause in (1, 2, 4):
            self.clock.advance(pause)
            self.try_(TOKEN)
            self.assertRaises(NotAllowed, self.try_, "usbip_guessed")
        error = self.assertRaises(NotAllowed, self.try_, TOKEN)
        self.assertIn("again in 8 s", str(error))

    def test_reload(self) -> None:
        """A reload does not reset the count."""
        self.settings.replace(Settings(access=AccessPreset.OPEN.policy))
        error = self.assertRaises(NotAllowed, self.try_, TOKEN)
        self.assertIn("again in 1 s", str(error))

    def try_(self, shown: str) -> Principal:
        """Show a token."""
        return self.access.identify(GUESSER, shown)
