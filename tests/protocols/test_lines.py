"""
Tests of L{usbip_server.protocols.lines}.
"""

from __future__ import annotations

import json
import random

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from tests.support import ALICE, DEVICES, PatientBackend, PromptBackend, Wire, asked, threeWays
from usbip_server.answers import Answers
from usbip_server.limits import Limits, Timeouts
from usbip_server.protocols.halfclose import LINGER
from usbip_server.protocols.lines import JsonLines, ObjectEnd
from usbip_server.sharing import Sharing

LIST = b'{"command":"list"}'
KEEP = b'{"command":"list","keep_alive":true}'
FIND = b'{"command":"find","bus":"1-1.4","keep_alive":true}'
ATTACH = b'{"command":"attach","id":"1-1.4","keep_alive":true}'
TRICKY = rb'{"command":"find","desc":"}{\"\\","keep_alive":true}'


class LinesTestCase(SynchronousTestCase):
    """
    A connection to a backend that does at once, or not, what is asked of it.
    """

    limits = Limits(requestBytes=1024)
    timeouts = Timeouts(request=30, answer=1.8)

    def setUp(self) -> None:
        self.clock = Clock()
        self.backend: PatientBackend = PromptBackend()

    def connect(self) -> Wire:
        """A new connection."""
        sharing = Sharing(self.backend, self.clock, self.timeouts)
        asked(sharing.start())
        return Wire(
            JsonLines(Answers(sharing), ALICE, self.limits, self.timeouts, self.clock)
        )

    def patiently(self) -> Wire:
        """A connection on which attach and detach take until the test ends them."""
        self.backend = PatientBackend()
        return self.connect()

    def assertAllEnds(self, wire: Wire) -> None:
        """Once the client has closed its side, nothing is left of the connection."""
        wire.closeWrite()
        self.assertTrue(wire.lost)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class FramingTests(LinesTestCase):
    """
    What a request is.
    """

    def assertAnswered(self, messages: list[bytes], statuses: list[str]) -> None:
        """Delivered in all three ways, the messages have these answers and no other."""
        for way, segments in threeWays(messages):
            wire = self.connect()
            wire.send(*segments)
            self.assertEqual(wire.statuses, statuses, f"{messages} {way}")
            self.assertAllEnds(wire)
            self.assertEqual(wire.statuses, statuses, f"{messages} {way}, afterwards")

    def test_lineFeed(self) -> None:
        """A request ends with a line feed."""
        self.assertAnswered([LIST + b"\n"], ["success"])

    def test_noLineFeed(self) -> None:
        """A request ends where its object is complete, without any line feed."""
        self.assertAnswered([LIST], ["success"])

    def test_carriageReturn(self) -> None:
        """A carriage return before the line feed is tolerated."""
        self.assertAnswered([KEEP + b"\r\n", LIST + b"\r\n"], ["success", "success"])

    def test_several(self) -> None:
        """Several requests are all answered, however they are delivered and separated."""
        for separator in (b"", b"\n", b"\r\n", b" ", b"\n\n"):
            self.assertAnswered([KEEP + separator, FIND + separator, LIST], ["success"] * 3)

    def test_bracesInStrings(self) -> None:
        """Braces and quotes within a string do not end a request."""
        self.assertAnswered([TRICKY, KEEP], ["not_found", "success"])

    def test_everySplit(self) -> None:
        """Wherever two requests are cut in two segments, they have the same two answers."""
        for stream in (KEEP + TRICKY, KEEP + b"\n" + TRICKY + b"\n", KEEP + b"\r\n" + TRICKY):
            expected = None
            for cut in range(len(stream) + 1):
                wire = self.connect()
                wire.send(stream[:cut], stream[cut:])
                expected = expected or wire.received
                self.assertEqual(wire.received, expected, f"cut at {cut}")
            assert expected is not None
            self.assertEqual(expected.count(b"\n"), 2)

    def test_everyTruncation(self) -> None:
        """The beginning of a request is no request; when it stays at that, it is an error."""
        for length in range(1, len(TRICKY)):
            wire = self.connect()
            wire.send(TRICKY[:length])
            self.assertEqual(wire.received, b"", f"{length} bytes")
            wire.closeWrite()
            self.assertEqual(wire.statuses, ["error"], f"{length} bytes")

    def test_blankLines(self) -> None:
        """Blank lines are passed over."""
        self.assertAnswered([b"\n\r\n  \n", KEEP, b"\n\n", LIST, b"\n"], ["success", "success"])

    def test_spaceBefore(self) -> None:
        """White space before a request does no harm."""
        self.assertAnswered([b"  \t" + LIST], ["success"])

    def test_garbageThenLineFeed(self) -> None:
        """A line that is no JSON is answered with an error."""
        self.assertAnswered([b"list\n"], ["error"])

    def test_oneWriteEach(self) -> None:
        """An answer is one write of compact JSON and a line feed: old clients receive once."""
        wire = self.connect()
        wire.send(KEEP + KEEP)
        self.assertEqual(len(wire.transport.writes), 2)
        for written in wire.transport.writes:
            answer = json.loads(written)
            compact = json.dumps(answer, separators=(",", ":"), ensure_ascii=False) + "\n"
            self.assertEqual(written, compact.encode())

    def test_objectEndLooksOnce(self) -> None:
        """To find the end of an object that comes byte by byte takes time linear in its length."""
        end = ObjectEnd()
        body = b'{"a":"' + b"x" * 2000 + rb"\"}" + b'"}'
        for length in range(len(body)):
            self.assertIsNone(end.find(body[:length]))
        self.assertEqual(end.find(body), len(body))


