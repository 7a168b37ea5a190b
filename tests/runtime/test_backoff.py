"""
Tests of L{usbip_server.runtime.backoff}.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from usbip_server.runtime.backoff import Backoff, BackoffOptions


class BackoffTests(SynchronousTestCase):
    """
    The lengths of pauses.
    """

    def test_doubles(self) -> None:
        """Each pause is twice as long as the last, up to the limit, however many there are."""
        options = BackoffOptions(first=1, longest=6)
        self.assertEqual(
            [options.after(n) for n in (-1, 0, 1, 2, 3, 4, 5000)], [0, 0, 1, 2, 4, 6, 6]
        )

    def test_reset(self) -> None:
        """After a success the first pause is the next one."""
        backoff = Backoff(BackoffOptions(first=0.25, longest=1.5), lambda: 1.0)
        self.assertEqual([backoff.next() for _ in range(5)], [0.25, 0.5, 1, 1.5, 1.5])
        backoff.reset()
        self.assertEqual(backoff.next(), 0.25)

    def test_jitter(self) -> None:
        """A pause is shortened by a random part, to a half at most."""
        chances = iter((0.0, 0.5, 1.0))
        backoff = Backoff(BackoffOptions(first=1, longest=1), lambda: next(chances))
        self.assertEqual([backoff.next() for _ in range(3)], [0.5, 0.75, 1])

    def test_update(self) -> None:
        """Other lengths apply from the next pause on."""
        backoff = Backoff(BackoffOptions(first=0.25, longest=30), lambda: 1.0)
        for _ in range(6):
            backoff.next()
        backoff.update(BackoffOptions(first=0.25, longest=1.5))
        self.assertEqual(backoff.next(), 1.5)
