"""
Tests of L{usbip_server.client.cli.diagnostics}: over real connections, with real daemons.
"""

from __future__ import annotations

import socket
import threading

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from tests.client.blockingcase import CONFIG, SECONDS, TIMES, ReachingTestCase
from tests.support.scriptedserver import ScriptedServer, received, says
from usbip_server import PRODUCT, __version__
from usbip_server.client.cli.diagnostics import isOlder, versionIn, versionOf
from usbip_server.client.servers import Server
from usbip_server.model.errors import Unreachable

REQUEST = b"HEAD / HTTP/1.0\r\n\r\n"


class IntroducingTests(ReachingTestCase):
    """
    The version of a server.
    """

    def test_daemon(self) -> None:
        """A daemon sends its version, also to clients without permission."""
        daemon = self.daemon("access: {principals: {}, allow: []}\n" + CONFIG)
        for token in (None, "usbip_wrong"):
            server = Server(name="here", host="127.0.0.1", port=daemon.port, token=token)
            self.assertEqual(versionOf(server, SECONDS), __version__)

    def test_noToken(self) -> None:
        """The request contains no token."""
        heard: list[bytes] = []

        def play(connection: socket.socket) -> None:
            heard.append(received(connection, len(REQUEST)))
            for segment in (b"HTTP/1.1 200 OK\r\nserver:usb", b"ipshare/7\r\n\r", b"\n"):
                connection.sendall(segment)

        with ScriptedServer(play) as scripted:
            server = msgspec.structs.replace(scripted.server, token="x")
            self.assertEqual(versionOf(server, SECONDS), "7")
        self.assertEqual((heard, scripted.heard), ([REQUEST], [b""]))

    def test_noVersion(self) -> None:
        """A response without a version, of another program or without end has none."""
        for answer in (
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nServer: usbipshare/7\r\n",
            b"HTTP/1.1 200 OK\r\nServer: nginx/1.27\r\n\r\n",
            b'{"status":"error","message":"invalid request"}\n',
            b"HTTP/1.1 200 OK\r\n" + 100_000 * b"X: y\r\n" + b"Server: usbipshare/7\r\n",
            b"HTTP/1.1 200 OK\r\nX: " + 100_000 * b"x",
        ):
            with ScriptedServer(says(answer, size=len(REQUEST))) as scripted:
                self.assertIsNone(versionOf(scripted.server, SECONDS), answer[:50])

    def test_unreachable(self) -> None:
        """A server that is off, silent, or sends byte by byte is given up at the deadline."""

        def drips(connection: socket.socket) -> None:
            while True:
                connection.sendall(b"x")
                over.wait(0.05)

        over = threading.Event()
        self.addCleanup(over.set)
        dripping = self.stack.enter_context(ScriptedServer(drips))
        leaving = self.stack.enter_context(ScriptedServer(lambda connection: None))
        for server, times, why in (
            (self.dead(), (SECONDS,), "refused"),
            (self.silent(), TIMES, "no answer within {:g} s"),
            (dripping.server, TIMES, "no answer within {:g} s"),
            (leaving.server, (SECONDS,), "has closed the connection without a reply"),
        ):
            for seconds in times:
                error = self.assertRaises(Unreachable, versionOf, server, seconds)
                if why.format(seconds) in str(error):
                    break
            self.assertIn(why.format(seconds), str(error))


class VersionTests(SynchronousTestCase):
    """
    Versions in headers, and their order.
    """

    def test_header(self) -> None:
        """Only the version of usbipshare is used, wherever in the header it is."""
        for header, version in (
            (PRODUCT, __version__),
            ("usbipshare/1.2", "1.2"),
            ("nginx/1.27 usbipshare/1.2 (Debian)", "1.2"),
            ("nginx/1.27.1", None),
            ("usbipshare", None),
            ("notusbipshare/1.2", None),
            (f"usbipshare/{5000 * '9'}", None),
            ("", None),
        ):
            self.assertEqual(versionIn(header), version, header)

    def test_order(self) -> None:
        """Numbers are compared as numbers, and a pre-release precedes its release."""
        for one, other in (
            ("0.1.0", "0.2.0"),
            ("0.9", "0.10"),
            ("1.0rc1", "1.0"),
            ("1.0.dev3", "1.0.0"),
            ("1.0", "1.0.1.dev1"),
            ("nonsense", "0.1"),
            ("0.1", 60 * "9"),
        ):
            self.assertTrue(isOlder(one, other), (one, other))
            self.assertFalse(isOlder(other, one), (one, other))
        for one, other in (("1.0", "1.0.0"), ("1.0+lab", "1.0"), ("x", "y"), ("1.0", "1.0")):
            self.assertFalse(isOlder(one, other) or isOlder(other, one), (one, other))