class ClosingTests(LinesTestCase):
    """
    When the connection is closed, and how.
    """

    def test_afterTheAnswer(self) -> None:
        """After its answer the server closes its side, and waits for the client's."""
        wire = self.connect()
        wire.send(LIST)
        self.assertTrue(wire.transport.writeClosed)
        self.assertFalse(wire.ended)
        self.assertAllEnds(wire)

    def test_clientThatDoesNotClose(self) -> None:
        """A client that does not close its side is cut off after a while."""
        wire = self.connect()
        wire.send(LIST)
        self.clock.advance(max(LINGER, self.timeouts.request))
        wire.turn()
        self.assertTrue(wire.lost)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_keepAlive(self) -> None:
        """A connection stays open after requests that all ask for that."""
        wire = self.connect()
        wire.send(KEEP)
        wire.send(FIND)
        self.assertFalse(wire.closed)
        wire.send(LIST)
        self.assertTrue(wire.closed)
        self.assertEqual(wire.statuses, ["success"] * 3)

    def test_oneWithoutKeepAlive(self) -> None:
        """If one of the requests that have arrived does not ask for it, the connection closes
        when all of them are answered."""
        wire = self.connect()
        wire.send(LIST + KEEP + KEEP)
        self.assertEqual(wire.statuses, ["success"] * 3)
        self.assertTrue(wire.closed)

    def test_laterRequests(self) -> None:
        """What comes after the server has closed its side is passed over."""
        wire = self.connect()
        wire.send(LIST)
        wire.send(KEEP)
        self.assertEqual(len(wire.answers), 1)

    def test_errorCloses(self) -> None:
        """What is not understood cannot have asked for keep_alive."""
        wire = self.connect()
        wire.send(b'{"command":"lsit","keep_alive":true}')
        self.assertEqual(wire.statuses, ["error"])
        self.assertTrue(wire.closed)

    def test_halfClose(self) -> None:
        """A client that has closed its side before the answer has it all the same."""
        wire = self.connect()
        wire.send(KEEP)
        wire.closeWrite()
        self.assertEqual(wire.statuses, ["success"])
        self.assertTrue(wire.lost)

    def test_halfCloseBeforeAsynchronousAnswer(self) -> None:
        """A client may close its side and then wait for an answer that takes its time."""
        wire = self.patiently()
        wire.send(ATTACH)
        wire.closeWrite()
        self.assertFalse(wire.ended)
        self.backend.calls[0].succeed()
        wire.turn()
        self.assertEqual(wire.statuses, ["success"])
        self.assertTrue(wire.lost)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_halfCloseWithoutRequest(self) -> None:
        """A client that closes its side and has said nothing is not answered."""
        wire = self.connect()
        self.assertAllEnds(wire)
        self.assertEqual(wire.received, b"")

    def test_halfCloseAfterBlanks(self) -> None:
        """Nor is one that has sent blanks only."""
        wire = self.connect()
        wire.send(b" \r\n ")
        self.assertAllEnds(wire)
        self.assertEqual(wire.received, b"")

    def test_closeWhenIdle(self) -> None:
        """A daemon that stops closes a connection on which nothing is in progress."""
        wire = self.connect()
        wire.send(KEEP)
        wire.protocol.close()
        self.assertTrue(wire.closed)
        self.assertAllEnds(wire)

    def test_closeWhileAnswering(self) -> None:
        """A daemon that stops answers what has arrived, and then closes."""
        wire = self.patiently()
        wire.send(ATTACH + KEEP)
        wire.protocol.close()
        self.assertFalse(wire.closed)
        self.backend.calls[0].succeed()
        self.assertEqual(wire.statuses, ["success", "success"])
        self.assertTrue(wire.closed)

    def test_connectionBreaks(self) -> None:
        """A connection that breaks while an answer is under way leaves nothing behind."""
        wire = self.patiently()
        wire.send(ATTACH + KEEP)
        wire.drop()
        self.backend.calls[0].succeed()
        self.assertEqual(wire.received, b"")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_transportWithoutHalfClose(self) -> None:
        """Where one direction cannot be closed, both are."""
        transport = StringTransport()
        wire = self.connect()
        protocol = wire.protocol
        protocol.transport = transport
        transport.registerProducer(protocol, True)
        protocol.dataReceived(LIST)
        self.assertTrue(transport.disconnecting)

    def test_bug(self) -> None:
        """A bug is logged, told as an error, and the connection is closed for good: what else
        was asked on it is not carried out."""
        self.patch(Sharing, "_list", None)
        wire = self.connect()
        wire.send(KEEP + ATTACH)
        self.assertEqual(wire.statuses, ["error"])
        self.assertTrue(wire.closed)
        self.assertEqual(self.backend.calls, [])
        self.assertNotEqual(self.flushLoggedErrors(TypeError), [])


