"""
Tests of L{usbip_server.protocols.lines}: what a request is, and when a connection ends.
"""

from __future__ import annotations

import json

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.basic import LineReceiver
from twisted.trial.unittest import SynchronousTestCase

from tests.protocols.linescase import ATTACH, FIND, KEEP, LIST, TRICKY, LinesTestCase
from tests.support.fixtures import (
    DEVICES,
    EVERYBODY,
    UNO,
    MemoryTransport,
    PromptBackend,
    asked,
    threeWays,
)
from usbip_server.net.halfclose import LINGER
from usbip_server.protocols.framing import ObjectEnds
from usbip_server.protocols.lines import CommandFactory
from usbip_server.server.config import LiveSettings, Settings
from usbip_server.server.core import Core
from usbip_server.server.dispatcher import Dispatcher
from usbip_server.server.responder import Responder


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
        """An incomplete request is not answered; at the end of the stream it is an error."""
        for length in range(1, len(TRICKY)):
            wire = self.connect()
            wire.send(TRICKY[:length])
            self.assertEqual(wire.received, b"", f"{length} bytes")
            wire.closeWrite()
            self.assertEqual(wire.statuses, ["error"], f"{length} bytes")

    def test_blankLines(self) -> None:
        """Blank lines are ignored."""
        self.assertAnswered([b"\n\r\n  \n", KEEP, b"\n\n", LIST, b"\n"], ["success", "success"])

    def test_spaceBefore(self) -> None:
        """White space before a request is ignored."""
        self.assertAnswered([b"  \t" + LIST], ["success"])

    def test_garbageThenLineFeed(self) -> None:
        """A line that is not JSON is answered with an error."""
        self.assertAnswered([b"list\n"], ["error"])

    def test_oneWriteEach(self) -> None:
        """A reply is one write of compact JSON and a line feed: old clients call C{recv} once."""
        wire = self.connect()
        wire.send(KEEP + KEEP)
        self.assertEqual(len(wire.transport.writes), 2)
        for written in wire.transport.writes:
            answer = json.loads(written)
            compact = json.dumps(answer, separators=(",", ":"), ensure_ascii=False) + "\n"
            self.assertEqual(written, compact.encode())

    def test_objectEnds(self) -> None:
        """The end of an object is found when its last byte arrives, and not before."""
        ends = ObjectEnds()
        body = b'{"a":"' + b"x" * 2000 + rb"\"}" + b'"}'
        for length in range(len(body)):
            self.assertEqual(ends.take(body[:length]), ([], body[:length]))
        self.assertEqual(ends.take(body), ([body], b""))

    def test_objectEndsAnywhere(self) -> None:
        """Wherever the bytes are split, the same objects and the same rest are found."""
        stream = TRICKY + b"  {} \r{" + TRICKY + b'} x{"\\\\"}  ' + KEEP[:5]
        objects = [TRICKY, b"{}", b"{" + TRICKY + b"}", b'x{"\\\\"}']
        for first in range(len(stream) + 1):
            for second in range(first, len(stream) + 1):
                ends, found, rest = ObjectEnds(), [], b""
                for part in (stream[:first], stream[first:second], stream[second:]):
                    more, rest = ends.take(rest + part)
                    found += more
                found = [one.lstrip() for one in found]
                self.assertEqual(found, objects, f"{first}, {second}")
                self.assertEqual(rest.lstrip(), KEEP[:5], f"{first}, {second}")


