"""
Tests of L{usbip_server.protocols.web}: how long a connection lasts.
"""

from __future__ import annotations

from tests.protocols.webcase import ATTACH, LIST, WebTestCase, get, post, responses
from tests.support import PatientBackend, threeWays
from usbip_server.limits import Timeouts


class ConnectionTests(WebTestCase):
    """
    How long a connection lasts.
    """

    def test_pipelined(self) -> None:
        """Requests one after another on a connection are answered in their order."""
        find = b'{"command":"find","id":"1-1.4"}'
        for way, segments in threeWays([post(LIST), post(find), get()]):
            wire = self.connect()
            wire.send(*segments)
            codes = [response.code for response in responses(wire.received)]
            self.assertEqual(codes, [200, 200, 200], way)
            self.assertFalse(wire.ended)

    def test_manyPipelined(self) -> None:
        """As many as a segment holds are."""
        for request in (get(), post(LIST)):
            many = 2**16 // len(request)
            wire = self.connect()
            wire.send(request * many)
            self.assertEqual(len(responses(wire.received)), many)

    def test_pipelinedBehindSlow(self) -> None:
        """That is so when the first takes its time."""
        for way, segments in threeWays([post(ATTACH), post(LIST)]):
            self.backend = PatientBackend()
            wire = self.connect()
            wire.send(*segments)
            self.assertEqual(wire.received, b"", way)
            self.backend.calls[0].succeed()
            wire.turn()
            bodies = [response.json["data"] for response in responses(wire.received)]
            self.assertEqual([type(body) for body in bodies], [dict, list], way)

    def test_connectionClose(self) -> None:
        """A client that asks for the close has it."""
        wire = self.connect()
        wire.send(post(LIST, b"Connection: close"))
        self.assertEqual(responses(wire.received)[0].code, 200)
        self.assertTrue(wire.lost)

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

    def test_halfCloseBehindPipelined(self) -> None:
        """All that was asked before is answered then."""
        self.backend = PatientBackend()
        wire = self.connect()
        wire.send(post(ATTACH) + post(LIST))
        wire.closeWrite()
        self.backend.calls[0].succeed()
        wire.turn()
        self.assertEqual([response.code for response in responses(wire.received)], [200, 200])
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
            self.assertTrue(wire.ended, length)
            self.assertNotIn(b" 200 ", wire.received)

    def test_idleAfterAnswer(self) -> None:
        """After an answer the client has the whole time again, and no more."""
        wire = self.connect()
        self.clock.advance(20)
        wire.send(post(LIST))
        self.clock.advance(20)
        wire.send(post(LIST))
        self.assertEqual(len(responses(wire.received)), 2)
        self.clock.advance(31)
        self.assertTrue(wire.ended)

    def test_notWhileAnswering(self) -> None:
        """None of it passes while the server works."""
        self.timeouts = Timeouts(request=1, answer=1.8)
        self.backend = PatientBackend()
        wire = self.connect()
        wire.send(post(ATTACH))
        self.clock.advance(1.5)
        self.assertFalse(wire.ended)
        self.backend.calls[0].succeed()
        self.assertEqual(responses(wire.received)[0].code, 200)

    def test_closeIdle(self) -> None:
        """A daemon that stops closes a connection on which nothing is in progress."""
        wire = self.connect()
        wire.send(post(LIST))
        wire.protocol.close()
        self.assertTrue(wire.ended)

    def test_closeWhileAnswering(self) -> None:
        """One on which something is, when that is answered."""
        self.backend = PatientBackend()
        wire = self.connect()
        wire.send(post(ATTACH))
        wire.protocol.close()
        self.assertFalse(wire.ended)
        self.backend.calls[0].succeed()
        wire.turn()
        self.assertEqual(responses(wire.received)[0].code, 200)
        self.assertTrue(wire.lost)
