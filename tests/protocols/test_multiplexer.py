"""
Tests of L{usbip_server.protocols.multiplexer}.
"""

from __future__ import annotations

import json

from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IHalfCloseableProtocol, ISSLTransport
from twisted.logger import capturedLogs, formatEvent
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
from usbip_server.protocols.multiplexer import (
    FIRST_READ,
    LONGEST_METHOD,
    FirstByteFactory,
)
from usbip_server.protocols.overflow import AT_ONCE, HELD_SECONDS, QUIET

LIST = b'{"command":"list"}'
KEEP = b'{"command":"list","keep_alive":true}'
ATTACH = b'{"command":"attach","id":"1-1.4"}'
ADDRESS = IPv4Address("TCP", "192.0.2.7", 40000)
LOCAL = IPv4Address("TCP", "127.0.0.1", 40000)
MOST = 3
"""Connections of one client."""


def post(body: bytes) -> bytes:
    """A request over HTTP."""
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    return head + body


class FirstByteTestCase(ConnectionTestCase):
    """
    The control port.
    """

    limits = Limits(connections=2 * MOST)

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
        A connection that does not begin with a token and a space, behind empty lines or not, is
        JSON, and anything but an object is refused.
        """
        others = (
            *(bytes([byte]) + b"ELLO\n" for byte in range(256) if bytes([byte]) not in b"{ \t\r\n"),
            *(b"A" * LONGEST_METHOD + end for end in (b"", b" / HTTP/1.1")),
            b"\n" * LONGEST_METHOD + b"GET / HTTP/1.1",
            b"\n /",
            b"\x16\x03\x01\x02\x00" + ATTACH,
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
        for beginning in (b"", b"\r\n", b"lis"):
            for end in ("silence", "closeWrite"):
                wire = self.connect()
                wire.send(beginning)
                self.assertEqual(wire.received, b"")
                if end == "silence":
                    self.clock.advance(31)
                else:
                    wire.closeWrite()
                hasError = end == "silence" or beginning == b"lis"
                self.assertEqual(wire.statuses, ["error"] * hasError, beginning)
                if not wire.lost:
                    wire.drop()

    def test_http(self) -> None:
        """
        A connection that begins with a token and a space is HTTP, be that a method or not, and in
        whichever case: a web page may send C{patch}, with JSON in a header.
        """
        header = b"X: " + ATTACH + b"\r\n"
        rest = b" / HTTP/1.1\r\nHost: localhost\r\n" + header + b"\r\n"
        for request, code in (
            (post(LIST), b"200"),
            (b"\n" + post(LIST), b"200"),
            (b"\r\n\r\n" + post(LIST), b"200"),
            *((method + rest, b"405") for method in (b"patch", b"usb", b"PATCH", b"~!1")),
            (b"\nusb" + rest, b"405"),
            (b"GET nothing\r\n\r\n", b"400"),
        ):
            for way, segments in threeWays([request]):
                wire = self.connect()
                wire.send(*segments)
                self.assertTrue(wire.received.startswith(b"HTTP/1.1 " + code), (request, way))
                self.assertEqual(b'"success"' in wire.received, code == b"200")
                self.assertEqual(self.backend.calls, [])
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
        wires = [self.connect() for _ in range(MOST)]
        for end in ("close", "linger"):
            wire = self.connect()
            [answer] = wire.answers
            self.assertEqual(answer["status"], "error")
            self.assertIn("limit of 3 connections of one client", answer["message"])
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
            self.assertEqual(self.factory.overflow.atOnce, set())
        wires[1].drop()
        wire = self.connect()
        wire.send(LIST)
        self.assertEqual(wire.statuses, ["success"])

    def test_manyRefused(self) -> None:
        """
        Some of them get the error at once, and time to read it; others get it after a while, so
        that a client cannot keep the daemon busy with refusing; more than there is room for are
        closed at once. With TLS, where an error could be sent only after a handshake, they are
        aborted.
        """
        for _ in range(MOST):
            self.connect()
        first = [self.connect() for _ in range(AT_ONCE)]
        self.assertEqual({wire.statuses[0] for wire in first}, {"error"})
        self.assertEqual({(wire.closed, wire.ended) for wire in first}, {(True, False)})
        held = [self.connect() for _ in range(MOST)]
        self.assertEqual([wire.received for wire in held], [b""] * MOST)
        wire = self.connect()
        self.assertEqual((wire.statuses, wire.ended), (["error"], True))
        transport = MemoryTransport(ADDRESS)
        directlyProvides(transport, ISSLTransport)
        self.factory.identify = lambda transport: principalAt(ADDRESS)
        wire = Wire(self.factory.buildProtocol(ADDRESS), transport)
        self.assertTrue(transport.aborted)
        held[0].send(LIST)
        held[0].closeWrite()
        self.assertTrue(held[0].lost)
        self.clock.advance(HELD_SECONDS)
        for wire in held[1:]:
            wire.turn()
            self.assertEqual((wire.statuses, wire.lost), (["error"], True))
        first[0].drop()
        self.assertEqual(self.connect().statuses, ["error"])
        self.clock.advance(LINGER)
        for wire in first[1:]:
            wire.turn()
            self.assertTrue(wire.lost)
        self.assertEqual((len(self.factory.overflow.atOnce), self.factory.overflow.held), (1, {}))

    def test_roomForOthers(self) -> None:
        """A connection that is held is aborted when another client needs its place."""
        for _ in range(MOST + AT_ONCE):
            self.connect()
        held = [self.connect() for _ in range(MOST)]
        local = Wire(self.factory.buildProtocol(LOCAL), MemoryTransport(LOCAL))
        local.send(LIST)
        self.assertEqual(local.statuses, ["success"])
        self.assertEqual([wire.transport.aborted for wire in held], [True, False, False])

    def test_logged(self) -> None:
        """Any number of refusals is one line in the log in a while."""
        with capturedLogs() as events:
            for _ in range(MOST + 10):
                self.connect()
            [event] = events
            self.assertIn("limit of 3 connections", formatEvent(event))
            self.assertEqual(event["principal"], "192.0.2.7")
            self.clock.advance(QUIET)
            for _ in range(MOST + 10):
                self.connect()
            self.assertEqual(len(events), 2)

    def test_flood(self) -> None:
        """
        What a client sends behind its last request, or while it watches, is read at a bounded rate.
        """
        for request in (b"garbage\n", b'{"command":"watch"}\n', post(LIST)):
            wire = self.connect()
            wire.send(request)
            wire.send(*[b"x" * FIRST_READ] * 5)
            self.assertEqual(wire.transport.producerState, "paused")
            self.clock.advance(1)
            self.assertEqual(wire.transport.producerState, "producing")
            wire.send(*[b"x" * FIRST_READ] * 5)
            wire.drop()
        self.assertEqual(self.clock.getDelayedCalls(), [])


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
