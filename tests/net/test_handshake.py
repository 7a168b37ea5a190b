"""
Tests of L{usbip_server.protocols.multiplexer}, and of the control port over TLS: with real
handshakes, and no network.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Sequence
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from tests.support.certificates import LAB, authority, signed, trusting
from tests.support.fixtures import EVERYBODY, PatientBackend, PromptBackend, asked, threeWays
from tests.support.tlswire import TlsWire
from usbip_server.model.options import Limits, Timeouts
from usbip_server.model.policy import Grant, Policy, Who
from usbip_server.net.certificates import Certificates, Tls, read
from usbip_server.net.halfclose import LINGER
from usbip_server.protocols.lines import CommandFactory
from usbip_server.protocols.multiplexer import FirstByteFactory
from usbip_server.protocols.web import WebFactory
from usbip_server.server.config import LiveSettings, Settings
from usbip_server.server.core import Core
from usbip_server.server.responder import Responder

LIST = b'{"command":"list"}'
KEEP = b'{"command":"list","keep_alive":true}\n'
ATTACH = b'{"command":"attach","id":"1-1.4"}'
SECONDS = 7.0

ONLY_ALICE = Policy(principals={"alice": Who(certificate="alice")}, allow=(Grant(who="alice"),))


def post(body: bytes) -> bytes:
    """A request over HTTP."""
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    return head + body


class TlsCase(SynchronousTestCase):
    """
    The control port, with TLS.
    """

    most = 3
    access = EVERYBODY

    def setUp(self) -> None:
        self.clock = Clock()
        self.use(PromptBackend())
        self.shown = self.enterCapture()

    def enterCapture(self) -> Sequence[dict[str, Any]]:
        """What is logged from now on."""
        capture = capturedLogs()
        self.addCleanup(capture.__exit__, None, None, None)
        events: Sequence[dict[str, Any]] = capture.__enter__()
        return events

    def use(self, backend: PatientBackend, isRequired: bool = False) -> None:
        """Serve this backend."""
        self.backend = backend
        limits, timeouts = Limits(), Timeouts(request=SECONDS)
        limits = Limits(connections=self.most)
        settings = LiveSettings(Settings(access=self.access, limits=limits, timeouts=timeouts))
        core = Core(backend, self.clock, settings)
        asked(core.start())
        responder = Responder(core.dispatcher)
        self.factory = FirstByteFactory(
            CommandFactory(responder, settings, self.clock),
            WebFactory(responder, settings, self.clock),
            settings,
            self.clock,
        )
        certificate, key = signed("localhost").write(self.mktemp(), "server")
        ca, _ = authority(LAB).write(self.mktemp(), "ca")
        tls = Tls(
            certificate=certificate, key=key, clientCa=ca, requireClientCertificate=isRequired
        )
        self.certificates = Certificates(read(tls))

    def connect(self, context: ssl.SSLContext | None = None, speaks: bool = True) -> TlsWire:
        """A new connection."""
        return TlsWire(self.factory, self.certificates, context or trusting(), self.clock, speaks)

    def showing(self, name: str, by: str = LAB) -> ssl.SSLContext:
        """A client with a certificate."""
        return trusting(client=signed(name, by).write(self.mktemp(), name))

    def warnings(self) -> list[str]:
        """What was logged that is worth a look, and nothing worse."""
        worse = (LogLevel.error, LogLevel.critical)
        self.assertEqual([e for e in self.shown if e["log_level"] in worse], [])
        return [
            event["log_format"].format(**event)
            for event in self.shown
            if event["log_level"] is LogLevel.warn
        ]

    def assertNothingLeft(self) -> None:
        """No connection is left, and nothing waits for one."""
        self.assertEqual(self.factory.connections, set())
        self.assertEqual(self.factory.overflow, set())
        self.assertEqual(self.clock.getDelayedCalls(), [])


class HandshakeTests(TlsCase):
    """
    Handshakes that do not come to an end, or to none that is good.
    """

    def test_silent(self) -> None:
        """One that does not begin is waited for as long as for a request, and no longer; nor does
        it help to go on slowly."""
        slow, silent = (self.connect(speaks=False) for _ in range(2))
        slow.sendPlain(b"\x16\x03\x01")
        self.clock.advance(SECONDS / 2)
        slow.sendPlain(b"\x02\x00")
        self.clock.advance(SECONDS / 2 - 0.1)
        self.assertFalse(slow.transport.disconnecting or silent.transport.disconnecting)
        self.clock.advance(0.1)
        for wire in (slow, silent):
            self.assertTrue(wire.transport.aborted)
            wire.turn()
        self.assertNothingLeft()
        told = "192.0.2.7: TLS handshake failed: no handshake within 7 s"
        self.assertEqual(self.warnings(), [told] * 2)

    def test_plain(self) -> None:
        """A client without TLS is told nothing it could take for an answer, and is closed."""
        for request in (LIST, KEEP, post(LIST), b"GET / HTTP/1.1\r\n\r\n"):
            for way, segments in threeWays([request]):
                wire = self.connect(speaks=False)
                for segment in segments:
                    if not wire.transport.disconnecting:
                        wire.sendPlain(segment)
                self.assertTrue(wire.transport.disconnecting, way)
                said = b"".join(wire.transport.writes)
                self.assertIn(said[:1], (b"", b"\x15"), "an alert, if anything")
                self.assertNothingLeft()
        told = self.warnings()
        self.assertEqual(len(told), 12)
        for line in told:
            self.assertRegex(
                line,
                "^192.0.2.7: TLS handshake failed: the client (does not speak TLS|speaks HTTP)",
            )

    def test_certificates(self) -> None:
        """A client is told what is wrong with its certificate; one that does not take ours tells
        us. Each is a line in the log."""
        self.use(PromptBackend(), isRequired=True)
        for context, told, reason in (
            (trusting(), "CERTIFICATE_REQUIRED", "the client has sent no certificate"),
            (
                self.showing("mallory", "Other"),
                "UNKNOWN_CA",
                "the client's certificate is rejected",
            ),
            (trusting("Other"), "CERTIFICATE_VERIFY_FAILED", "unknown CA"),
        ):
            wire = self.connect(context)
            self.assertIn(told, str(wire.error))
            self.assertEqual(wire.received, b"")
            self.assertNothingLeft()
            self.assertIn(reason, self.warnings()[-1])
        self.assertEqual(len(self.warnings()), 3)

    def test_probe(self) -> None:
        """One that connects and leaves, or leaves in the middle, is not worth a line."""
        self.connect(speaks=False).drop()
        began = self.connect(speaks=False)
        began.sendPlain(b"\x16\x03\x01")
        began.drop()
        self.assertNothingLeft()
        self.assertEqual(self.warnings(), [])

    def test_stop(self) -> None:
        """When the daemon stops, handshakes are not waited for."""
        wire = self.connect(speaks=False)
        closed = asked(self.factory.close(2))
        self.assertTrue(wire.transport.aborted)
        wire.turn()
        self.successResultOf(closed)
        self.assertNothingLeft()
        self.assertEqual(self.warnings(), [])


class ConversationTests(TlsCase):
    """
    After the handshake it is as it is without TLS.
    """

    def test_both(self) -> None:
        """JSON and HTTP are told apart, in whichever pieces they come, and the end is a proper
        one."""
        for request in (LIST, post(LIST)):
            for way, segments in threeWays([request]):
                wire = self.connect()
                for segment in segments:
                    wire.send(segment)
                self.assertIn(b'"status":"success"', wire.received, way)
                self.assertTrue(wire.ended, way)
                self.assertNothingLeft()
        self.assertEqual(self.warnings(), [])

    def test_later(self) -> None:
        """So is an answer that takes its time."""
        self.use(PatientBackend())
        wires = [self.connect(), self.connect()]
        for wire, request in zip(wires, (ATTACH, post(ATTACH)), strict=True):
            wire.send(request)
            self.assertEqual(wire.received, b"")
        self.backend.calls[0].succeed()
        for wire in wires:
            wire.turn()
            self.assertIn(b'"status":"success"', wire.received)
            self.assertTrue(wire.ended)
        self.assertNothingLeft()

    def test_keepAlive(self) -> None:
        """A connection can be kept; one that then says nothing is told so and closed."""
        wire = self.connect()
        wire.send(KEEP)
        wire.send(KEEP)
        self.assertEqual(wire.received.count(b'"success"'), 2)
        self.clock.advance(SECONDS)
        wire.turn()
        self.assertIn("no complete request within 7 s", answersOf(wire)[-1]["message"])
        self.assertTrue(wire.ended)
        self.assertNothingLeft()

    def test_tooMany(self) -> None:
        """Those beyond the limit are told so, if they hurry."""
        wires = [self.connect() for _ in range(self.most)]
        away, slow = self.connect(), self.connect(speaks=False)
        self.assertIn("the limit of 3 connections is reached", answersOf(away)[0]["message"])
        self.assertTrue(away.ended)
        self.clock.advance(LINGER)
        self.assertTrue(slow.transport.aborted)
        slow.turn()
        for wire in wires:
            wire.drop()
        self.assertNothingLeft()

    def test_offer(self) -> None:
        """Who offers protocols by name, as curl does, gets the one that we know."""
        for offered, chosen in ((["h2", "http/1.1"], "http/1.1"), ([], None)):
            context = trusting()
            context.set_alpn_protocols(offered)
            wire = self.connect(context)
            self.assertEqual(wire.protocol, chosen)
            wire.send(post(LIST))
            self.assertIn(b"200 OK", wire.received)


class PrincipalTests(TlsCase):
    """
    Who somebody is, by certificate.
    """

    access = ONLY_ALICE

    def test_only(self) -> None:
        """A certificate lets in whom it names, and nobody else, by JSON and by HTTP."""
        alice, bob, nobody = self.showing("alice"), self.showing("bob"), trusting()
        for context, isAllowed in ((alice, True), (bob, False), (nobody, False)):
            for request in (LIST, post(LIST)):
                wire = self.connect(context)
                wire.send(request)
                self.assertIs(b'"status":"success"' in wire.received, isAllowed)
                self.assertIs(b"may not list" in wire.received, not isAllowed, wire.received)
        mallory = self.connect(self.showing("alice", "Other"))
        self.assertIsNotNone(mallory.error)
        self.assertNothingLeft()


def answersOf(wire: TlsWire) -> list[dict[str, Any]]:
    """The JSON lines that a client got."""
    return [json.loads(line) for line in wire.received.splitlines()]