class OrderTests(LinesTestCase):
    """
    Requests are answered in their order.
    """

    def test_asynchronousAnswer(self) -> None:
        """What is asked after a request that takes its time is answered after it."""
        for way, segments in threeWays([ATTACH, FIND + b"\n", KEEP]):
            wire = self.patiently()
            wire.send(*segments)
            self.assertEqual(wire.received, b"", way)
            self.backend.calls[0].succeed()
            wire.turn()
            self.assertEqual(wire.statuses, ["success"] * 3, way)
            kinds = [type(answer["data"]) for answer in wire.answers]
            self.assertEqual(kinds, [dict, dict, list], way)
            self.assertFalse(wire.closed)

    def test_notReadMeanwhile(self) -> None:
        """While an answer is under way nothing more is read, so that a client cannot fill the
        memory."""
        wire = self.patiently()
        wire.send(ATTACH)
        self.assertEqual(wire.transport.producerState, "paused")
        self.backend.calls[0].succeed()
        self.assertEqual(wire.transport.producerState, "producing")

    def test_tooLongAfterAsynchronous(self) -> None:
        """A request that is too long does not lose the answer to the one before it."""
        for behind in (b"\n", b""):
            wire = self.patiently()
            wire.send(ATTACH + b'{"command":"' + b"x" * self.limits.requestBytes + behind)
            self.assertEqual(wire.received, b"")
            self.backend.calls[0].succeed()
            wire.turn()
            self.assertEqual(wire.statuses, ["success", "error"])
            self.assertTrue(wire.closed)

    def test_twoAsynchronous(self) -> None:
        """The second operation is begun when the first has been answered."""
        wire = self.patiently()
        wire.send(ATTACH + b"\n" + ATTACH.replace(b"attach", b"detach"))
        self.assertEqual([call.verb for call in self.backend.calls], ["bind"])
        self.backend.calls[0].succeed()
        self.assertEqual([call.verb for call in self.backend.calls], ["bind", "unbind"])
        self.backend.calls[1].succeed()
        self.assertEqual(wire.statuses, ["success", "success"])


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
        """A request as long as is allowed is answered."""
        for behind in (b"", b"\n", b"\r\n"):
            wire = self.connect()
            wire.send(self.requestOf(self.limits.requestBytes - len(behind.strip(b"\n"))) + behind)
            self.assertEqual(wire.statuses, ["success"])

    def test_oneTooLong(self) -> None:
        """A byte more is refused, with or without line feed, in one segment or many."""
        for behind in (b"", b"\n"):
            request = self.requestOf(self.limits.requestBytes + 1) + behind
            self.assertTooLong([request])
            self.assertTooLong([request[:500], request[500:]])
            self.assertTooLong([bytes([byte]) for byte in request])

    def test_endless(self) -> None:
        """What never becomes a request is refused when it is longer than one may be."""
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
        """Nor are those that have to wait for an answer that takes its time."""
        many = 2**16 // len(KEEP)
        for separator in (b"", b"\n"):
            wire = self.patiently()
            wire.send(ATTACH + separator + (KEEP + separator) * many)
            self.backend.calls[0].succeed()
            wire.turn()
            self.assertEqual(wire.statuses, ["success"] * (many + 1))


