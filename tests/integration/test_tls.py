"""
Requests over TLS.
"""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from twisted.trial.unittest import SkipTest

from tests.integration.case import DaemonCase, connect, descriptors, readAll
from tests.support.certificates import LAB, Identity, authority, signed, trusting
from tests.support.childdaemon import SECONDS
from usbip_server.model.usbip import encodeList

ALICE_ONLY = """
access:
  principals:
    alice: {certificate: alice}
  allow:
    - {who: alice}
"""

KEEP = b'{"command":"list","keep_alive":true}\n'
LIST = '{"command":"list"}'
DEVICES = bytes.fromhex("0111 8005 00000000")
REFUSED = "{principal}: TLS handshake failed: {reason}"


class TlsTestCase(DaemonCase):
    """
    A daemon with a certificate, and a folder for those of clients.
    """

    config = ""
    block = "client_ca: {folder}/ca.pem"

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        authority(LAB).write(self.folder, "ca")
        self.show(signed("localhost"))
        self.server = self.daemon(self.text(), listen=["tls:0:interface=127.0.0.1"])

    def text(self) -> str:
        """The configuration."""
        files = "certificate: {folder}/server.pem, key: {folder}/server.key, " + self.block
        block = files.format(folder=self.folder)
        return f"backend: {{type: virtual}}\ntls: {{{block}}}\n{self.config}"

    def show(self, identity: Identity) -> None:
        """Write the certificate that the daemon reads at the next reload."""
        identity.write(self.folder, "server")

    def client(self, name: str | None = None, by: str = LAB) -> ssl.SSLContext:
        """A client, with a certificate or without."""
        if name is None:
            return trusting()
        return trusting(client=signed(name, by).write(self.folder, f"{name}-{by}"))

    def connect(self, context: ssl.SSLContext, port: int | None = None) -> ssl.SSLSocket:
        """A connection, until the test is over."""
        plain = connect(port or self.server.port)
        self.addCleanup(plain.close)
        made = context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False)
        self.addCleanup(made.close)
        return made

    def ask(self, context: ssl.SSLContext, **request: object) -> dict[str, Any]:
        """Send a request, and read until the proper end of TLS."""
        with self.connect(context) as made:
            made.sendall(json.dumps(request).encode())
            answer: dict[str, Any] = json.loads(readAll(made))
        return answer

    def curl(self, *arguments: str) -> str:
        """What curl prints, in the folder with the certificates."""
        if shutil.which("curl") is None:
            raise SkipTest("curl is missing (Debian: curl)")
        url = f"https://127.0.0.1:{self.server.port}/"
        done = subprocess.run(
            ["curl", "-sS", "--noproxy", "*", "--cacert", "ca.pem", url, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        return done.stdout or done.stderr

    def served(self, port: int | None = None) -> bytes:
        """The certificate that a new client receives."""
        with self.connect(trusting(), port) as made:
            return made.getpeercert(True) or b""


def der(identity: Identity) -> bytes:
    """A certificate, encoded."""
    return identity.certificate.public_bytes(Encoding.DER)


class CertificateTests(TlsTestCase):
    """
    Access by client certificate.
    """

    config = ALICE_ONLY

    def test_json(self) -> None:
        """A client is allowed by the name in its certificate, which is in the audit log; others
        are refused."""
        answer = self.ask(self.client("alice"), command="attach", id="1-1")
        self.assertEqual(answer["status"], "success")
        entry = self.server.logged("audit")["entry"]
        who = json.loads(entry)["who"]
        self.assertEqual(who, {"address": "127.0.0.1", "certificate": "alice"})
        for context in (self.client("bob"), self.client()):
            answer = self.ask(context, command="list")
            self.assertEqual(answer["status"], "error")
            self.assertIn("may not list", answer["message"])
        self.assertRaises(ssl.SSLError, self.ask, self.client("alice", "Other"), command="list")

    def test_curl(self) -> None:
        """The same over HTTP with curl, with TLS 1.2 and 1.3 and not 1.1."""
        for name in ("alice", "bob"):
            signed(name).write(self.folder, name)
        data = ("-d", LIST)
        alice = ("--cert", "alice.pem", "--key", "alice.key")
        self.assertEqual(json.loads(self.curl(*alice, *data))["status"], "success")
        for who in (("--cert", "bob.pem", "--key", "bob.key"), ()):
            self.assertIn("may not list", json.loads(self.curl(*who, *data))["message"])
        for version in ("1.2", "1.3"):
            said = self.curl(*alice, *data, "--tls-max", version, f"--tlsv{version}")
            self.assertEqual(json.loads(said)["status"], "success")
        self.assertIn("alert protocol version", self.curl(*alice, *data, "--tls-max", "1.1"))


class RefusalTests(TlsTestCase):
    """
    Connections that are refused.
    """

    block = "client_ca: {folder}/ca.pem, require_client_certificate: true"

    def test_refused(self) -> None:
        """Connections without TLS, without a certificate or with a wrong one are closed. The log
        has a line for each, and no file stays open."""
        self.ask(self.client("alice"), command="list")  # it has opened all it needs
        before = descriptors(self.server)
        for request in (KEEP, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\0" * 100):
            with connect(self.server.port) as plain:
                plain.sendall(request)
                said = readAll(plain)
            self.assertIn(said[:1], (b"", b"\x15"), "an alert, if anything")
            told = self.server.logged("{principal}")
            self.assertEqual((told["log_format"], told["principal"]), (REFUSED, "127.0.0.1"))
            self.assertRegex(told["reason"], "speaks HTTP|does not speak TLS")
        for context, reason in (
            (self.client(), "the client has sent no certificate"),
            (self.client("alice", "Other"), "the client's certificate is rejected"),
            (trusting("Other"), "unknown CA"),
        ):
            self.assertRaises(ssl.SSLError, self.ask, context, command="list")
            self.assertIn(reason, self.server.logged("{principal}")["reason"])
        self.assertEqual(self.ask(self.client("alice"), command="list")["status"], "success")
        self.until(lambda: descriptors(self.server) <= before)
        kinds = {event["log_level"]["name"] for event in self.server.events}
        self.assertEqual(kinds, {"info", "warn"})


class RenewalTests(TlsTestCase):
    """
    Certificates are replaced, or removed.
    """

    config = "export: {listen: ['tls:0:interface=127.0.0.1']}\n"

    def test_renewed(self) -> None:
        """A reload reads new certificate files, for both ports. Open connections are not
        affected."""
        old, port = signed("localhost"), self.server.exportPort
        self.assertEqual((self.served(), self.served(port)), (der(old), der(old)))
        before = self.connect(trusting())
        before.sendall(KEEP)
        self.assertIn(b"success", before.recv(65536))
        renewed = signed("localhost", serial=2)
        self.show(renewed)
        self.assertEqual(self.served(), der(old))
        self.assertIn("configuration reloaded", self.server.reload(self.text())["log_format"])
        self.assertEqual((self.served(), self.served(port)), (der(renewed), der(renewed)))
        before.sendall(KEEP)
        self.assertIn(b"success", before.recv(65536))

    def test_bad(self) -> None:
        """If they are invalid, nothing changes, and the log has the reason."""
        old = signed("localhost")
        (self.folder / "server.key").write_bytes(signed("localhost", serial=2).keyPem)
        said = self.server.reload(self.text())
        self.assertIn("reload failed", said["log_format"])
        self.assertRegex(said["error"], r"yaml:\d+: tls.key: the key in .* does not belong to")
        (self.folder / "server.pem").unlink()
        said = self.server.reload(self.text() + "limits: {connections: 1}\n")
        self.assertRegex(said["error"], r"yaml:\d+: tls.certificate: .*server.pem cannot be read")
        with self.connect(trusting()):
            self.assertEqual(self.served(), der(old))

    def test_clients(self) -> None:
        """A reload reads a new CA of client certificates."""
        self.assertEqual(self.ask(self.client("alice"), command="list")["status"], "success")
        authority("Other").write(self.folder, "ca")
        self.server.reload(self.text())
        self.assertRaises(ssl.SSLError, self.ask, self.client("alice"), command="list")
        other = self.client("alice", "Other")
        self.assertEqual(self.ask(other, command="list")["status"], "success")


class ExportTests(TlsTestCase):
    """
    USB/IP over TLS.
    """

    block = "client_ca: {folder}/ca.pem, require_client_certificate: true"
    config = (
        "export: {listen: ['tcp:0:interface=127.0.0.1', 'tls:0:interface=127.0.0.1']}\n"
        "devices: [{match: {bus: 1-1}, share: on_import}]\n"
    )

    @property
    def port(self) -> int:
        """The port for USB/IP over TLS."""
        port: int = next(
            event["port"]
            for event in self.server.events
            if str(event.get("description")).startswith("tls:")
            and str(event["log_format"]).startswith("exporting on")
        )
        return port

    def test_list(self) -> None:
        """A client with a certificate receives the list of devices."""
        with self.connect(self.client("alice"), self.port) as made:
            made.sendall(DEVICES)
            self.assertIn(b"1-1\0", readAll(made))

    def test_refused(self) -> None:
        """A client without a certificate, or without TLS, receives nothing; the port without TLS
        is another one."""
        with connect(self.port) as plain:
            plain.sendall(DEVICES)
            said = readAll(plain)
            self.assertIn(said[:1], (b"", b"\x15"), "an alert, if anything")
        with self.assertRaises(ssl.SSLError), self.connect(self.client(), self.port) as made:
            made.sendall(DEVICES)
            made.recv(1)
        with connect(self.server.exportPort) as plain:
            plain.sendall(DEVICES)
            self.assertTrue(readAll(plain).startswith(encodeList(())[:8]))