class ClosingTests(LinesTestCase):
    """
    When the connection is closed, and how.
    """

    def test_afterTheAnswer(self) -> None:
        """After its reply the server closes its side, and waits for the client to close its own."""
        wire = self.connect()
        wire.send(LIST)
        self.assertTrue(wire.transport.writeClosed)
        self.assertFalse(wire.ended)
        self.assertIsNone(wire.transport.producer)
        self.assertAllEnds(wire)

    def test_clientThatDoesNotClose(self) -> None:
        """A client that does not close its side is disconnected after a while."""
        wire = self.connect()
        wire.send(LIST)
        self.clock.advance(LINGER)
        wire.turn()
        self.assertTrue(wire.lost)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_keepAlive(self) -> None:
        """A connection stays open if all requests have C{keep_alive}."""
        wire = self.connect()
        wire.send(KEEP)
        wire.send(FIND)
        self.assertFalse(wire.closed)
        wire.send(LIST)
        self.assertTrue(wire.closed)
        self.assertEqual(wire.statuses, ["success"] * 3)

    def test_oneWithoutKeepAlive(self) -> None:
        """
        If one request has no C{keep_alive}, the connection closes when all that have
        arrived are answered.
        """
        wire = self.connect()
        wire.send(LIST + KEEP + KEEP)
        self.assertEqual(wire.statuses, ["success"] * 3)
        self.assertTrue(wire.closed)

    def test_laterRequests(self) -> None:
        """Requests after the server has closed its side are ignored."""
        wire = self.connect()
        wire.send(LIST)
        wire.send(KEEP)
        self.assertEqual(len(wire.answers), 1)

    def test_errorCloses(self) -> None:
        """The connection closes after an invalid request, whose C{keep_alive} is not known."""
        wire = self.connect()
        wire.send(b'{"command":"lsit","keep_alive":true}')
        self.assertEqual(wire.statuses, ["error"])
        self.assertTrue(wire.closed)

    def test_halfClose(self) -> None:
        """A client that has closed its side receives the reply."""
        wire = self.connect()
        wire.send(KEEP)
        wire.closeWrite()
        self.assertEqual(wire.statuses, ["success"])
        self.assertTrue(wire.lost)

    def test_halfCloseBeforeAsynchronousAnswer(self) -> None:
        """So does a client that closes its side while the reply is pending."""
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
        """A client that closes its side without a request gets no reply."""
        wire = self.connect()
        self.assertAllEnds(wire)
        self.assertEqual(wire.received, b"")

    def test_halfCloseAfterBlanks(self) -> None:
        """Nor does a client that has sent only white space."""
        wire = self.connect()
        wire.send(b" \r\n ")
        self.assertAllEnds(wire)
        self.assertEqual(wire.received, b"")

    def test_closeWhenIdle(self) -> None:
        """A daemon that stops closes an idle connection."""
        wire = self.connect()
        wire.send(KEEP)
        wire.protocol.close()
        self.assertTrue(wire.closed)
        self.assertAllEnds(wire)

    def test_closeWhileAnswering(self) -> None:
        """A daemon that stops answers the requests that have arrived, and then closes."""
        wire = self.patiently()
        wire.send(ATTACH + KEEP)
        wire.protocol.close()
        self.assertFalse(wire.closed)
        self.backend.calls[0].succeed()
        self.assertEqual(wire.statuses, ["success", "success"])
        self.assertTrue(wire.closed)

    def test_connectionBreaks(self) -> None:
        """A connection that ends while a reply is pending leaves nothing behind."""
        wire = self.patiently()
        wire.send(ATTACH + KEEP)
        wire.drop()
        self.backend.calls[0].succeed()
        self.assertEqual(wire.received, b"")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_transportWithoutHalfClose(self) -> None:
        """Where one side cannot be closed alone, both are closed."""
        wire = self.connect()
        transport = StringTransport()
        transport.registerProducer(wire.protocol, True)
        wire.protocol.transport = transport
        wire.protocol.dataReceived(LIST)
        self.assertTrue(transport.disconnecting)

    def test_slowReader(self) -> None:
        """The time for the client to close its side begins when everything is sent."""
        wire = self.connect()
        wire.transport.reading = False
        wire.send(LIST)
        self.clock.advance(LINGER + 1)
        self.assertFalse(wire.ended)
        wire.transport.reading = True
        wire.turn()
        self.clock.advance(LINGER)
        self.assertTrue(wire.transport.aborted)

    def test_bug(self) -> None:
        """
        A bug is logged and answered with an error, and the connection closes without
        carrying out the other requests.
        """
        self.patch(Dispatcher, "list", None)
        wire = self.connect()
        wire.send(KEEP + ATTACH)
        self.assertEqual(wire.statuses, ["error"])
        self.assertTrue(wire.closed)
        self.assertEqual(self.backend.calls, [])
        self.assertNotEqual(self.flushLoggedErrors(TypeError), [])


class FactoryTests(SynchronousTestCase):
    """
    L{CommandFactory} alone, as a plain Twisted protocol factory.
    """

    def test_handsCommandsToTheBackend(self) -> None:
        """It decodes JSON commands, has the backend carry them out, and sends the replies."""
        backend = PromptBackend()
        settings = LiveSettings(Settings(access=EVERYBODY))
        core = Core(backend, Clock(), settings)
        asked(core.start())
        factory = CommandFactory(Responder(core.dispatcher), settings, Clock())
        protocol = factory.buildProtocol(IPv4Address("TCP", "192.0.2.7", 40000))
        self.assertIsInstance(protocol, LineReceiver)
        transport = MemoryTransport()
        protocol.makeConnection(transport)
        protocol.dataReceived(ATTACH + b"\n" + LIST + b"\n")
        attached, listed = [json.loads(line) for line in transport.value().splitlines()]
        self.assertEqual(attached["data"]["bus_id"], UNO.busId)
        self.assertEqual(len(listed["data"]), len(DEVICES))
        self.assertEqual([(c.verb, c.device.busId) for c in backend.calls], [("bind", UNO.busId)])
        self.assertTrue(transport.writeClosed)


class OrderTests(LinesTestCase):
    """
    Requests are answered in their order.
    """

    def test_asynchronousAnswer(self) -> None:
        """A request behind one that takes time is answered after it."""
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
        """
        While a reply is pending nothing more is read, so that a client cannot fill the
        memory.
        """
        wire = self.patiently()
        wire.send(ATTACH)
        self.assertEqual(wire.transport.producerState, "paused")
        self.backend.calls[0].succeed()
        self.assertEqual(wire.transport.producerState, "producing")

    def test_tooLongAfterAsynchronous(self) -> None:
        """A request that is too long does not suppress the reply to the one before it."""
        for behind in (b"\n", b""):
            wire = self.patiently()
            wire.send(ATTACH + b'{"command":"' + b"x" * self.limits.requestBytes + behind)
            self.assertEqual(wire.received, b"")
            self.backend.calls[0].succeed()
            wire.turn()
            self.assertEqual(wire.statuses, ["success", "error"])
            self.assertTrue(wire.closed)

    def test_twoAsynchronous(self) -> None:
        """The second operation begins when the first has been answered."""
        wire = self.patiently()
        wire.send(ATTACH + b"\n" + ATTACH.replace(b"attach", b"detach"))
        self.assertEqual([call.verb for call in self.backend.calls], ["bind"])
        self.backend.calls[0].succeed()
        self.assertEqual([call.verb for call in self.backend.calls], ["bind", "unbind"])
        self.backend.calls[1].succeed()
        self.assertEqual(wire.statuses, ["success", "success"])
