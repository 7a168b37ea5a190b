"""
Tests of L{usbip_server.protocols.lines}: how much and how long.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.protocols.linescase import ATTACH, KEEP, LIST, LinesTestCase
from tests.support.fixtures import Wire
from usbip_server.model.options import Timeouts
from usbip_server.net.halfclose import LINGER
from usbip_server.protocols.framing import LINES_AT_ONCE, ObjectEnds


class LengthTests(LinesTestCase):
    """
    How long a request may be.
    """

    def assertTooLong(self, segments: list[bytes]) -> None:
        """The segments are one request that is too long."""
        wire = self.connect()
        wire.send(*segments)
        self.assertEqual(wire.statuses, ["error"])
        self.assertIn("longer than 1024 bytes", wire.answers[0]["message"])
        self.assertAllEnds(wire)

    def requestOf(self, length: int) -> bytes:
        """A request of so many bytes."""
        frame = b'{"command":"list"%s}'
        return frame % (b" " * (length + 2 - len(frame)))

    def test_justFits(self) -> None:
        """A request of the longest length is answered."""
        for behind in (b"", b"\n", b"\r\n"):
            wire = self.connect()
            wire.send(self.requestOf(self.limits.requestBytes - len(behind.strip(b"\n"))) + behind)
            self.assertEqual(wire.statuses, ["success"])
        wire = self.connect()
        wire.send(KEEP + b"  " + self.requestOf(self.limits.requestBytes))
        self.assertEqual(wire.statuses, ["success", "success"])

    def test_oneTooLong(self) -> None:
        """
        A request that is one byte longer is refused, with or without line feed, in one
        segment or many.
        """
        for behind in (b"", b"\n"):
            request = self.requestOf(self.limits.requestBytes + 1) + behind
            self.assertTooLong([request])
            self.assertTooLong([request[:500], request[500:]])
            self.assertTooLong([bytes([byte]) for byte in request])

    def test_endless(self) -> None:
        """Bytes that never become a request are refused when they are longer than one may be."""
        self.assertTooLong([b"{" * 2000])
        self.assertTooLong([b"x" * 200_000])
        self.assertTooLong([b" " * 100] * 20)
        self.assertTooLong([b'{"' + b"x" * 100_000 + b"\n"])

    def test_manySmall(self) -> None:
        """Many small requests in one segment are not one long request."""
        limits = self.limits
        for separator in (b"", b"\n"):
            many = 2**16 // len(KEEP + separator)
            wire = self.connect()
            wire.send((KEEP + separator) * many)
            self.assertGreater(many * len(KEEP), limits.requestBytes)
            self.assertEqual(len(wire.answers), many)
            self.assertEqual(set(wire.statuses), {"success"})
            self.assertFalse(wire.closed)

    def test_manySmallWhileAnswering(self) -> None:
        """Nor are many small requests that arrive while a reply is pending."""
        many = 2**16 // len(KEEP)
        for separator in (b"", b"\n"):
            wire = self.patiently()
            wire.send(ATTACH + separator + (KEEP + separator) * many)
            self.backend.calls[0].succeed()
            wire.turn()
            self.assertEqual(wire.statuses, ["success"] * (many + 1))


class WorkTests(LinesTestCase):
    """
    The time that input takes.
    """

    def seconds(self, segment: bytes) -> float:
        """How long it takes to take a segment in."""
        wire = self.connect()
        began = time.process_time()
        wire.protocol.dataReceived(segment)
        return time.process_time() - began

    def assertLinear(self, seconds: Callable[[int], float]) -> None:
        """
        Eight times as many bytes take about eight times as long, and not 64 times. It is measured
        again if it seems otherwise, as whatever else the processor does counts a bit.

        @param seconds: the time for so many bytes.
        """
        for _ in range(5):
            few, many = (min(seconds(size) for _ in range(3)) for size in (2**17, 2**20))
            if many < 24 * max(few, 0.001):
                return
        self.fail(f"{few} s, and {many} s for eight times as many")

    def test_blankLines(self) -> None:
        """Blank lines take time in proportion to their number."""
        self.assertLinear(lambda size: self.seconds(b"\n" * size))

    def test_lines(self) -> None:
        """So do many lines in one segment."""
        self.assertLinear(lambda size: self.seconds(KEEP + b"\n" * size + KEEP))
        self.assertLinear(lambda size: self.seconds((KEEP + b"\n") + b"\n \r\n\t" * (size // 5)))

    def test_linesWhileAnswering(self) -> None:
        """So do many lines that arrive while a reply is pending."""

        def seconds(size: int) -> float:
            wire = self.patiently()
            wire.send(ATTACH + b"\n" + (b" " * 7 + b"\n") * (size // 8) + KEEP)
            began = time.process_time()
            self.backend.calls[0].succeed()
            wire.turn()
            self.assertEqual(wire.statuses, ["success", "success"])
            return time.process_time() - began

        self.assertLinear(seconds)

    def test_objects(self) -> None:
        """So do many objects without line feeds."""

        def seconds(size: int) -> float:
            ends = ObjectEnds()
            began = time.process_time()
            self.assertEqual(len(ends.take(b"{}" * (size // 2))[0]), size // 2)
            return time.process_time() - began

        self.assertLinear(seconds)

    def test_orderWhileAnswering(self) -> None:
        """Lines that arrive in several segments while a reply is pending keep their order."""
        wire = self.patiently()
        many = 2 * LINES_AT_ONCE // len(KEEP)
        wire.protocol.dataReceived(ATTACH + b"\n" + (KEEP + b"\n") * many + KEEP[:7])
        wire.protocol.dataReceived(KEEP[7:] + b"\n" + LIST)
        self.assertEqual(wire.received, b"")
        self.backend.calls[0].succeed()
        self.assertEqual(wire.statuses, ["success"] * (many + 3))
        self.assertTrue(wire.closed)


class TimeOutTests(LinesTestCase):
    """
    Time limits of the client.
    """

    def assertTimedOut(self, wire: Wire) -> None:
        """The client was told that it took too long, and then cut off."""
        self.assertEqual(wire.statuses[-1], "error")
        self.assertIn("within 30 s", wire.answers[-1]["message"])
        self.assertTrue(wire.closed)
        wire.turn()
        self.clock.advance(LINGER)
        wire.turn()
        self.assertTrue(wire.lost)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nothing(self) -> None:
        """A client that sends nothing gets an error that says what a request is."""
        wire = self.connect()
        self.clock.advance(29.9)
        self.assertEqual(wire.received, b"")
        self.clock.advance(0.2)
        self.assertTimedOut(wire)

    def test_half(self) -> None:
        """So does a client that sends half a request."""
        wire = self.connect()
        wire.send(LIST[:-1])
        self.clock.advance(30.1)
        self.assertTimedOut(wire)

    def test_dripping(self) -> None:
        """Single bytes and blank lines do not extend the time."""
        for drop in (b"\n", b" ", b"{"):
            wire = self.connect()
            for _ in range(31):
                wire.send(drop)
                self.clock.advance(1)
            self.assertTimedOut(wire)

    def test_afterAnAnswer(self) -> None:
        """After a reply the time begins anew."""
        wire = self.connect()
        self.clock.advance(20)
        wire.send(KEEP)
        self.clock.advance(20)
        wire.send(KEEP)
        self.assertEqual(wire.statuses, ["success", "success"])
        self.clock.advance(30.1)
        self.assertTimedOut(wire)

    def test_notWhileAnswering(self) -> None:
        """The time does not run while a reply is pending."""
        self.timeouts = Timeouts(request=30, answer=100, bind=100)
        wire = self.patiently()
        wire.send(ATTACH)
        self.clock.advance(60)
        self.assertEqual(wire.received, b"")
        self.backend.calls[0].succeed()
        self.assertEqual(wire.statuses, ["success"])
        self.clock.advance(29.9)
        self.assertFalse(wire.closed)
        self.clock.advance(0.2)
        self.assertTimedOut(wire)


class CongestionTests(LinesTestCase):
    """
    A client that does not read.
    """

    def congested(self) -> tuple[Wire, int]:
        """A client that asks much and reads nothing, and how much it asked."""
        wire = self.connect()
        wire.transport.reading = False
        many = 1000
        wire.send((KEEP + b"\n") * many)
        return wire, many

    def test_stopsAnswering(self) -> None:
        """
        Until the client reads, no more requests are answered than fit into the transport's buffer,
        and no more are read than fit into that of the connection.
        """
        wire, many = self.congested()
        self.assertLess(len(wire.answers), many)
        self.assertEqual(wire.transport.producerState, "producing")
        more = wire.protocol.MAX_LENGTH // len(KEEP)
        wire.send((KEEP + b"\n") * more)
        self.assertLess(len(wire.answers), many)
        self.assertEqual(wire.transport.producerState, "paused")
        self.assertFalse(wire.closed)
        wire.transport.read()
        wire.turn()
        self.assertEqual(len(wire.answers), many + more)
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

    def test_resumesWhileAnswering(self) -> None:
        """When the client reads again while a reply is pending, no second request is begun."""
        wire = self.patiently()
        wire.send(ATTACH + KEEP)
        wire.protocol.pauseProducing()
        wire.protocol.resumeProducing()
        self.assertEqual(wire.received, b"")
        self.backend.calls[0].succeed()
        wire.turn()
        self.assertEqual(wire.statuses, ["success", "success"])

    def test_answerWhileCongested(self) -> None:
        """A reply is written even if the client does not read; later requests wait."""
        wire = self.patiently()
        wire.send(ATTACH + KEEP)
        wire.protocol.pauseProducing()
        self.backend.calls[0].succeed()
        self.assertEqual(wire.statuses, ["success"])
        wire.protocol.resumeProducing()
        self.assertEqual(wire.statuses, ["success", "success"])

    def test_closesWhenRead(self) -> None:
        """After the last reply the connection closes, also if the client has read late."""
        wire = self.connect()
        wire.transport.reading = False
        wire.send((KEEP + b"\n") * 1000 + LIST)
        self.assertFalse(wire.closed)
        wire.transport.read()
        wire.turn()
        self.assertEqual(len(wire.answers), 1001)
        self.assertTrue(wire.closed)
        self.assertAllEnds(wire)

    def test_halfCloseWhenCongested(self) -> None:
        """A client that closes its side and reads later receives all its replies."""
        wire, many = self.congested()
        wire.closeWrite()
        self.assertFalse(wire.closed)
        wire.transport.read()
        wire.turn()
        self.assertEqual(len(wire.answers), many)
        self.assertTrue(wire.lost)
