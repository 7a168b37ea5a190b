"""
Tests of L{usbip_server.protocols.web}: how long a connection lasts.
"""

from __future__ import annotations

from tests.protocols.webcase import ATTACH, LIST, WebTestCase, get, post, responses
from tests.support.fixtures import PatientBackend, Wire, threeWays
from usbip_server.model.options import Timeouts
from usbip_server.net.halfclose import LINGER


class ConnectionTests(WebTestCase):
    """
    How long a connection lasts.
    """

    def pending(self) -> Wire:
        """A connection whose request has no response yet."""
        self.backend = PatientBackend()
        wire = self.connect()
        wire.send(post(ATTACH))
        return wire

    def test_oneRequest(self) -> None:
        """The connection closes after one request, and the response says so."""
        for request in (post(LIST), post(b"{"), get(), get(path=b"/x"), post(LIST, host=b"evil")):
            wire = self.connect()
            wire.send(request)
            [response] = responses(wire.received)
            self.assertEqual(response.headers["connection"], "close")
            self.assertTrue(wire.transport.writeClosed)
            self.assertIsNone(wire.transport.producer)
            wire.closeWrite()
            self.assertTrue(wire.lost)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_pipelined(self) -> None:
        """
        Data behind the first request is ignored, and not kept, also while a reply is pending.
        """
        for second in (post(ATTACH), get(), b"garbage\r\n\r\n", b"\r\n" * 1000):
            for way, segments in threeWays([post(LIST), second]):
                wire = self.connect()
                wire.send(*segments)
                [response] = responses(wire.received)
                self.assertEqual(response.code, 200, way)
                self.assertTrue(wire.closed)
        self.assertEqual(self.backend.calls, [])
        wire = self.pending()
        for _ in range(100):
            wire.send(post(LIST), b"x" * 2**16)
        self.assertEqual(wire.received, b"")
        self.assertEqual(wire.transport.producerState, "producing")
        self.backend.calls[0].succeed()
        [response] = responses(wire.received)
        self.assertIsInstance(response.json["data"], dict)

    def test_neverReads(self) -> None:
        """
        A client that sends many requests and never reads has one response in memory, and is
        disconnected.
        """
        wire = self.connect()
        wire.transport.reading = False
        for _ in range(1000):
            wire.send(post(LIST))
        [response] = responses(wire.received)
        self.assertEqual(response.code, 200)
        self.assertCutOffAfter(wire, 30)

    def test_lingers(self) -> None:
        """A client that does not close its side is disconnected a while after the response."""
        wire = self.connect()
        wire.send(post(LIST))
        self.assertCutOffAfter(wire, LINGER)

    def assertCutOffAfter(self, wire: Wire, seconds: float) -> None:
        """The connection is aborted after so many seconds, and nothing is left of it."""
        self.clock.advance(seconds - 0.1)
        self.assertFalse(wire.ended)
        self.clock.advance(0.2)
        wire.turn()
        self.assertTrue(wire.transport.aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_halfCloseIncomplete(self) -> None:
        """If the client closes its side without a complete request, the connection ends."""
        request = post(LIST, b"Connection: close")
        for length in range(len(request)):
            wire = self.connect()
            wire.send(request[:length])
            wire.closeWrite()
            self.assertTrue(wire.lost, request[:length])
            self.assertEqual(wire.received, b"")

    def test_endWhileAnswering(self) -> None:
        """
        A pending reply is sent if the client has closed its side or the daemon stops; a connection
        that breaks leaves nothing behind.
        """
        for end in ("closeWrite", "close", "drop"):
            wire = self.pending()
            getattr(wire.protocol if end == "close" else wire, end)()
            self.assertFalse(wire.ended)
            self.backend.calls[0].succeed()
            if end == "drop":
                self.assertEqual(wire.received, b"")
                self.assertEqual(self.flushLoggedErrors(), [])
            else:
                wire.turn()
                self.assertEqual(responses(wire.received)[0].code, 200)
                self.assertTrue(wire.closed)
                wire.closeWrite()
            self.assertTrue(wire.lost)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_slowDrip(self) -> None:
        """A client whose request arrives byte by byte is disconnected after C{timeouts.request}."""
        request = post(LIST)
        for length in (1, 40, len(request) - 5):
            wire = self.connect()
            wire.send(request[:length])
            for byte in b"X" * 31:
                wire.send(bytes([byte])) if length < len(request) - 5 else None
                self.clock.advance(1)
            self.assertTrue(wire.closed, length)
            self.assertNotIn(b" 200 ", wire.received)

    def test_notWhileAnswering(self) -> None:
        """The time does not run while a reply is pending."""
        self.timeouts = Timeouts(request=1, answer=1.8)
        wire = self.pending()
        self.clock.advance(1.5)
        self.assertFalse(wire.closed)
        self.backend.calls[0].succeed()
        self.assertEqual(responses(wire.received)[0].code, 200)

    def test_closeIdle(self) -> None:
        """A daemon that stops closes a connection without a complete request."""
        for length in (0, 1, len(post(LIST)) - 1):
            wire = self.connect()
            wire.send(post(LIST)[:length])
            wire.protocol.close()
            self.assertTrue(wire.closed)
            wire.closeWrite()
            self.assertTrue(wire.lost)
        self.assertEqual(self.clock.getDelayedCalls(), [])
