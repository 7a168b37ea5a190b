"""
Tests of L{usbip_server.protocols.multiplexer}.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IHalfCloseableProtocol, ISSLTransport
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides
from zope.interface.verify import verifyObject

from tests.support.fixtures import (
    EVERYBODY,
    MemoryTransport,
    PatientBackend,
    PromptBackend,
    Wire,
    asked,
    threeWays,
)
from usbip_server.model.options import Limits, Timeouts
from usbip_server.model.policy import Principal
from usbip_server.net.caller import principalAt
from usbip_server.net.halfclose import LINGER
from usbip_server.protocols.lines import CommandFactory
from usbip_server.protocols.multiplexer import OVERFLOW, FirstByteFactory
from usbip_server.protocols.web import WebFactory
from usbip_server.server.config import LiveSettings, Settings
from usbip_server.server.core import Core
from usbip_server.server.responder import Responder

LIST = b'{"command":"list"}'
KEEP = b'{"command":"list","keep_alive":true}'
ATTACH = b'{"command":"attach","id":"1-1.4"}'
ADDRESS = IPv4Address("TCP", "192.0.2.7", 40000)


def post(body: bytes) -> bytes:
    """A request over HTTP."""
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    return head + body


class FirstByteTestCase(SynchronousTestCase):
    """
    The control port.
    """

    most = 3

    def setUp(self) -> None:
        self.clock = Clock()
        self.use(PromptBackend())

    def use(self, backend: PatientBackend) -> None:
        """Serve this backend."""
        self.backend = backend
        limits, timeouts = Limits(), Timeouts()
        limits = Limits(connections=self.most)
        settings = LiveSettings(Settings(access=EVERYBODY, limits=limits, timeouts=timeouts))
        core = Core(backend, self.clock, settings)
        asked(core.start())
        responder = Responder(core.dispatcher)
        self.factory = FirstByteFactory(
            CommandFactory(responder, settings, self.clock),
            WebFactory(responder, settings, self.clock),
            settings,
            self.clock,
        )

    def connect(self) -> Wire:
        """A new connection."""
        protocol = self.factory.buildProtocol(ADDRESS)
        verifyObject(IHalfCloseableProtocol, protocol)
        return Wire(protocol, MemoryTransport(ADDRESS))


class SwitchingTests(FirstByteTestCase):
    """
    Which protocol it is.
    """

    def test_json(self) -> None:
        """A connection that begins with a brace or white space is JSON."""
        for request in (LIST, b" " + LIST, b"\r\n" + LIST, b"\t" + LIST + b"\n"):
            for way, segments in threeWays([request]):
                wire = self.connect()
                wire.send(*segments)
                self.assertEqual(wire.statuses, ["success"], f"{request!r} {way}")
                wire.closeWrite()
                self.assertTrue(wire.lost)

    def test_http(self) -> None:
        """A connection that begins with a capital letter is HTTP."""
        for way, segments in threeWays([post(LIST)]):
            wire = self.connect()
            wire.send(*segments)
            self.assertTrue(wire.received.startswith(b"HTTP/1.1 200 "), way)
            self.assertIn(b'"success"', wire.received)
            wire.closeWrite()
            self.assertTrue(wire.lost)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_anythingElse(self) -> None:
        """Any other byte is answered in JSON."""
        for byte in range(256):
            if bytes([byte]).isupper() or bytes([byte]).isspace():
                continue
            wire = self.connect()
            wire.send(bytes([byte]) + b"ELLO\n")
            self.assertEqual(set(wire.statuses), {"error"}, byte)
            wire.closeWrite()
            self.assertTrue(wire.lost, byte)

    def test_everyCapital(self) -> None:
        """Every capital letter is HTTP, be it a method or not."""
        for letter in b"ABCDEFGHIJKLMNOPQRSTUVWXYZ":
            wire = self.connect()
            wire.send(bytes([letter]) + b"\r\n\r\n")
            self.assertTrue(wire.received.startswith(b"HTTP/1.1 400 "), letter)
            wire.closeWrite()
            self.assertTrue(wire.lost)

    def test_onlyTheFirst(self) -> None:
        """Only the first byte counts."""
        wire = self.connect()
        wire.send(KEEP, b"GET / HTTP/1.1\r\n\r\n")
        self.assertEqual(set(wire.statuses), {"success", "error"})

    def test_silence(self) -> None:
        """A client that sends nothing gets an error in JSON that says what a request is."""
        wire = self.connect()
        self.clock.advance(31)
        self.assertEqual(wire.statuses, ["error"])

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
        """A connection beyond the limit gets an error, and is closed."""
        for _ in range(self.most):
            self.connect()
        wire = self.connect()
        [answer] = wire.answers
        self.assertEqual(answer["status"], "error")
        self.assertIn("3 connections", answer["message"])
        self.assertTrue(wire.transport.writeClosed)
        wire.send(LIST)
        self.assertEqual(len(wire.answers), 1)
        wire.closeWrite()
        self.assertTrue(wire.lost)
        self.assertEqual(self.factory.overflow, set())

    def test_overflowLingers(self) -> None:
        """If the client does not close its side, it is disconnected."""
        for _ in range(self.most):
            self.connect().send(LIST[:5])
        wire = self.connect()
        self.clock.advance(LINGER)
        wire.turn()
        self.assertTrue(wire.transport.aborted)
        self.assertEqual(self.factory.overflow, set())

    def test_roomAgain(self) -> None:
        """When a connection ends, another one is accepted."""
        wires = [self.connect() for _ in range(self.most)]
        self.assertEqual(self.connect().statuses, ["error"])
        wires[1].drop()
        wire = self.connect()
        wire.send(LIST)
        self.assertEqual(wire.statuses, ["success"])

    def test_manyTurnedAway(self) -> None:
        """
        A number of them have time to read the error; any more get it too, and are closed at
        once.
        """
        for _ in range(self.most):
            self.connect()
        away = [self.connect() for _ in range(OVERFLOW)]
        for _ in range(5):
            wire = self.connect()
            self.assertEqual(wire.statuses, ["error"])
            self.assertTrue(wire.ended)
            self.assertFalse(wire.transport.aborted)
            self.assertEqual(len(self.factory.overflow), OVERFLOW)
        self.assertFalse(any(wire.ended for wire in away))
        away[0].drop()
        self.assertFalse(self.connect().ended)
        self.assertEqual(len(self.factory.overflow), OVERFLOW)
        self.clock.advance(LINGER)
        for wire in away[1:]:
            wire.turn()
        self.assertEqual(len(self.factory.overflow), 1)

    def test_manyTurnedAwayTls(self) -> None:
        """With TLS they are aborted, because an error could be sent only after a handshake."""
        for _ in range(self.most + OVERFLOW):
            self.connect()
        transport = MemoryTransport()
        directlyProvides(transport, ISSLTransport)
        protocol = self.factory.buildProtocol(ADDRESS)
        wire = Wire(protocol, transport)
        self.assertTrue(transport.aborted)
        wire.turn()
        self.assertTrue(wire.lost)

    def test_loggedOnce(self) -> None:
        """Any number of refusals is one line in the log, until a connection was accepted again."""
        lines: list[Any] = []

        class Log:
            def warn(self, text: str, **fields: Any) -> None:
                lines.append(fields)

        self.patch(FirstByteFactory, "_log", Log())
        wires = [self.connect() for _ in range(self.most)]
        for _ in range(10):
            self.factory.buildProtocol(ADDRESS)
        self.assertEqual(len(lines), 1)
        self.assertEqual(lines[0]["most"], self.most)
        wires.pop().drop()
        self.connect()
        self.connect()
        self.assertEqual(len(lines), 2)


class ClosingTests(FirstByteTestCase):
    """
    The daemon stops.
    """

    def test_none(self) -> None:
        """Without connections C{close} ends at once."""
        self.successResultOf(asked(self.factory.close(2)))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_idle(self) -> None:
        """Idle connections are closed, with JSON and with HTTP."""
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
        """C{close} waits for pending replies."""
        self.use(PatientBackend())
        lines, web = self.connect(), self.connect()
        lines.send(ATTACH)
        web.send(post(ATTACH))
        closed = asked(self.factory.close(2))
        self.assertFalse(lines.closed or web.closed)
        self.backend.calls[0].succeed()
        web.turn()
        for wire in (lines, web):
            self.assertTrue(wire.closed)
            wire.closeWrite()
        self.assertEqual(lines.statuses, ["success"])
        self.assertIn(b"200 OK", web.received)
        self.successResultOf(closed)

    def test_grace(self) -> None:
        """It aborts connections after a time."""
        self.use(PatientBackend())
        wires = [self.connect() for _ in range(2)]
        for wire, request in zip(wires, (ATTACH, post(ATTACH)), strict=True):
            wire.send(request)
        closed = asked(self.factory.close(1))
        self.clock.advance(0.9)
        self.assertFalse(any(wire.ended for wire in wires))
        self.clock.advance(0.2)
        for wire in wires:
            self.assertTrue(wire.transport.aborted)
            wire.turn()
        self.successResultOf(closed)


class PrincipalTests(FirstByteTestCase):
    """
    Who it is.
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
