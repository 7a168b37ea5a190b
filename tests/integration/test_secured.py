"""
A daemon that serves USB/IP over TLS, and clients that come to it over real sockets.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
import struct
from typing import Any

from tests.integration import test_exporting
from tests.integration.test_exporting import LIST, SECONDS, VIRTUAL, importOf
from tests.protocols.securedcase import hasKtls
from tests.support.certificates import LAB, authority, signed, trusting
from tests.support.childdaemon import EXPORT, withConstant
from tests.support.tlstunnel import TlsTunnel
from usbip_server.model.usbip import OpStatus, encodeRefusal

NO_TLS = "{principal}: no TLS: {reason}"


class SecuredTestCase(test_exporting.ExportingTestCase):
    """
    The same daemon, with a certificate; clients that know no TLS come through a tunnel.
    """

    isMutual = False

    def setUp(self) -> None:
        self.certificate, self.key = signed("server").write(self.mktemp(), "server")
        self.ca, _ = authority(LAB).write(self.mktemp(), "ca")
        self.config = self.configuration()
        super().setUp()
        tunnel = TlsTunnel(self.daemon.exportPort, self.context())
        tunnel.__enter__()
        self.addCleanup(tunnel.__exit__, None, None, None)
        self.tunnel = tunnel

    def configuration(self, export: str = "") -> str:
        """The YAML."""
        listen = f"export: {{listen: ['tls:0:interface=127.0.0.1']{export}}}\n"
        tls = f"certificate: {self.certificate}, key: {self.key}"
        if self.isMutual:
            tls += f", client_ca: {self.ca}, require_client_certificate: true"
        return VIRTUAL.replace(EXPORT, f"{listen}tls: {{{tls}}}\n")

    def context(self) -> ssl.SSLContext:
        """What clients speak TLS with."""
        return trusting()

    @property
    def port(self) -> int:
        return self.tunnel.port

    def over(self, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
        """A connection with TLS."""
        below = socket.create_connection(("127.0.0.1", self.daemon.exportPort), SECONDS)
        try:
            return (context or trusting()).wrap_socket(below, server_hostname="localhost")
        except BaseException:
            below.close()
            raise


class SessionTests(SecuredTestCase, test_exporting.SessionTests):
    """
    What is true without TLS is true with it.
    """

    def test_shown(self) -> None:
        """How a session is encrypted is shown, in the device and in events."""
        self.assertWorks(self.open())
        way = "ktls" if hasKtls() else "relay"
        self.assertEqual(self.watching.told("imported", "1-1")["holder"]["encryption"], way)
        self.assertEqual(self.shown()["holder"]["encryption"], way)

    def test_renewed(self) -> None:
        """A new certificate disturbs no session, and is what the next client sees."""
        port = self.open()
        self.assertWorks(port)
        renewed = signed("server", "Others", 2)
        for path, data in ((self.certificate, renewed.pem), (self.key, renewed.keyPem)):
            with open(path, "wb") as file:
                file.write(data)
        self.daemon.reload(self.config)
        self.assertWorks(port)
        self.assertRaises(ssl.SSLCertVerificationError, self.over)
        self.over(trusting("Others")).close()
        self.assertWorks(port)

    def test_again(self) -> None:
        """Whoever leaves and wants the port again at once gets it, each time, and however they
        leave. (Not through the tunnel: that takes its time to leave.)"""
        for end in (self.takesLeave, ssl.SSLSocket.close, self.cutsOff):
            for _ in range(20):
                connection = self.over()
                connection.sendall(importOf("1-1"))
                self.assertEqual(connection.recv(8)[4:], bytes(4))
                end(connection)
        self.assertWorks(self.open())
        self.assertEqual(self.warnings(), [])

    def takesLeave(self, connection: ssl.SSLSocket) -> None:
        """A client ends TLS properly."""
        connection.recv(312)
        connection.unwrap().close()

    def cutsOff(self, connection: ssl.SSLSocket) -> None:
        """A client resets the connection."""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


class CrowdTests(SecuredTestCase):
    """
    Clients that are none.
    """

    def test_none(self) -> None:
        """Those that do not get through the handshake are told of once each, nothing is left of
        them, and nobody is disturbed."""
        port = self.open()
        self.assertWorks(port)
        before = self.descriptors()
        said = (LIST, importOf("1-2"), b"GET / HTTP/1.1\r\n\r\n", 1000 * b"\xff", b"\x16\x03\x01")
        for data in said:
            with socket.create_connection(
                ("127.0.0.1", self.daemon.exportPort), SECONDS
            ) as connection:
                connection.sendall(data)
                with contextlib.suppress(OSError):  # it may be reset at any time from now on
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(4096):
                        pass
        self.assertRaises(ssl.SSLError, self.over, ssl.create_default_context())
        socket.create_connection(("127.0.0.1", self.daemon.exportPort), SECONDS).close()
        for _ in range(len(said) + 1):
            self.daemon.logged(NO_TLS)
        while self.descriptors() > before:
            self.over().close()
        self.assertWorks(port)
        self.assertEqual(self.warnings(), (len(said) + 1) * [NO_TLS])


class MutualTests(SecuredTestCase):
    """
    Clients that have to show a certificate.
    """

    isMutual = True

    def context(self) -> ssl.SSLContext:
        return trusting(client=signed("alice").write(self.mktemp(), "alice"))

    def test_shown(self) -> None:
        """Whoever shows one of the right CA has the port; others have not."""
        self.assertWorks(self.open())
        others = trusting(client=signed("alice", "Others").write(self.mktemp(), "alice"))
        for context in (trusting(), others):
            with self.assertRaises(OSError):
                self.over(context).recv(1)
        self.assertEqual(self.warnings(), 2 * [NO_TLS])


class KtlsTests(SecuredTestCase):
    """
    Only the kernel may encrypt.
    """

    def configuration(self, export: str = ", require_ktls: true") -> str:
        return super().configuration(export)

    def test_required(self) -> None:
        """Where it cannot the client is refused, which is told with what is to be done."""
        if hasKtls():
            self.assertWorks(self.open())
            return
        self.assertEqual(self.said(importOf("1-1")), encodeRefusal(OpStatus.NA))
        told = self.daemon.logged("{principal}: import refused")
        self.assertIn("modprobe tls", told["reason"])
        self.assertEqual(self.shown()["state"], "bound")


class EndTests(SecuredTestCase):
    """
    The daemon's end.
    """

    command = withConstant("usbip_server.server.service", "CLOSING_SECONDS", 0.5)

    def end(self, number: int) -> list[Any]:
        """End the daemon while clients have devices, ask for some, or say nothing."""
        ports = [self.open("1-1"), self.open("1-2")]
        for port in ports:
            self.assertWorks(port)
        idle = self.over()
        begun = socket.create_connection(("127.0.0.1", self.daemon.exportPort), SECONDS)
        for connection in (idle, begun):
            self.addCleanup(connection.close)
        self.daemon.child.send_signal(number)
        self.assertIn(self.daemon.child.wait(SECONDS), (0, -number))
        for port in ports:
            self.assertOver(port)
        return [idle, begun]

    def test_terminated(self) -> None:
        """It is told to end, and ends what it encrypts, properly."""
        for connection in self.end(signal.SIGTERM):
            self.assertEqual(connection.recv(1), b"")
        if not hasKtls():
            self.daemon.logged("{principal}: the session is relayed")

    def test_killed(self) -> None:
        """It is killed."""
        self.end(signal.SIGKILL)