class TimeOutTests(LinesTestCase):
    """
    How long a client may take.
    """

    def assertTimedOut(self, wire: Wire) -> None:
        """The client was told that it took too long, and then cut off."""
        self.assertEqual(wire.statuses[-1], "error")
        self.assertIn("within 30 s", wire.answers[-1]["message"])
        self.assertTrue(wire.closed)
        self.clock.advance(max(LINGER, self.timeouts.request))
        wire.turn()
        self.assertTrue(wire.lost)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nothing(self) -> None:
        """A client that says nothing is told what to say."""
        wire = self.connect()
        self.clock.advance(29.9)
        self.assertEqual(wire.received, b"")
        self.clock.advance(0.2)
        self.assertTimedOut(wire)

    def test_half(self) -> None:
        """Nor is half a request enough."""
        wire = self.connect()
        wire.send(LIST[:-1])
        self.clock.advance(30.1)
        self.assertTimedOut(wire)

    def test_dripping(self) -> None:
        """Bytes that drip in, or blank lines, gain no time."""
        for drop in (b"\n", b" ", b"{"):
            wire = self.connect()
            for _ in range(31):
                wire.send(drop)
                self.clock.advance(1)
            self.assertTimedOut(wire)

    def test_afterAnAnswer(self) -> None:
        """An answer gives the client the whole time again."""
        wire = self.connect()
        self.clock.advance(20)
        wire.send(KEEP)
        self.clock.advance(20)
        wire.send(KEEP)
        self.assertEqual(wire.statuses, ["success", "success"])
        self.clock.advance(30.1)
        self.assertTimedOut(wire)

    def test_notWhileAnswering(self) -> None:
        """The time is the client's: while the server works, none of it passes."""
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
        """No more is answered than fits, until the client reads."""
        wire, many = self.congested()
        self.assertLess(len(wire.answers), many)
        self.assertEqual(wire.transport.producerState, "paused")
        self.assertFalse(wire.closed)
        wire.transport.read()
        wire.turn()
        self.assertEqual(len(wire.answers), many)
        self.assertEqual(wire.transport.producerState, "producing")

    def test_cutOff(self) -> None:
        """A client that does not read for long is cut off."""
        wire, _ = self.congested()
        self.clock.advance(29.9)
        self.assertFalse(wire.ended)
        self.clock.advance(0.2)
        wire.turn()
        self.assertTrue(wire.transport.aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_resumesWhileAnswering(self) -> None:
        """To read again while an answer is under way does not start a second one."""
        wire = self.patiently()
        wire.send(ATTACH + KEEP)
        wire.protocol.pauseProducing()
        wire.protocol.resumeProducing()
        self.assertEqual(wire.received, b"")
        self.backend.calls[0].succeed()
        wire.turn()
        self.assertEqual(wire.statuses, ["success", "success"])

    def test_answerWhileCongested(self) -> None:
        """An answer that comes while the client does not read is written; what comes after it
        waits."""
        wire = self.patiently()
        wire.send(ATTACH + KEEP)
        wire.protocol.pauseProducing()
        self.backend.calls[0].succeed()
        self.assertEqual(wire.statuses, ["success"])
        wire.protocol.resumeProducing()
        self.assertEqual(wire.statuses, ["success", "success"])

    def test_closesWhenRead(self) -> None:
        """The last answer of a congested connection is followed by the close."""
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
        """A client that closes its side first and reads later gets all its answers."""
        wire, many = self.congested()
        wire.closeWrite()
        self.assertFalse(wire.closed)
        wire.transport.read()
        wire.turn()
        self.assertEqual(len(wire.answers), many)
        self.assertTrue(wire.lost)


class BadInputTests(LinesTestCase):
    """
    Whatever comes in is answered, and is never a traceback.
    """

    limits = Limits(requestBytes=16 * 1024)

    BAD = (
        b"}",
        b"}}}{",
        b"[]",
        b'["list"]',
        b"null",
        b"42",
        b'"list"',
        b"NaN",
        b"{}",
        b"{]",
        b'{"command":NaN}',
        b'{"command":"find","bus":NaN}',
        b'{"command":"find","bus":Infinity}',
        b'{"command":"find","bus":1e999}',
        b'{"command":"find","bus":1.5}',
        b'{"command":"find","bus":true}',
        b'{"command":"find","bus":["1-1"]}',
        b'{"command":"find","bus":' + b"9" * 5000 + b"}",
        b'{"command":"find","id":5}',
        b'{"command":"find","id":""}',
        b'{"command":"find","id":" "}',
        b'{"command":"find","id":"' + b"*" * 300 + b'"}',
        b'{"command":"find"}',
        b'{"command":"find","id":null}',
        b'{"command":"find","id":"1-1","colour":"red"}',
        b'{"command":"list","detail":1}',
        b'{"command":"list","keep_alive":"yes"}',
        b'{"command":"LIST"}',
        b'{"command":null}',
        b'{"command":["list"]}',
        b'{"command":{"command":"list"}}',
        b'{"Command":"list"}',
        b'\xef\xbb\xbf{"command":"list"}',
        b'{"command":"find","desc":"\xff"}',
        b'{"command":"find","desc":"\xc0\xaf"}',
        b'{"command":"find","desc":"\xed\xa0\x80"}',
        b'{"command":"\\ud800"}',
        b'{"comm\\ud800and":"list"}',
        b'{"command":"list"\x00}',
        b"\x00\x01\x02",
        b"\xff\xfe{\x00}\x00",
        b"'{}'",
        b'{"command":"list",}',
        b'{"command":"list"',
        b'{"command":"list"]',
        b"{" * 5000 + b"}" * 5000,
        b'{"a":' * 3000 + b"1" + b"}" * 3000,
        b'{"command":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b"[" * 10000,
    )

    def test_bad(self) -> None:
        """Bad input is answered with one error, and the connection is closed."""
        for bad in self.BAD:
            for end in (b"\n", b"\r\n"):
                wire = self.connect()
                wire.send(bad + end)
                self.assertEqual(wire.statuses, ["error"], bad[:60])
                self.assertTrue(wire.closed)
                self.assertEqual(set(wire.answers[0]), {"status", "message"})
                self.assertLess(len(wire.received), 4096)
                self.assertAllEnds(wire)

    def test_badWithoutLineFeed(self) -> None:
        """The same without a line feed, when the client has closed its side."""
        for bad in self.BAD:
            wire = self.connect()
            wire.send(bad)
            wire.closeWrite()
            self.assertEqual(wire.statuses, ["error"], bad[:60])
            self.assertTrue(wire.lost)

    def test_namesTheKey(self) -> None:
        """An error names the key that is wrong."""
        for request, key in (
            (b'{"command":"lsit"}', "command"),
            (b'{"id":"1-1"}', "command"),
            (b'{"command":"find","id":5}', "id"),
            (b'{"command":"find","bus":[]}', "bus"),
            (b'{"command":"find","colour":"red"}', "colour"),
            (b'{"command":"list","id":"1-1"}', "id"),
            (b'{"command":"find","serial":""}', "serial"),
            (b'{"command":"find"}', "desc"),
        ):
            wire = self.connect()
            wire.send(request)
            self.assertIn(f"`{key}`", wire.answers[0]["message"])

    def test_loneSurrogate(self) -> None:
        """Half a surrogate pair in a criterion matches nothing and does no harm."""
        wire = self.connect()
        wire.send(b'{"command":"find","desc":"\\ud800"}')
        self.assertIn(wire.statuses, (["error"], ["not_found"]))

    def test_randomBytes(self) -> None:
        """Random bytes have error answers or none, and the connection ends."""
        chance = random.Random(5055)
        alphabet = [*b'{}{}[]"\\:, \r\n', *b"commandlist", 0, 0x80, 0xFF, 0xED]
        for number in range(10_000):
            size = chance.randrange(1, 60)
            if number % 2:
                noise = chance.randbytes(size)
            else:
                noise = bytes(chance.choices(alphabet, k=size))
            wire = self.connect()
            for segment in (noise[: size // 2], noise[size // 2 :]):
                wire.send(segment)
            wire.closeWrite()
            self.assertLessEqual(set(wire.statuses), {"error"}, noise)
            self.assertTrue(wire.lost, noise)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_mutatedRequests(self) -> None:
        """A good request with some bytes changed has answers of the contract's shapes only."""
        chance = random.Random(3240)
        for _ in range(3_000):
            request = bytearray(chance.choice([LIST, FIND, TRICKY]))
            for _ in range(chance.randrange(1, 4)):
                request[chance.randrange(len(request))] = chance.randrange(256)
            wire = self.connect()
            wire.send(bytes(request))
            wire.closeWrite()
            self.assertTrue(wire.lost)
            for answer in wire.answers:
                self.assertIn(answer["status"], ("success", "error", "not_found"))
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_others(self) -> None:
        """The devices that are listed are those of the backend."""
        wire = self.connect()
        wire.send(LIST)
        self.assertEqual(
            [device["bus_id"] for device in wire.answers[0]["data"]],
            [device.busId for device in DEVICES],
        )
