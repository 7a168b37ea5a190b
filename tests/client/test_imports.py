"""
Tests of L{usbip_server.client.imports}.
"""

from __future__ import annotations

import socket
import ssl
import struct

import msgspec

from tests.client.blockingcase import ReachingTestCase
from tests.support.certificates import LAB, authority, signed
from tests.support.fixtures import MOUSE, UNO, changed
from tests.support.scriptedserver import (
    GIVEN,
    LIST_REQUEST,
    REQUEST,
    Play,
    ScriptedServer,
    connections,
    received,
    says,
)
from usbip_server.client import imports
from usbip_server.client.imports import importDevice, listDevices
from usbip_server.client.jsonclient import SPEAKS_TLS
from usbip_server.client.servers import ClientTls, Server
from usbip_server.model.device import Encryption
from usbip_server.model.errors import Unreachable
from usbip_server.model.usbip import NotGiven, OpStatus, encodeImport, encodeList, encodeRefusal

SECONDS = 60.0

SOON = 0.2

TRAFFIC = struct.pack(">IIIII", 3, 1, 0, 0, 0) + bytes(28)
"""C{USBIP_RET_SUBMIT}, though nothing was asked."""


OTHER_PROTOCOLS = (b"HTTP/1.1 400 Bad\r\n\r\n", b"SSH-2.0-x", bytes(8), b"\x01\x11\x00\x05")
"""Bytes that do not begin a reply of USB/IP."""


def isSilent(connection: socket.socket) -> None:
    """A server that does not reply."""
    while connection.recv(65536):
        pass


class ImportingTestCase(ReachingTestCase):
    """
    A server whose replies a test chooses. No connection is left open. How connections are made
    is shown by L{tests.client.test_blocking}.
    """

    def setUp(self) -> None:
        before = connections()
        self.addCleanup(lambda: self.assertLessEqual(connections(), before))
        super().setUp()

    def unreachable(self, play: Play, reason: str, seconds: float = SECONDS) -> None:
        """An import fails for this reason, in an error that names the server."""
        with ScriptedServer(play) as scripted:
            error = self.assertRaises(Unreachable, importDevice, scripted.server, "1-1.4", seconds)
            self.assertEqual(str(error), f"raspi (127.0.0.1:{scripted.port}): {reason}")


class ImportTests(ImportingTestCase):
    """
    Importing a device.
    """

    def test_import(self) -> None:
        """The device is that of the reply, however that is split, and the bytes after it are not
        read. The connection has keepalive set, and blocks, as the kernel needs it."""
        for segments in (
            (GIVEN + TRAFFIC,),
            (GIVEN[:8], GIVEN[8:] + TRAFFIC),
            each(GIVEN + TRAFFIC),
        ):
            with ScriptedServer(says(*segments)) as scripted:
                imported = importDevice(scripted.server, "1-1.4", SECONDS)
                with imported.connection as connection:
                    self.assertEqual(imported.encryption, Encryption.NONE)
                    self.assertIsNone(connection.gettimeout())
                    for level, option, value in (
                        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
                        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
                        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
                        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 10_000),
                    ):
                        self.assertEqual(connection.getsockopt(level, option), value)
                    self.assertEqual(received(connection, 48), TRAFFIC)
                    self.assertEqual(connection.recv(1), b"")
            self.assertEqual(scripted.heard, [b""])

    def test_refusal(self) -> None:
        """A refusal is reported with its reason, and is not C{Unreachable}."""
        for status in OpStatus:
            if status is not OpStatus.OK:
                with ScriptedServer(says(encodeRefusal(status))) as scripted:
                    error = self.assertRaises(
                        NotGiven, importDevice, scripted.server, "1-1.4", SECONDS
                    )
                self.assertEqual(error.status, status)


class UnreachableTests(ImportingTestCase):
    """
    Servers that do not answer, or not in USB/IP.
    """

    def test_wrongReplies(self) -> None:
        """A reply that is not USB/IP, is about another device, or ends within, is an error at once;
        that of a server that expects TLS is reported as that."""
        for reply, reason in (
            *((reply, "the reply is not that of a USB/IP server") for reply in OTHER_PROTOCOLS),
            (encodeImport(MOUSE), "the reply to a request for 1-1.4 is for 2-10"),
            *(
                (GIVEN[:length], "the server has closed the connection without a reply")
                for length in (0, 1, 8, 319)
            ),
            (b"\x15\x03\x01\x00\x02\x02\x46", SPEAKS_TLS),
        ):
            self.unreachable(says(reply), reason)

    def test_deadline(self) -> None:
        """A server that is silent, or sends byte by byte, is given up at the deadline."""

        def dribbles(connection: socket.socket) -> None:
            received(connection, REQUEST)
            for byte in each(GIVEN):
                connection.sendall(byte)
                connection.settimeout(SOON / 4)
                try:
                    connection.recv(1)
                except TimeoutError:
                    continue
                break

        for play in (isSilent, dribbles):
            self.unreachable(play, "no answer in time", SOON)

    def test_closedPort(self) -> None:
        """The error of a closed port names the server and the port."""
        server = self.dead()
        error = self.assertRaises(Unreachable, importDevice, server, "1-1.4", SECONDS)
        self.assertEqual(str(error), f"dead (127.0.0.1:{server.exportPort}): Connection refused")


