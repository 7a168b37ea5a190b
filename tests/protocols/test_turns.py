"""
Tests of L{usbip_server.protocols.turns}, and of L{usbip_server.protocols.lines} with many requests.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.protocols.linescase import FIND, KEEP, LIST, LinesTestCase
from tests.support.fixtures import ALICE, BOB, Wire
from usbip_server.model.policy import Principal
from usbip_server.net.caller import Caller
from usbip_server.protocols.interfaces import Response
from usbip_server.protocols.turns import DIRECT, SERVED, SLICE, Turns
from usbip_server.server.responder import Responder

COST = SLICE / 3
"""Seconds that a request takes."""


def turn(clock: Clock) -> None:
    """One turn of the reactor: what is scheduled in it is for the next one."""
    for call in tuple(clock.calls):
        if call.getTime() <= clock.seconds() and call.active():
            clock.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)


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


class ManyRequestsTests(LinesTestCase):
    """
    Connections with more requests than there is time for in a turn.
    """

    def setUp(self) -> None:
        super().setUp()
        answer = Responder.atOnce

        def slowly(responder: Responder, raw: bytes, caller: Caller) -> Response | None:
            self.clock.rightNow += COST
            return answer(responder, raw, caller)

        self.patch(Responder, "atOnce", slowly)

    def turnUntil(self, condition: Callable[[], bool], *wires: Wire) -> int:
        """Let the reactor turn until something is so; how often?"""
        for turns in range(10_000):
            if condition():
                return turns
            turn(self.clock)
            for wire in wires:
                wire.turn()
        raise self.failureException("it is still not so")

    def test_others(self) -> None:
        """
        While many clients of one address send requests without end, others are answered at once,
        and those in turns, in their order, however the requests are delivered.
        """
        many = 500
        whole = [(KEEP + b"\n") * many, FIND + LIST]
        separate = [KEEP] * many + [FIND, LIST]
        wires = [self.connect()]
        wires += [self.another() for _ in range(20)]
        for number, wire in enumerate(wires):
            wire.send(*(separate if number % 5 == 4 else whole))
            self.assertLess(len(wire.answers), many)
        other = self.another(BOB)
        other.send(LIST)
        self.assertEqual(other.statuses, ["success"])
        slow = self.another(BOB)
        slow.send((KEEP + b"\n") * 60)
        self.turnUntil(lambda: len(slow.answers) == 60, slow)
        self.assertLess(sum(len(wire.answers) for wire in wires), 5 * many)
        self.turnUntil(lambda: all(wire.closed for wire in wires), *wires)
        for wire in wires:
            self.assertEqual(wire.statuses, ["success"] * (many + 2))
            self.assertEqual(type(wire.answers[-2]["data"]), dict)
            wire.closeWrite()
            self.assertTrue(wire.lost)
        self.assertFalse(slow.closed)
        slow.drop()
        self.assertAllEnds(other)

    def test_end(self) -> None:
        """
        A client that waits for its turn and closes its side receives all replies, and so it does
        when the daemon stops; one that disconnects leaves nothing behind, and none times out.
        """
        for end in ("closeWrite", "close", "drop", "wait"):
            wire = self.connect()
            wire.send((KEEP + b"\n") * 500)
            self.assertLess(len(wire.answers), 500)
            self.assertEqual(wire.transport.producerState, "paused")
            if end == "wait":
                self.assertEqual(len(self.clock.getDelayedCalls()), 1)
            else:
                getattr(wire.protocol if end == "close" else wire, end)()
            if end != "drop":
                self.turnUntil(lambda wire=wire: len(wire.answers) == 500, wire)  # type: ignore[misc]
                self.assertEqual(wire.closed, end != "wait", end)
                wire.closeWrite()
            turn(self.clock)
            self.assertTrue(wire.lost)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_unread(self) -> None:
        """A client that waits for its turn and does not read goes on when it reads."""
        wire = self.connect()
        wire.transport.reading = False
        wire.send((KEEP + b"\n") * 500)
        for _ in range(200):
            turn(self.clock)
        self.assertLess(len(wire.answers), 500)
        wire.transport.read()
        self.turnUntil(lambda: len(wire.answers) == 500, wire)
        self.assertEqual(wire.transport.producerState, "producing")
        self.assertFalse(wire.closed)

    def test_asynchronous(self) -> None:
        """A reply that comes later, and requests behind it, take their turns too."""
        wire = self.patiently()
        attach = b'{"command":"attach","id":"1-1.4","keep_alive":true}'
        wire.send((KEEP + b"\n") * 200 + attach + (KEEP + b"\n") * 200)
        self.turnUntil(lambda: len(self.backend.calls) == 1, wire)
        self.assertEqual(len(wire.answers), 200)
        self.backend.calls[0].succeed()
        self.turnUntil(lambda: len(wire.answers) == 401, wire)
        self.assertEqual(wire.transport.producerState, "producing")
