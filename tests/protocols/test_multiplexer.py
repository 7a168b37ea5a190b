"""
Tests of L{usbip_server.protocols.multiplexer}.
"""

from __future__ import annotations

import json

from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IHalfCloseableProtocol, ISSLTransport
from twisted.logger import capturedLogs
from zope.interface import directlyProvides
from zope.interface.verify import verifyObject

from tests.protocols.linescase import ConnectionTestCase
from tests.support.fixtures import (
    MemoryTransport,
    PatientBackend,
    PromptBackend,
    Wire,
    asked,
    threeWays,
)
from usbip_server.model.options import Limits
from usbip_server.model.policy import Principal
from usbip_server.net.caller import principalAt
from usbip_server.net.halfclose import LINGER
from usbip_server.protocols.multiplexer import OVERFLOW, FirstByteFactory

LIST = b'{"command":"list"}'
KEEP = b'{"command":"list","keep_alive":true}'
ATTACH = b'{"command":"attach","id":"1-1.4"}'
ADDRESS = IPv4Address("TCP", "192.0.2.7", 40000)


def post(body: bytes) -> bytes:
    """A request over HTTP."""
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    return head + body


class FirstByteTestCase(ConnectionTestCase):
    """
    The control port.
    """

    limits = Limits(connections=3)

    def setUp(self) -> None:
        super().setUp()
        self.use(PromptBackend())

    def use(self, backend: PatientBackend) -> None:
        """Serve this backend."""
        self.backend = backend
        self.begin()
        self.factory = FirstByteFactory(self.lines, self.web, self.settings, self.clock)

    def connect(self) -> Wire:
        """A new connection."""
        protocol = self.factory.buildProtocol(ADDRESS)
        verifyObject(IHalfCloseableProtocol, protocol)
        return Wire(protocol, MemoryTransport(ADDRESS))


