"""
Tests of L{usbip_server.protocols.multiplexer}, and of the control port over TLS: with real
handshakes, and no network.
"""

from __future__ import annotations

import ssl

from twisted.logger import LogLevel, capturedLogs

from tests.protocols.linescase import ConnectionTestCase
from tests.support.certificates import LAB, authority, signed, trusting
from tests.support.fixtures import PatientBackend, PromptBackend, asked, threeWays
from tests.support.tlswire import TlsWire
from usbip_server.model.options import Limits, Timeouts
from usbip_server.model.policy import Grant, Policy, Who
from usbip_server.net.certificates import Certificates, Tls, read
from usbip_server.net.halfclose import LINGER
from usbip_server.protocols.multiplexer import FirstByteFactory
from usbip_server.runtime import repeats

LIST = b'{"command":"list"}'
KEEP = b'{"command":"list","keep_alive":true}\n'
ATTACH = b'{"command":"attach","id":"1-1.4"}'
SECONDS = 7.0

ONLY_ALICE = Policy(principals={"alice": Who(certificate="alice")}, allow=(Grant(who="alice"),))


def post(body: bytes) -> bytes:
    """A request over HTTP."""
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    return head + body


class TlsCase(ConnectionTestCase):
    """
    The control port, with TLS.
    """

    limits = Limits(connections=6)
    timeouts = Timeouts(request=SECONDS)

    def setUp(self) -> None:
        self.patch(repeats, "IN_FULL", 10_000)
        super().setUp()
        self.use(PromptBackend())
        capture = capturedLogs()
        self.logged = capture.__enter__()
        self.addCleanup(capture.__exit__, None, None, None)

    def use(self, backend: PatientBackend, isRequired: bool = False) -> None:
        """Serve this backend."""
        self.backend = backend
        self.begin()
        self.factory = FirstByteFactory(self.lines, self.web, self.settings, self.clock)
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
        """The warnings that were logged; there is nothing worse."""
        worse = (LogLevel.error, LogLevel.critical)
        self.assertEqual([e for e in self.logged if e["log_level"] in worse], [])
        return [
            event["log_format"].format(**event)
            for event in self.logged
            if event["log_level"] is LogLevel.warn
        ]

    def assertNothingLeft(self) -> None:
        """No connection and no timer is left."""
        self.assertEqual(self.factory.connections, set())
        self.assertEqual(self.factory.overflow.atOnce, set())
        self.assertEqual(self.clock.getDelayedCalls(), [])


class HandshakeTests(TlsCase):
    """
    Handshakes that fail.
    """

    def test_slow(self) -> None:
        """A handshake may take as long as a request, and no longer, if it begins or not."""
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
        """A client without TLS gets nothing that looks like a reply, and is closed."""
        for request in (LIST, KEEP, post(LIST), b"GET / HTTP/1.1\r\n\r\n"):
            for way, segments in threeWays([request]):
                wire = self.connect(speaks=False)
                for segment in segments:
                    if not wire.transport.disconnecting:
                        wire.sendPlain(segment)
                self.assertTrue(wire.transport.disconnecting, way)
                sent = b"".join(wire.transport.writes)
                self.assertIn(sent[:1], (b"", b"\x15"), "an alert, if anything")
                self.assertNothingLeft()
                reason = "the client (does not speak TLS|speaks HTTP)"
                line = self.warnings()[-1]
                self.assertRegex(line, f"^192.0.2.7: TLS handshake failed: {reason}")
        self.assertEqual(len(self.warnings()), 12)

    def test_certificates(self) -> None:
        """
        A client is told in an alert what is wrong with its certificate, and one that does not
        accept the server's sends an alert. Each is a line in the log.
        """
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

    def test_notLogged(self) -> None:
        """
        A client that disconnects before or in the handshake is not logged; nor is a handshake that
        is pending when the daemon stops, which is not waited for.
        """
        self.connect(speaks=False).drop()
        began = self.connect(speaks=False)
        began.sendPlain(b"\x16\x03\x01")
        began.drop()
        wire = self.connect(speaks=False)
        closed = asked(self.factory.close(2))
        self.assertTrue(wire.transport.aborted)
        wire.turn()
        self.successResultOf(closed)
        self.assertNothingLeft()
        self.assertEqual(self.warnings(), [])


class ConversationTests(TlsCase):
    """
    After the handshake everything is as without TLS.
    """

    def test_both(self) -> None:
        """
        JSON and HTTP are told apart, in whichever pieces they come and also if the reply takes
        time, and TLS ends properly.
        """
        for request in (LIST, post(LIST), ATTACH, post(ATTACH)):
            for way, segments in threeWays([request]):
                self.use(PatientBackend())
                wire = self.connect()
                for segment in segments:
                    wire.send(segment)
                for call in self.backend.calls:
                    self.assertEqual(wire.received, b"")
                    call.succeed()
                    wire.turn()
                self.assertIn(b'"status":"success"', wire.received, way)
                self.assertTrue(wire.ended, way)
                self.assertNothingLeft()
        self.assertEqual(self.warnings(), [])

    def test_keepAlive(self) -> None:
        """A connection can be kept; one that then sends nothing gets an error and is closed."""
        wire = self.connect()
        wire.send(KEEP)
        wire.send(KEEP)
        self.assertEqual(wire.received.count(b'"success"'), 2)
        self.clock.advance(SECONDS)
        wire.turn()
        self.assertIn(b"no complete request within 7 s", wire.received)
        self.assertTrue(wire.ended)
        self.assertNothingLeft()

    def test_tooMany(self) -> None:
        """A client beyond the limit gets an error, if its handshake is quick."""
        wires = [self.connect() for _ in range(3)]
        away, slow = self.connect(), self.connect(speaks=False)
        self.assertIn(b"the limit of 3 connections of one client is reached", away.received)
        self.assertTrue(away.ended)
        self.clock.advance(LINGER)
        self.assertTrue(slow.transport.aborted)
        slow.turn()
        for wire in wires:
            wire.drop()
        self.assertNothingLeft()

    def test_alpn(self) -> None:
        """A client that offers protocols by name, as curl does, gets the one that is supported."""
        for offered, chosen in ((["h2", "http/1.1"], "http/1.1"), ([], None)):
            context = trusting()
            context.set_alpn_protocols(offered)
            wire = self.connect(context)
            self.assertEqual(wire.protocol, chosen)
            wire.send(post(LIST))
            self.assertIn(b"200 OK", wire.received)


class PrincipalTests(TlsCase):
    """
    Principals by certificate.
    """

    access = ONLY_ALICE

    def test_only(self) -> None:
        """Only the principal with the certificate is allowed, over JSON and over HTTP."""
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
