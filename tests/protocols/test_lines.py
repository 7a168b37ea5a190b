"""
Tests of L{usbip_server.protocols.lines}: what a request is, in which order requests are answered,
and when a connection ends.
"""

from __future__ import annotations

import json

from twisted.internet.address import IPv4Address
from twisted.internet.testing import StringTransport
from twisted.protocols.basic import LineReceiver

from tests.protocols.linescase import ATTACH, FIND, KEEP, LIST, TRICKY, LinesTestCase
from tests.support.fixtures import DEVICES, UNO, MemoryTransport, threeWays
from usbip_server.net.halfclose import LINGER
from usbip_server.protocols.framing import ObjectEnds
from usbip_server.protocols.lines import CommandFactory
from usbip_server.server.dispatcher import Dispatcher
from usbip_server.server.responder import Responder


class FramingTests(LinesTestCase):
    """
    What a request is.
    """

    def test_requests(self) -> None:
        """
        A request ends with a line feed or where its object is complete, however it is delivered
        and separated from the next one; blank lines and white space around it are ignored, and
        braces and quotes within strings do not end it.
        """
        for messages, statuses in (
            ([LIST + b"\n"], ["success"]),
            ([LIST], ["success"]),
            ([b"  \t" + LIST], ["success"]),
            ([KEEP + b"\r\n", LIST + b"\r\n"], ["success"] * 2),
            ([b"\n\r\n  \n", KEEP, b"\n\n", LIST, b"\n"], ["success"] * 2),
            ([TRICKY, KEEP], ["not_found", "success"]),
            ([b"list\n"], ["error"]),
            *(
                ([KEEP + separator, FIND + separator, LIST], ["success"] * 3)
                for separator in (b"", b"\n", b"\r\n", b" ", b"\n\n")
            ),
        ):
            for way, segments in threeWays(messages):
                wire = self.connect()
                wire.send(*segments)
                self.assertEqual(wire.statuses, statuses, f"{messages} {way}")
                self.assertAllEnds(wire)
                self.assertEqual(wire.statuses, statuses, f"{messages} {way}, afterwards")

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
        """
        The end of an object is found when its last byte arrives, and not before. Wherever the
        bytes are split, the same objects and the same rest are found.
        """
        ends = ObjectEnds()
        body = b'{"a":"' + b"x" * 2000 + rb"\"}" + b'"}'
        for length in range(len(body)):
            self.assertEqual(ends.take(body[:length]), ([], body[:length]))
        self.assertEqual(ends.take(body), ([body], b""))
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


class OrderTests(LinesTestCase):
    """
    Requests are answered in their order.
    """

    def test_asynchronousAnswer(self) -> None:
        """A request behind one that takes time is answered after it; nothing is read until then."""
        for way, segments in threeWays([ATTACH, FIND + b"\n", KEEP]):
            wire = self.patiently()
            wire.send(*segments)
            self.assertEqual(wire.received, b"", way)
            self.assertEqual(wire.transport.producerState, "paused")
            self.backend.calls[0].succeed()
            wire.turn()
            self.assertEqual(wire.transport.producerState, "producing")
            self.assertEqual(wire.statuses, ["success"] * 3, way)
            kinds = [type(answer["data"]) for answer in wire.answers]
            self.assertEqual(kinds, [dict, dict, list], way)
            self.assertFalse(wire.closed)

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
        for verbs in (["bind"], ["bind", "unbind"]):
            self.assertEqual([call.verb for call in self.backend.calls], verbs)
            self.backend.calls[-1].succeed()
        self.assertEqual(wire.statuses, ["success", "success"])


