"""
Tests of L{usbip_server.protocols.lines}: more requests than there is time for in a turn of the
reactor.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.protocols.linescase import FIND, KEEP, LIST, LinesTestCase
from tests.support.fixtures import BOB, Wire
from tests.support.reactorturn import turn
from usbip_server.net.caller import Caller
from usbip_server.net.turns import SLICE
from usbip_server.protocols.interfaces import Response
from usbip_server.server.responder import Responder

COST = SLICE / 3
"""Seconds that a request takes."""


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
