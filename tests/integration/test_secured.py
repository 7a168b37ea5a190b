"""
A daemon that serves USB/IP over TLS.
"""

from __future__ import annotations

import socket
import ssl
import struct

from tests.integration import test_exporting
from tests.integration.case import connect
from tests.integration.test_exporting import VIRTUAL, importOf
from tests.protocols.securedcase import hasKtls
from tests.support.certificates import LAB, authority, signed, trusting
from tests.support.childdaemon import EXPORT, withConstant
from tests.support.tlstunnel import TlsTunnel
from usbip_server.model.usbip import OpStatus, encodeRefusal

NO_TLS = "{principal}: no TLS: {reason}"


class SecuredTestCase(test_exporting.ExportingTestCase):
    """
    The same daemon, with a certificate; clients without TLS use a tunnel.
    """

    isMutual = False

    def setUp(self) -> None:
        self.certificate, self.key = signed("server").write(self.mktemp(), "server")
        self.ca, _ = authority(LAB).write(self.mktemp(), "ca")
        self.config = self.configuration()
        super().setUp()
        tunnel = TlsTunnel(self.server.exportPort, self.context())
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
        """The TLS context of clients."""
        return trusting()

    @property
    def port(self) -> int:
        return self.tunnel.port

    def over(self, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
        """A connection with TLS."""
        below = connect(self.server.exportPort)
        try:
            return (context or trusting()).wrap_socket(below, server_hostname="localhost")
        except BaseException:
            below.close()
            raise


class SessionTests(SecuredTestCase):
    """
    Clients that import devices.
    """

    def test_shown(self) -> None:
        """The encryption of a session is shown, in the device and in events."""
        self.assertWorks(self.open())
        way = "ktls" if hasKtls() else "relay"
        self.assertEqual(self.watching.told("imported", "1-1")["holder"]["encryption"], way)
        self.assertEqual(self.shown(self.server)["holder"]["encryption"], way)

    def test_renewed(self) -> None:
        """A new certificate does not affect sessions, and is sent to the next client."""
        port = self.open()
        self.assertWorks(port)
        renewed = signed("server", "Others", 2)
        for path, data in ((self.certificate, renewed.pem), (self.key, renewed.keyPem)):
            with open(path, "wb") as file:
                file.write(data)
        self.server.reload(self.config)
        self.assertWorks(port)
        self.assertRaises(ssl.SSLCertVerificationError, self.over)
        self.over(trusting("Others")).close()
        self.assertWorks(port)

    def test_again(self) -> None:
        """A client that ends its session, in any way, can import the device again at once. (Not
        through the tunnel, which takes time to close.)"""
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


class MutualTests(SecuredTestCase):
    """
    Client certificates are required.
    """

    isMutual = True

    def context(self) -> ssl.SSLContext:
        return trusting(client=signed("alice").write(self.mktemp(), "alice"))

    def test_shown(self) -> None:
        """A client with a certificate of the CA can import the device; others cannot."""
        self.assertWorks(self.open())
        others = trusting(client=signed("alice", "Others").write(self.mktemp(), "alice"))
        for context in (trusting(), others):
            with self.assertRaises(OSError):
                self.over(context).recv(1)
        self.assertEqual(self.warnings(), 2 * [NO_TLS])


class KtlsTests(SecuredTestCase):
    """
    C{require_ktls}.
    """

    def configuration(self, export: str = ", require_ktls: true") -> str:
        return super().configuration(export)

    def test_required(self) -> None:
        """If the kernel cannot encrypt, the import is refused, and the log contains advice."""
        if hasKtls():
            self.assertWorks(self.open())
            return
        self.assertEqual(self.said(importOf("1-1")), encodeRefusal(OpStatus.NA))
        told = self.server.logged("{principal}: import refused")
        self.assertIn("modprobe tls", told["reason"])
        self.assertEqual(self.shown(self.server)["state"], "bound")


class EndTests(SecuredTestCase):
    """
    The end of the daemon.
    """

    command = withConstant("usbip_server.server.service", "CLOSING_SECONDS", 0.5)

    def test_terminated(self) -> None:
        """SIGTERM ends the sessions, and TLS properly."""
        ports = [self.open("1-1"), self.open("1-2")]
        for port in ports:
            self.assertWorks(port)
        idle, begun = self.over(), connect(self.server.exportPort)
        self.server.stop()
        for port in ports:
            self.assertOver(port)
        for connection in (idle, begun):
            self.assertEqual(connection.recv(1), b"")
            connection.close()
        if not hasKtls():
            self.server.logged("{principal}: the session is relayed")
