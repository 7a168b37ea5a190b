"""
Tests of L{usbip_server.protocols.lines}: limits of length, of time and of unread replies.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.protocols.linescase import ATTACH, KEEP, LIST, LinesTestCase
from tests.support.fixtures import Wire
from usbip_server.model.options import Timeouts
from usbip_server.net.halfclose import LINGER
from usbip_server.protocols.framing import LINES_AT_ONCE, ObjectSplitter


class LengthTests(LinesTestCase):
    """
    How long a request may be.
    """

    def requestOf(self, length: int) -> bytes:
        """A request of so many bytes."""
        frame = b'{"command":"list"%s}'
        return frame % (b" " * (length + 2 - len(frame)))

    def test_justFits(self) -> None:
        """A request of the longest length is answered."""
        most = self.limits.requestBytes
        for request, count in (
            (self.requestOf(most), 1),
            (self.requestOf(most) + b"\n", 1),
            (self.requestOf(most - 1) + b"\r\n", 1),
            (KEEP + b"  " + self.requestOf(most), 2),
        ):
            wire = self.connect()
            wire.send(request)
            self.assertEqual(wire.statuses, ["success"] * count)

    def test_tooLong(self) -> None:
        """
        A request that is one byte longer is refused, with or without line feed, in one segment or
        many; so is an object that does not end.
        """
        request = self.requestOf(self.limits.requestBytes + 1)
        for segments in (
            [request],
            [request + b"\n"],
            [request[:500], request[500:]],
            [bytes([byte]) for byte in request],
            [b"{" * 2000],
            [b'{"' + b"x" * 100_000 + b"\n"],
            [b"{\n"] * 1000,
        ):
            wire = self.connect()
            wire.send(*segments)
            self.assertEqual(wire.statuses, ["error"])
            self.assertIn("longer than 1024 bytes", wire.answers[0]["message"])
            self.assertAllEnds(wire)

    def test_manySmall(self) -> None:
        """
        Many small requests in one segment are not one long request, nor are those that arrive
        while a reply is pending; they keep their order.
        """
        for separator in (b"", b"\n"):
            many = 2**16 // len(KEEP + separator)
            wire = self.connect()
            wire.send((KEEP + separator) * many)
            self.assertEqual(wire.statuses, ["success"] * many)
            self.assertFalse(wire.closed)
            wire = self.patiently()
            wire.send(ATTACH + separator + (KEEP + separator) * many)
            self.backend.calls[0].succeed()
            wire.turn()
            self.assertEqual(wire.statuses, ["success"] * (many + 1))
        wire = self.patiently()
        many = 2 * LINES_AT_ONCE // len(KEEP)
        wire.protocol.dataReceived(ATTACH + b"\n" + (KEEP + b"\n") * many + KEEP[:7])
        wire.protocol.dataReceived(KEEP[7:] + b"\n" + LIST)
        self.assertEqual(wire.received, b"")
        self.backend.calls[0].succeed()
        self.assertEqual(wire.statuses, ["success"] * (many + 3))
        self.assertTrue(wire.closed)


class WorkTests(LinesTestCase):
    """
    The time that input takes.
    """

    def test_linear(self) -> None:
        """
        Blank lines, lines, lines behind a pending reply, and objects without line feeds take time
        in proportion to their number: eight times as many bytes take about eight times as long,
        and not 64 times. It is measured again if it seems otherwise, because other processes
        count a bit.
        """

        def received(segment: bytes) -> float:
            wire = self.connect()
            began = time.process_time()
            wire.protocol.dataReceived(segment)
            return time.process_time() - began

        def whileAnswering(size: int) -> float:
            wire = self.patiently()
            wire.send(ATTACH + b"\n" + (b" " * 7 + b"\n") * (size // 8) + KEEP)
            began = time.process_time()
            self.backend.calls[0].succeed()
            wire.turn()
            self.assertEqual(wire.statuses, ["success", "success"])
            return time.process_time() - began

        def objects(size: int) -> float:
            splitter = ObjectSplitter()
            began = time.process_time()
            self.assertEqual(len(splitter.feed(b"{}" * (size // 2))), size // 2)
            return time.process_time() - began

        measures: tuple[Callable[[int], float], ...] = (
            lambda size: received(b"\n" * size),
            lambda size: received(KEEP + b"\n" * size + KEEP),
            lambda size: received(KEEP + b"\n" + b"\n \r\n\t" * (size // 5)),
            whileAnswering,
            objects,
        )
        for number, seconds in enumerate(measures):
            for _ in range(5):
                few, many = (min(seconds(size) for _ in range(3)) for size in (2**17, 2**20))
                if many < 24 * max(few, 0.001):
                    break
            else:
                self.fail(f"{number}: {few} s, and {many} s for eight times as many")


class TimeOutTests(LinesTestCase):
    """
    Time limits of the client.
    """

    def assertTimesOut(self, wire: Wire) -> None:
        """The client gets an error after 30 s and not before, and is disconnected."""
        self.clock.advance(29.9)
        self.assertFalse(wire.closed)
        self.clock.advance(0.2)
        self.assertTimedOut(wire)

    def assertTimedOut(self, wire: Wire) -> None:
        """The client has got an error, and is disconnected."""
        self.assertEqual(wire.statuses[-1], "error")
        self.assertIn("within 30 s", wire.answers[-1]["message"])
        self.assertTrue(wire.closed)
        wire.turn()
        self.clock.advance(LINGER)
        wire.turn()
        self.assertTrue(wire.lost)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_incomplete(self) -> None:
        """A client that sends nothing or half a request gets an error that says what one is."""
        for sent in (b"", LIST[:-1]):
            wire = self.connect()
            wire.send(sent)
            self.assertTimesOut(wire)

    def test_dripping(self) -> None:
        """Single bytes and blank lines do not extend the time."""
        for drop in (b"\n", b" ", b"{"):
            wire = self.connect()
            for _ in range(31):
                wire.send(drop)
                self.clock.advance(1)
            self.assertTimedOut(wire)

    def test_afterAnAnswer(self) -> None:
        """After a reply the time begins again."""
        wire = self.connect()
        for _ in range(2):
            self.clock.advance(20)
            wire.send(KEEP)
        self.assertEqual(wire.statuses, ["success", "success"])
        self.assertTimesOut(wire)

    def test_notWhileAnswering(self) -> None:
        """The time does not run while a reply is pending."""
        self.timeouts = Timeouts(request=30, answer=100, bind=100)
        wire = self.patiently()
        wire.send(ATTACH)
        self.clock.advance(60)
        self.assertEqual(wire.received, b"")
        self.backend.calls[0].succeed()
        self.assertEqual(wire.statuses, ["success"])
        self.assertTimesOut(wire)


class CongestionTests(LinesTestCase):
    """
    A client that does not read.
    """

    def congested(self) -> tuple[Wire, int]:
        """A client that sends many requests and reads nothing, and how many those are."""
        wire = self.connect()
        wire.transport.reading = False
        many = 1000
        wire.send((KEEP + b"\n") * many)
        return wire, many

    def test_stopsAnswering(self) -> None:
        """
        Until the client reads, no more requests are answered than fit into the transport's buffer,
        and no more are read than fit into that of the connection; that holds too if the last one
        closes the connection, or the client has closed its side.
        """
        for last, halfClosed in ((b"", False), (LIST, False), (b"", True)):
            wire, many = self.congested()
            self.assertLess(len(wire.answers), many)
            self.assertEqual(wire.transport.producerState, "producing")
            more = wire.protocol.MAX_LENGTH // len(KEEP)
            wire.send((KEEP + b"\n") * more + last)
            if halfClosed:
                wire.closeWrite()
            self.assertLess(len(wire.answers), many)
            self.assertEqual(wire.transport.producerState, "paused")
            self.assertFalse(wire.closed)
            wire.transport.read()
            wire.turn()
            self.assertEqual(len(wire.answers), many + more + bool(last))
            self.assertEqual(wire.closed, bool(last) or halfClosed)
            self.assertEqual(wire.lost, halfClosed)
            if not wire.lost:
                self.assertEqual(wire.transport.producerState, "producing")

    def test_cutOff(self) -> None:
        """A client that does not read for long is disconnected."""
        wire, _ = self.congested()
        self.clock.advance(29.9)
        self.assertFalse(wire.ended)
        self.clock.advance(0.2)
        wire.turn()
        self.assertTrue(wire.transport.aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_whileAnswering(self) -> None:
        """
        A pending reply is written even if the client does not read; the next request begins when
        the reply is sent and the client reads again, in either order.
        """
        for first, second in (("resume", "reply"), ("reply", "resume")):
            wire = self.patiently()
            wire.send(ATTACH + KEEP)
            wire.protocol.pauseProducing()
            steps = {
                "resume": wire.protocol.resumeProducing,
                "reply": self.backend.calls[0].succeed,
            }
            steps[first]()
            self.assertEqual(wire.statuses, ["success"] if first == "reply" else [])
            steps[second]()
            wire.turn()
            self.assertEqual(wire.statuses, ["success", "success"])