class SwitchingTests(FirstByteTestCase):
    """
    Which protocol a connection has.
    """

    def test_json(self) -> None:
        """
        A connection that begins with a brace or white space is JSON, and any byte that is not a
        capital letter is answered in JSON; so is silence.
        """
        others = (
            bytes([byte]) + b"ELLO\n"
            for byte in range(256)
            if not (bytes([byte]).isupper() or bytes([byte]).isspace())
        )
        for request, status in (
            *((space + LIST, "success") for space in (b"", b" ", b"\r\n", b"\t")),
            *((other, "error") for other in others),
        ):
            for way, segments in threeWays([request]):
                wire = self.connect()
                wire.send(*segments)
                self.assertEqual(set(wire.statuses), {status}, f"{request!r} {way}")
                wire.closeWrite()
                self.assertTrue(wire.lost)
        wire = self.connect()
        self.clock.advance(31)
        self.assertEqual(wire.statuses, ["error"])

    def test_http(self) -> None:
        """A connection that begins with a capital letter is HTTP, be that a method or not."""
        for request, code in (
            (post(LIST), b"200"),
            *((bytes([letter]) + b"\r\n\r\n", b"400") for letter in b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
        ):
            for way, segments in threeWays([request]):
                wire = self.connect()
                wire.send(*segments)
                self.assertTrue(wire.received.startswith(b"HTTP/1.1 " + code), (request, way))
                self.assertEqual(b'"success"' in wire.received, code == b"200")
                wire.closeWrite()
                self.assertTrue(wire.lost)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_onlyTheFirst(self) -> None:
        """Only the first byte counts."""
        wire = self.connect()
        wire.send(KEEP, b"GET / HTTP/1.1\r\n\r\n")
        self.assertEqual(set(wire.statuses), {"success", "error"})

    def test_httpTimeOut(self) -> None:
        """After the switch to HTTP the time limit of JSON does not apply."""
        wire = self.connect()
        wire.send(b"POST / ")
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(31)
        self.assertNotIn(b"status", wire.received)
        self.assertTrue(wire.closed)

    def test_probe(self) -> None:
        """A client that connects and disconnects leaves nothing behind."""
        self.connect().drop()
        wire = self.connect()
        wire.closeWrite()
        self.assertTrue(wire.lost)
        self.assertEqual(self.factory.connections, set())
        self.assertEqual(self.clock.getDelayedCalls(), [])


class LimitTests(FirstByteTestCase):
    """
    More connections than there may be.
    """

    def test_overflow(self) -> None:
        """
        A connection beyond the limit gets an error, and is closed, or disconnected if the client
        does not close its side; when another connection ends, the next one is accepted.
        """
        wires = [self.connect() for _ in range(self.limits.connections)]
        for end in ("close", "linger"):
            wire = self.connect()
            [answer] = wire.answers
            self.assertEqual(answer["status"], "error")
            self.assertIn("3 connections", answer["message"])
            self.assertTrue(wire.transport.writeClosed)
            wire.send(LIST)
            self.assertEqual(len(wire.answers), 1)
            if end == "close":
                wire.closeWrite()
            else:
                self.clock.advance(LINGER)
                self.assertTrue(wire.transport.aborted)
                wire.turn()
            self.assertTrue(wire.lost)
            self.assertEqual(self.factory.overflow, set())
        wires[1].drop()
        wire = self.connect()
        wire.send(LIST)
        self.assertEqual(wire.statuses, ["success"])

    def test_manyRefused(self) -> None:
        """
        A number of them have time to read the error; any more get it too, and are closed at once.
        With TLS those are aborted, because an error could be sent only after a handshake.
        """
        for _ in range(self.limits.connections):
            self.connect()
        refused = [self.connect() for _ in range(OVERFLOW)]
        for _ in range(5):
            wire = self.connect()
            self.assertEqual(wire.statuses, ["error"])
            self.assertTrue(wire.ended)
            self.assertFalse(wire.transport.aborted)
            self.assertEqual(len(self.factory.overflow), OVERFLOW)
        transport = MemoryTransport()
        directlyProvides(transport, ISSLTransport)
        wire = Wire(self.factory.buildProtocol(ADDRESS), transport)
        self.assertTrue(transport.aborted)
        wire.turn()
        self.assertTrue(wire.lost)
        self.assertFalse(any(wire.ended for wire in refused))
        refused[0].drop()
        self.assertFalse(self.connect().ended)
        self.assertEqual(len(self.factory.overflow), OVERFLOW)
        self.clock.advance(LINGER)
        for wire in refused[1:]:
            wire.turn()
        self.assertEqual(len(self.factory.overflow), 1)

    def test_loggedOnce(self) -> None:
        """Any number of refusals is one line in the log, until a connection was accepted again."""
        with capturedLogs() as events:
            wires = [self.connect() for _ in range(self.limits.connections)]
            for _ in range(10):
                self.factory.buildProtocol(ADDRESS)
            self.assertEqual([event["most"] for event in events], [self.limits.connections])
            wires.pop().drop()
            self.connect()
            self.connect()
            self.assertEqual(len(events), 2)


class ClosingTests(FirstByteTestCase):
    """
    The daemon stops.
    """

    def test_idle(self) -> None:
        """
        Idle connections are closed, with JSON and with HTTP; without connections C{close} ends at
        once.
        """
        self.successResultOf(asked(self.factory.close(2)))
        lines, web = self.connect(), self.connect()
        lines.send(KEEP)
        web.send(post(LIST))
        closed = asked(self.factory.close(2))
        for wire in (lines, web):
            self.assertTrue(wire.closed)
            self.assertNoResult(closed)
            wire.closeWrite()
            wire.turn()
        self.successResultOf(closed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_waits(self) -> None:
        """C{close} waits for pending replies, and aborts connections after a time."""
        for inTime in (True, False):
            self.use(PatientBackend())
            lines, web = self.connect(), self.connect()
            lines.send(ATTACH)
            web.send(post(ATTACH))
            closed = asked(self.factory.close(1))
            self.clock.advance(0.9)
            self.assertFalse(lines.closed or web.closed)
            if inTime:
                self.backend.calls[0].succeed()
            else:
                self.clock.advance(0.2)
                self.assertTrue(lines.transport.aborted and web.transport.aborted)
            for wire in (lines, web):
                wire.turn()
                self.assertTrue(wire.closed)
                wire.closeWrite()
            self.assertEqual(b"success" in lines.received, inTime)
            self.assertEqual(b"200 OK" in web.received, inTime)
            self.successResultOf(closed)


class PrincipalTests(FirstByteTestCase):
    """
    The principal of a connection.
    """

    def test_addresses(self) -> None:
        """An IPv4 client has the same address on IPv4 and on IPv6 sockets."""
        for address, expected in (
            (IPv4Address("TCP", "192.0.2.7", 1), "192.0.2.7"),
            (IPv6Address("TCP", "::ffff:192.0.2.7", 1), "192.0.2.7"),
            (IPv6Address("TCP", "2001:db8::1", 1), "2001:db8::1"),
            (IPv6Address("TCP", "::1", 1), "::1"),
            (UNIXAddress("/run/usbipshare"), "local"),
            (UNIXAddress(None), "local"),
            (HostnameAddress(b"x", 1), "unknown"),
            (None, "unknown"),
        ):
            self.assertEqual(principalAt(address), Principal(expected))

    def test_handedOn(self) -> None:
        """
        Both protocols pass the client on: the error about an operation in progress names
        the client that requested it.
        """
        for request in (ATTACH, post(ATTACH)):
            self.use(PatientBackend())
            self.connect().send(request)
            opposite = self.connect()
            opposite.send(ATTACH.replace(b"attach", b"detach"))
            self.clock.advance(1.9)
            self.assertIn("192.0.2.7", json.loads(opposite.received)["message"])
            self.backend.calls[0].succeed()