class ClosingTests(LinesTestCase):
    """
    When the connection is closed, and how.
    """

    def test_keepAlive(self) -> None:
        """
        A connection stays open if all requests have C{keep_alive}; after the reply to one without
        the server closes its side, and ignores what comes.
        """
        wire = self.connect()
        wire.send(KEEP)
        wire.send(FIND)
        self.assertFalse(wire.closed)
        wire.send(LIST)
        self.assertTrue(wire.transport.writeClosed)
        self.assertFalse(wire.ended)
        self.assertIsNone(wire.transport.producer)
        wire.send(KEEP)
        self.assertEqual(wire.statuses, ["success"] * 3)
        self.assertAllEnds(wire)

    def test_oneWithoutKeepAlive(self) -> None:
        """
        If one request has no C{keep_alive}, the connection closes when all that have arrived are
        answered.
        """
        wire = self.connect()
        wire.send(LIST + KEEP + KEEP)
        self.assertEqual(wire.statuses, ["success"] * 3)
        self.assertTrue(wire.closed)

    def test_lingers(self) -> None:
        """
        A client that does not close its side is disconnected a while after everything has been
        sent to it.
        """
        for reading in (True, False):
            wire = self.connect()
            wire.transport.reading = reading
            wire.send(LIST)
            if not reading:
                self.clock.advance(LINGER + 1)
                self.assertFalse(wire.ended)
                wire.transport.reading = True
                wire.turn()
            self.clock.advance(LINGER)
            self.assertTrue(wire.transport.aborted)
            wire.turn()
            self.assertTrue(wire.lost)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_errorCloses(self) -> None:
        """The connection closes after an invalid request, whose C{keep_alive} is not known."""
        wire = self.connect()
        wire.send(b'{"command":"lsit","keep_alive":true}')
        self.assertEqual(wire.statuses, ["error"])
        self.assertTrue(wire.closed)

    def test_halfClose(self) -> None:
        """A client that has closed its side receives the replies to what it has requested."""
        for sent, statuses in (
            (b"", []),
            (b" \r\n ", []),
            (KEEP, ["success"]),
            (KEEP + LIST, ["success"] * 2),
        ):
            wire = self.connect()
            wire.send(sent)
            self.assertAllEnds(wire)
            self.assertEqual(wire.statuses, statuses)

    def test_endWhileAnswering(self) -> None:
        """
        A pending reply, and those to the requests behind it, are sent if the client has closed its
        side or the daemon stops, and then the connection is closed; a connection that breaks
        leaves nothing behind.
        """
        for end, requests, count in (
            ("closeWrite", ATTACH, 1),
            ("close", ATTACH + KEEP, 2),
            ("drop", ATTACH + KEEP, 0),
        ):
            wire = self.patiently()
            wire.send(requests)
            getattr(wire.protocol if end == "close" else wire, end)()
            self.assertFalse(wire.closed, end)
            self.backend.calls[0].succeed()
            if end != "drop":
                wire.turn()
                self.assertTrue(wire.closed, end)
            if end == "close":
                wire.closeWrite()
            self.assertEqual(wire.statuses, ["success"] * count, end)
            self.assertTrue(wire.lost, end)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_closeWhenIdle(self) -> None:
        """A daemon that stops closes an idle connection."""
        wire = self.connect()
        wire.send(KEEP)
        wire.protocol.close()
        self.assertTrue(wire.closed)
        self.assertAllEnds(wire)

    def test_transportWithoutHalfClose(self) -> None:
        """Where one side cannot be closed alone, both are closed."""
        wire = self.connect()
        transport = StringTransport()
        transport.registerProducer(wire.protocol, True)
        wire.protocol.transport = transport
        wire.protocol.dataReceived(LIST)
        self.assertTrue(transport.disconnecting)

    def test_bug(self) -> None:
        """
        A bug is logged and answered with an error, and the connection closes without carrying out
        the other requests.
        """
        self.patch(Dispatcher, "list", None)
        wire = self.connect()
        wire.send(KEEP + ATTACH)
        self.assertEqual(wire.statuses, ["error"])
        self.assertTrue(wire.closed)
        self.assertEqual(self.backend.calls, [])
        self.assertNotEqual(self.flushLoggedErrors(TypeError), [])

    def test_factory(self) -> None:
        """
        L{CommandFactory} alone is a plain Twisted protocol factory: it decodes JSON commands, has
        the backend carry them out, and sends the replies.
        """
        self.connect()
        factory = CommandFactory(
            Responder(self.core.dispatcher, self.core.requests), self.settings, self.clock
        )
        protocol = factory.buildProtocol(IPv4Address("TCP", "192.0.2.7", 40000))
        self.assertIsInstance(protocol, LineReceiver)
        transport = MemoryTransport()
        protocol.makeConnection(transport)
        protocol.dataReceived(ATTACH + b"\n" + LIST + b"\n")
        attached, listed = [json.loads(line) for line in transport.value().splitlines()]
        self.assertEqual(attached["data"]["bus_id"], UNO.busId)
        self.assertEqual(
            [device["bus_id"] for device in listed["data"]], [device.busId for device in DEVICES]
        )
        calls = [(call.verb, call.device.busId) for call in self.backend.calls]
        self.assertEqual(calls, [("bind", UNO.busId)])
        self.assertTrue(transport.writeClosed)
