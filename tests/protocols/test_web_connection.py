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
        """A connection is for one request: the answer says so, and the server closes."""
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
        """What comes behind the first request is dropped."""
        for second in (post(ATTACH), get(), b"garbage\r\n\r\n", b"\r\n" * 1000):
            for way, segments in threeWays([post(LIST), second]):
                wire = self.connect()
                wire.send(*segments)
                [response] = responses(wire.received)
                self.assertEqual(response.code, 200, way)
                self.assertTrue(wire.closed)
        self.assertEqual(self.backend.calls, [])

    def test_pipelinedBehindSlow(self) -> None:
        """That is so when the first takes its time, however much comes, and nothing is kept."""
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
        """A client that asks on and on and never reads has one answer wait for it, and is cut
        off."""
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
        """A client that does not close its side is cut off a while after it has the answer."""
        wire = self.connect()
        wire.send(post(LIST))
        self.clock.advance(LINGER - 0.1)
        self.assertFalse(wire.ended)
        self.clock.advance(0.2)
        wire.turn()
        self.assertTrue(wire.transport.aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_connectionClose(self) -> None:
        """It is so whatever the client asks for."""
        for header in (b"Connection: close", b"Connection: keep-alive"):
            wire = self.connect()
            wire.send(post(LIST, header))
            [response] = responses(wire.received)
            self.assertEqual((response.code, response.headers["connection"]), (200, "close"))
            self.assertTrue(wire.closed)

    def test_halfClose(self) -> None:
        """A client may close its side and wait for the answer."""
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
        """Where nothing was asked that is the end."""
        wire = self.connect()
        wire.closeWrite()
        self.assertTrue(wire.lost)

    def test_halfCloseIncomplete(self) -> None:
        """So it is where a request was begun and will never be whole."""
        request = post(LIST, b"Connection: close")
        for length in range(1, len(request)):
            wire = self.connect()
            wire.send(request[:length])
            wire.closeWrite()
            self.assertTrue(wire.lost, request[:length])
            self.assertEqual(wire.received, b"")

    def test_breaks(self) -> None:
        """A connection that breaks while an answer is under way leaves nothing behind."""
        self.backend = PatientBackend()
        wire = self.connect()
        wire.send(post(ATTACH))
        wire.drop()
        self.backend.calls[0].succeed()
        self.assertEqual(wire.received, b"")
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_slowDrip(self) -> None:
        """A client whose bytes drip in is cut off, however busily they do."""
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
        """None of it passes while the server works."""
        self.timeouts = Timeouts(request=1, answer=1.8)
        self.backend = PatientBackend()
        wire = self.connect()
        wire.send(post(ATTACH))
        self.clock.advance(1.5)
        self.assertFalse(wire.closed)
        self.backend.calls[0].succeed()
        self.assertEqual(responses(wire.received)[0].code, 200)

    def test_closeIdle(self) -> None:
        """A daemon that stops closes a connection on which nothing is in progress."""
        for length in (0, 1, len(post(LIST)) - 1):
            wire = self.connect()
            wire.send(post(LIST)[:length])
            wire.protocol.close()
            self.assertTrue(wire.closed)
            wire.closeWrite()
            self.assertTrue(wire.lost)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_closeWhileAnswering(self) -> None:
        """One on which something is, when that is answered."""
        self.backend = PatientBackend()
        wire = self.connect()
        wire.send(post(ATTACH))
        wire.protocol.close()
        self.assertFalse(wire.closed)
        self.backend.calls[0].succeed()
        wire.turn()
        self.assertEqual(responses(wire.received)[0].code, 200)
        self.assertTrue(wire.closed)
