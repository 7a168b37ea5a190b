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
from tests.support.fixtures import DEVICES, UNO, MemoryTransport, PatientBackend, threeWays
from usbip_server.model.policy import Grant, Policy, Right
from usbip_server.net.halfclose import LINGER
from usbip_server.protocols.framing import BYTE_ORDER_MARK, ObjectSplitter
from usbip_server.protocols.lines import CommandFactory
from usbip_server.protocols.requestreceiver import CONTINUATION
from usbip_server.server.dispatcher import Dispatcher
from usbip_server.server.responder import Responder

PRETTY = b'{\n  "command": "find",\n  "id": "1-1.4",\n\n  "keep_alive": true\n}'
DETACH = b'{"command":"detach","id":"1-1.4","keep_alive":true}'


class FramingTests(LinesTestCase):
    """
    What a request is.
    """

    def test_requests(self) -> None:
        """
        A request ends where its object is complete, however it is delivered, written over lines
        and separated from the next one; blank lines, white space and a byte order mark before it
        are ignored, and braces and quotes within strings do not end it.
        """
        for messages, statuses in (
            ([LIST + b"\n"], ["success"]),
            ([LIST], ["success"]),
            ([b"  \t" + LIST], ["success"]),
            ([KEEP + b"\r\n", LIST + b"\r\n"], ["success"] * 2),
            ([b"\n\r\n  \n", KEEP, b"\n\n", LIST, b"\n"], ["success"] * 2),
            ([TRICKY, KEEP], ["not_found", "success"]),
            ([PRETTY, KEEP, PRETTY + b"\n", LIST], ["success"] * 4),
            ([PRETTY.replace(b"\n", b"\r\n") + b"\r\n", LIST], ["success"] * 2),
            ([BYTE_ORDER_MARK + KEEP + b"\r\n" + BYTE_ORDER_MARK, LIST], ["success"] * 2),
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

    def test_splitter(self) -> None:
        """
        The end of an object is found when its last byte arrives, and not before. Wherever the
        bytes are split, the same objects are found, and none behind anything else.
        """
        splitter = ObjectSplitter()
        body = b'{"a":"' + b"x" * 2000 + rb"\"}" + b'"}'
        for length in range(1, len(body)):
            self.assertEqual(splitter.feed(body[length - 1 : length]), [])
            self.assertEqual((splitter.size, splitter.isPending), (length, True))
        self.assertEqual(splitter.feed(b"}"), [body])
        self.assertEqual((splitter.size, splitter.isPending), (0, False))
        stream = TRICKY + b"  {} \r{" + TRICKY + b'}\n \xef\xbb\xbf{"\\\\":\n{}}  '
        objects = [TRICKY, b"{}", b"{" + TRICKY + b"}", b'{"\\\\":\n{}}']
        for end, isBroken in ((KEEP[:5], False), (b"x" + KEEP, True), (b"\xef\xbbx" + KEEP, True)):
            whole = stream + end
            for first in range(len(whole) + 1):
                for second in range(first, len(whole) + 1):
                    splitter, found = ObjectSplitter(), []
                    for part in (whole[:first], whole[first:second], whole[second:]):
                        found += splitter.feed(part)
                    self.assertEqual(found, objects, f"{first}, {second}")
                    self.assertEqual(splitter.isBroken, isBroken)
                    self.assertEqual(splitter.size, 0 if isBroken else 5)


class RefusalTests(LinesTestCase):
    """
    Nothing behind an invalid or forbidden request is looked at.
    """

    access = Policy(allow=(Grant(who="anyone", commands=(Right.LIST, Right.DETACH)),))

    def test_behind(self) -> None:
        """
        The requests before it are answered, and so is it; then the connection is closed.
        """
        for wrong in (
            b"patch / HTTP/1.1\r\nX-Usb: {} ",
            b"\x16\x03\x01\x02\x00",
            b"[] ",
            b"} ",
            b'"list" ',
            b"NaN\n",
            b"\xef\xbb{} ",
            b'{"command":"lsit","keep_alive":true}',
            b"{]}",
            FIND,
        ):
            self.backend = PatientBackend()
            for way, segments in threeWays([KEEP, wrong + DETACH + b"\n", DETACH]):
                wire = self.connect()
                wire.send(*segments)
                self.assertEqual(wire.statuses, ["success", "error"], (wrong, way))
                self.assertTrue(wire.closed)
                self.assertEqual(self.backend.calls, [])
                self.assertAllEnds(wire)
            wire = self.patiently()
            wire.send(DETACH + wrong + DETACH)
            self.backend.calls[0].succeed()
            self.assertEqual(wire.statuses, ["success", "error"], wrong)
            self.assertEqual(len(self.backend.calls), 1)
            self.assertAllEnds(wire)

    def test_notFound(self) -> None:
        """A request that is valid and allowed, and fails, does not end the connection."""
        wire = self.connect()
        wire.send(DETACH.replace(b"1-1.4", b"9-9") + KEEP)
        self.assertEqual(wire.statuses, ["not_found", "success"])
        self.assertFalse(wire.closed)

    def test_truncated(self) -> None:
        """
        An object that is not complete at a line feed has two seconds until the next line; the
        requests before it are answered first.
        """
        wire = self.connect()
        for line in (b"{\n", b'"command":\n', b'"list",\n', b'"keep_alive":true}\n'):
            wire.send(line)
            self.clock.advance(CONTINUATION - 0.1)
        self.assertEqual(wire.statuses, ["success"])
        self.clock.advance(CONTINUATION)
        self.assertFalse(wire.closed)
        wire.send(b'{"command":\n', b'"list"')
        self.clock.advance(CONTINUATION)
        self.assertEqual(wire.statuses, ["success", "error"])
        self.assertIn("truncated", wire.answers[1]["message"])
        self.assertAllEnds(wire)
        wire = self.patiently()
        wire.send(DETACH + b"{\n")
        self.clock.advance(1)
        self.backend.calls[0].succeed()
        self.clock.advance(CONTINUATION)
        self.assertEqual(wire.statuses, ["success", "error"])
        self.assertAllEnds(wire)
        wire = self.connect()
        wire.send(b"{\n")
        wire.protocol.pauseProducing()
        wire.send(b'"command":"list"}')
        self.clock.advance(CONTINUATION)
        self.assertEqual(wire.received, b"", "the rest has come, and is not looked at yet")
        wire.protocol.resumeProducing()
        self.assertEqual(wire.statuses, ["success"])
        self.assertAllEnds(wire)
        wire = self.connect()
        wire.send(b"{\n")
        wire.drop()
        self.assertEqual(self.clock.getDelayedCalls(), [])


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
