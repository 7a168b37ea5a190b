"""
Tests of L{usbip_server.protocols.web}: how long a connection lasts.
"""

from __future__ import annotations

from tests.protocols.webcase import ATTACH, LIST, WebTestCase, get, post, responses
from tests.support.fixtures import PatientBackend, threeWays
from usbip_server.model.options import Timeouts
from usbip_server.net.halfclose import LINGER


class ConnectionTests(WebTestCase):
    """
    How long a connection lasts.
    """

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
        """Data behind the first request is ignored."""
        for second in (post(ATTACH), get(), b"garbage\r\n\r\n", b"\r\n" * 1000):
            for way, segments in threeWays([post(LIST), second]):
                wire = self.connect()
                wire.send(*segments)
                [response] = responses(wire.received)
                self.assertEqual(response.code, 200, way)
                self.assertTrue(wire.closed)
        self.assertEqual(self.backend.calls, [])

    def test_pipelinedBehindSlow(self) -> None:
        """So is data that arrives while a reply is pending, and nothing is kept."""
        for way, segments in threeWays([post(ATTACH), post(LIST)]):
            self.backend = PatientBackend()
            wire = self.connect()
            wire.send(*segments)
            for _ in range(100):
                wire.send(b"x" * 2**16)
            self.assertEqual(wire.received, b"", way)
            self.assertEqual(wire.transport.producerState, "producing", way)
            self.backend.calls[0].succeed()
            wire.turn()
            [response] = responses(wire.received)
            self.assertIsInstance(response.json["data"], dict, way)

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
        self.clock.advance(29.9)
        self.assertFalse(wire.ended)
        self.clock.advance(0.2)
        wire.turn()
        self.assertTrue(wire.transport.aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_lingers(self) -> None:
        """A client that does not close its side is disconnected a while after the response."""
        wire = self.connect()
        wire.send(post(LIST))
        self.clock.advance(LINGER - 0.1)
        self.assertFalse(wire.ended)
        self.clock.advance(0.2)
        wire.turn()
        self.assertTrue(wire.transport.aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_connectionClose(self) -> None:
        """The client's C{Connection} header makes no difference."""
        for header in (b"Connection: close", b"Connection: keep-alive"):
            wire = self.connect()
            wire.send(post(LIST, header))
            [response] = responses(wire.received)
            self.assertEqual((response.code, response.headers["connection"]), (200, "close"))
            self.assertTrue(wire.closed)

    def test_halfClose(self) -> None:
        """A client that has closed its side receives the response."""
        self.backend = PatientBackend()
        wire = self.connect()
        wire.send(post(ATTACH))
        wire.closeWrite()
        self.assertFalse(wire.ended)
        self.backend.calls[0].succeed()
        wire.turn()
        self.assertEqual(responses(wire.received)[0].code, 200)
        self.assertTrue(wire.lost)

    def test_halfCloseIdle(self) -> None:
        """Without a request the connection ends then."""
        wire = self.connect()
        wire.closeWrite()
        self.assertTrue(wire.lost)

    def test_halfCloseIncomplete(self) -> None:
        """So it does with an incomplete request."""
        request = post(LIST, b"Connection: close")
        for length in range(1, len(request)):
            wire = self.connect()
            wire.send(request[:length])
            wire.closeWrite()
            self.assertTrue(wire.lost, request[:length])
            self.assertEqual(wire.received, b"")

    def test_breaks(self) -> None:
        """A connection that ends while a reply is pending leaves nothing behind."""
        self.backend = PatientBackend()
        wire = self.connect()
        wire.send(post(ATTACH))
        wire.drop()
        self.backend.calls[0].succeed()
        self.assertEqual(wire.received, b"")
        self.assertEqual(self.flushLoggedErrors(), [])
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
        self.backend = PatientBackend()
        wire = self.connect()
        wire.send(post(ATTACH))
        self.clock.advance(1.5)
        self.assertFalse(wire.closed)
        self.backend.calls[0].succeed()
        self.assertEqual(responses(wire.received)[0].code, 200)

    def test_closeIdle(self) -> None:
        """A daemon that stops closes an idle connection."""
        for length in (0, 1, len(post(LIST)) - 1):
            wire = self.connect()
            wire.send(post(LIST)[:length])
            wire.protocol.close()
            self.assertTrue(wire.closed)
            wire.closeWrite()
            self.assertTrue(wire.lost)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_closeWhileAnswering(self) -> None:
        """It closes a connection with a pending reply when that is sent."""
        self.backend = PatientBackend()
        wire = self.connect()
        wire.send(post(ATTACH))
        wire.protocol.close()
        self.assertFalse(wire.closed)
        self.backend.calls[0].succeed()
        wire.turn()
        self.assertEqual(responses(wire.received)[0].code, 200)
        self.assertTrue(wire.closed)
