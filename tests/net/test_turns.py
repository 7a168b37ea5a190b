"""
Tests of L{usbip_server.net.turns}.
"""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import ALICE, BOB
from tests.support.reactorturn import turn
from usbip_server.model.policy import Principal
from usbip_server.net.turns import DIRECT, SERVED, SLICE, Turns

COST = SLICE / 3
"""Seconds that a request takes."""


class Slow:
    """
    A connection with work to do.

    @ivar left: seconds of work.
    """

    def __init__(self, clock: Clock, turns: Turns, principal: Principal, left: float) -> None:
        self.clock = clock
        self.left = left
        self.account = turns.join(principal)
        self.served: list[float] = []

    def takeTurn(self) -> None:
        self.account.begin()
        while self.left > 1e-9 and self.clock.seconds() < self.account.until:
            self.served.append(self.clock.seconds())
            self.left -= COST
            self.clock.rightNow += COST
        self.account.end()
        if self.left > 1e-9:
            self.account.wait(self)


class TurnsTests(SynchronousTestCase):
    """
    L{Turns}.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.turns = Turns(self.clock)

    def test_direct(self) -> None:
        """
        The work of an address is done as it arrives, for a while in each turn, and then as far as
        there are turns.
        """
        first, second = (Slow(self.clock, self.turns, ALICE, DIRECT) for _ in range(2))
        first.takeTurn()
        self.assertLess(first.left, COST)
        second.takeTurn()
        self.assertGreater(second.left, DIRECT / 2)
        other = Slow(self.clock, self.turns, BOB, DIRECT)
        other.takeTurn()
        self.assertLess(other.left, COST)
        for _ in range(100):
            turn(self.clock)
        self.assertLess(second.left, 1e-9)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        third = Slow(self.clock, self.turns, ALICE, DIRECT)
        third.takeTurn()
        self.assertLess(third.left, DIRECT / 2 + COST)

    def test_fair(self) -> None:
        """Addresses are served in rotation, and so are the connections of one."""
        many = [Slow(self.clock, self.turns, ALICE, 1) for _ in range(100)]
        for each in many:
            each.takeTurn()
        before = self.clock.seconds()
        few = [Slow(self.clock, self.turns, BOB, 1) for _ in range(2)]
        for each in few:
            each.takeTurn()
        for _ in range(200):
            turn(self.clock)
        counts = [len([at for at in each.served if at > before]) for each in (*many, *few)]
        self.assertLess(max(counts[1:100]) - min(counts[1:100]), 8)
        self.assertLess(abs(sum(counts[:100]) - sum(counts[100:])), 0.1 * sum(counts))

    def test_bounded(self) -> None:
        """In one turn only some connections are served, so that the reactor can read and write."""
        clients = [Slow(self.clock, self.turns, Principal(f"192.0.2.{n}"), 1) for n in range(99)]
        for each in clients:
            each.takeTurn()
        before = [len(each.served) for each in clients]
        turn(self.clock)
        grown = [len(each.served) > old for each, old in zip(clients, before, strict=True)]
        self.assertEqual(sum(grown), SERVED)

    def test_networks(self) -> None:
        """The addresses of one IPv6 network have one account, which ends with its connections."""
        one, other = Principal("2001:db8::1"), Principal("2001:db8::2:0:0:1")
        far = Principal("2001:db8:0:1::1")
        near = Principal("fe80::1%eth0")
        self.assertIs(self.turns.join(near), self.turns.join(Principal("fe80::2%eth1")))
        account = self.turns.join(one)
        self.assertIs(self.turns.join(other), account)
        self.assertIsNot(self.turns.join(far), account)
        self.turns.leave(one)
        self.assertIs(self.turns.join(one), account)
        self.turns.leave(one)
        self.turns.leave(other)
        self.assertIsNot(self.turns.join(other), account)

    def test_bug(self) -> None:
        """A connection that fails does not keep the others from their turns."""

        class Failing:
            def takeTurn(self) -> None:
                raise ZeroDivisionError

        self.turns.join(ALICE).wait(Failing())
        slow = Slow(self.clock, self.turns, BOB, COST)
        slow.account.wait(slow)
        turn(self.clock)
        self.assertLess(slow.left, COST / 2)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