class ListTests(ImportingTestCase):
    """
    The list of a server's devices.
    """

    def test_noConnection(self) -> None:
        """A machine that does not answer is given up when connecting has had its share of the
        time."""
        waits: list[float] = []
        settimeout = socket.socket.settimeout

        def waitsFor(connection: socket.socket, seconds: float) -> None:
            waits.append(seconds)
            settimeout(connection, seconds)

        self.patch(imports, "shareOf", lambda seconds: SOON)
        self.patch(socket.socket, "settimeout", waitsFor)
        error = self.assertRaises(Unreachable, listDevices, self.full(), 10 * SECONDS)
        self.assertIn("no answer in time", str(error))
        self.assertLessEqual(max(waits, default=SOON), SOON)

    def test_list(self) -> None:
        """All devices are returned, however the reply is split, and the connection is closed; a
        refusal and a list without end are errors."""
        devices = (UNO, changed(MOUSE, interfaces=("03/01/02",)))
        answer = encodeList(devices)
        for segments in ((answer,), (answer[:100], answer[100:]), each(answer)):
            with ScriptedServer(says(*segments, size=LIST_REQUEST)) as scripted:
                found = listDevices(scripted.server, SECONDS)
            self.assertEqual([one.busId for one in found], ["1-1.4", "2-10"])
            self.assertEqual(scripted.heard, [b""])

        def endless(connection: socket.socket) -> None:
            received(connection, LIST_REQUEST)
            connection.sendall(bytes.fromhex("0111 0005 00000000 00ffffff"))
            device = encodeImport(changed(UNO, interfaces=()))[8:]
            while True:
                connection.sendall(200 * device)

        refusal = says(bytes.fromhex("0111 0005 00000001"), size=LIST_REQUEST)
        for play, kind, message in (
            (endless, Unreachable, "the list of devices is longer than any valid list"),
            (refusal, NotGiven, ""),
        ):
            with ScriptedServer(play) as scripted:
                error = self.assertRaises(kind, listDevices, scripted.server, SECONDS)
            self.assertIn(message, str(error))


class TlsTests(ImportingTestCase):
    """
    USB/IP over TLS.
    """

    def setUp(self) -> None:
        super().setUp()
        self.folder = self.mktemp()
        self.ca, _ = authority(LAB).write(self.folder, "ca")
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(*signed("localhost").write(self.folder, "server"))

    def secured(self, *segments: bytes) -> Play:
        """A server that replies over TLS."""

        def play(connection: socket.socket) -> None:
            with self.context.wrap_socket(connection.dup(), server_side=True) as made:
                made.settimeout(SECONDS)
                self.request = made.recv(40)
                for segment in segments:
                    made.sendall(segment)
                if segments:
                    made.recv(1)

        return play

    def server(self, scripted: ScriptedServer, ca: str) -> Server:
        """The server, with the client's TLS."""
        return msgspec.structs.replace(scripted.server, tls=ClientTls(ca=ca))

    def test_relay(self) -> None:
        """TLS 1.2 is used. Where the kernel does not encrypt, the connection needs a relay, and the
        bytes after the reply are still in it."""
        for segments in ((GIVEN + TRAFFIC,), (GIVEN, TRAFFIC), each(GIVEN + TRAFFIC)):
            with ScriptedServer(self.secured(*segments)) as scripted:
                imported = importDevice(self.server(scripted, self.ca), "1-1.4", SECONDS)
                with imported.connection as connection:
                    assert isinstance(connection, ssl.SSLSocket)
                    self.assertEqual(connection.version(), "TLSv1.2")
                    self.assertEqual(imported.encryption, Encryption.RELAY)
                    self.assertEqual(received(connection, 48), TRAFFIC)

    def test_handshakeFails(self) -> None:
        """A server that is not trusted, does not support TLS or does not answer is asked for
        nothing, and the error contains the reason."""

        def resets(connection: socket.socket) -> None:
            connection.recv(1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

        other, _ = authority("Other").write(self.folder, "other")
        cases: tuple[tuple[Play, str, float, str], ...] = (
            (self.secured(), other, SECONDS, "the server's certificate is not trusted: "),
            (says(size=1), self.ca, SECONDS, "it may not support TLS"),
            (resets, self.ca, SECONDS, "it may not support TLS"),
            (isSilent, self.ca, SOON, "no answer in time"),
        )
        for play, ca, seconds, reason in cases:
            with ScriptedServer(play) as scripted:
                server = self.server(scripted, ca)
                error = self.assertRaises(Unreachable, importDevice, server, "1-1.4", seconds)
            self.assertIn(reason, str(error))


def each(data: bytes) -> tuple[bytes, ...]:
    """Byte by byte."""
    return tuple(bytes([byte]) for byte in data)
