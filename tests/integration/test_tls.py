"""
A daemon that speaks TLS, and clients that do or do not.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.support.certificates import LAB, Identity, authority, signed, trusting
from tests.support.childdaemon import PatientDaemon
from usbip_server.model.usbip import encodeList

SECONDS = 60.0

ALICE_ONLY = """
access:
  principals:
    alice: {certificate: alice}
  allow:
    - {who: alice}
"""

KEEP = b'{"command":"list","keep_alive":true}\n'
DEVICES = bytes.fromhex("0111 8005 00000000")
REFUSED = "{principal}: TLS handshake failed: {reason}"


class TlsTestCase(SynchronousTestCase):
    """
    A daemon with a certificate, and a folder for those of clients.
    """

    config = ""
    block = "client_ca: {folder}/ca.pem"

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        authority(LAB).write(self.folder, "ca")
        self.show(signed("localhost"))
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        self.daemon = stack.enter_context(
            PatientDaemon(self.text(), listen=["tls:0:interface=127.0.0.1"])
        )

    def text(self) -> str:
        """The configuration."""
        files = "certificate: {folder}/server.pem, key: {folder}/server.key, " + self.block
        block = files.format(folder=self.folder)
        return f"backend: {{type: virtual}}\ntls: {{{block}}}\n{self.config}"

    def show(self, identity: Identity) -> None:
        """What the daemon is to show, when it has read that."""
        identity.write(self.folder, "server")

    def client(self, name: str | None = None, by: str = LAB) -> ssl.SSLContext:
        """A client, with a certificate or without."""
        if name is None:
            return trusting()
        return trusting(client=signed(name, by).write(self.folder, f"{name}-{by}"))

    def connect(self, context: ssl.SSLContext, port: int | None = None) -> ssl.SSLSocket:
        """A connection, until the test is over."""
        plain = socket.create_connection(("127.0.0.1", port or self.daemon.port), SECONDS)
        self.addCleanup(plain.close)
        made = context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False)
        self.addCleanup(made.close)
        return made

    def ask(self, context: ssl.SSLContext, **request: object) -> dict[str, Any]:
        """Ask something, and read until the proper end."""
        with self.connect(context) as made:
            made.sendall(json.dumps(request).encode())
            answer: dict[str, Any] = json.loads(b"".join(parts(made)))
        return answer

    def curl(self, *arguments: str) -> str:
        """What curl prints, in the folder with the certificates."""
        if shutil.which("curl") is None:
            raise SkipTest("curl is missing (Debian: curl)")
        url = f"https://127.0.0.1:{self.daemon.port}/"
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
        """The certificate that a new client sees."""
        with self.connect(trusting(), port) as made:
            return made.getpeercert(True) or b""

    @property
    def files(self) -> int:
        """How many the daemon has open."""
        return len(os.listdir(f"/proc/{self.daemon.child.pid}/fd"))

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so: the daemon sees a client go a moment later than that."""
        end = time.monotonic() + SECONDS
        while not condition():
            self.assertLess(time.monotonic(), end, "it is still not so")


def parts(connection: socket.socket) -> Iterator[bytes]:
    """What is said, until the end."""
    while part := connection.recv(65536):
        yield part


def der(identity: Identity) -> bytes:
    """A certificate, encoded."""
    return identity.certificate.public_bytes(Encoding.DER)


class CertificateTests(TlsTestCase):
    """
    Who somebody is, by certificate.
    """

    config = ALICE_ONLY

    def test_json(self) -> None:
        """A certificate lets in whom the access rules name, and nobody else; the log says who
        it was."""
        answer = self.ask(self.client("alice"), command="attach", id="1-1")
        self.assertEqual(answer["status"], "success")
        entry = self.daemon.logged("audit")["entry"]
        who = json.loads(entry)["who"]
        self.assertEqual(who, {"address": "127.0.0.1", "certificate": "alice"})
        for context in (self.client("bob"), self.client()):
            answer = self.ask(context, command="list")
            self.assertEqual(answer["status"], "error")
            self.assertIn("may not list", answer["message"])
        self.assertRaises(ssl.SSLError, self.ask, self.client("alice", "Other"), command="list")

    def test_curl(self) -> None:
        """So it is over HTTP, with curl."""
        for name in ("alice", "bob"):
            signed(name).write(self.folder, name)
        data = ("-d", '{"command":"list"}')
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
    Those who are not let in.
    """

    block = "client_ca: {folder}/ca.pem, require_client_certificate: true"

    def test_refused(self) -> None:
        """Whoever speaks no TLS, shows no certificate or a wrong one is closed. The log has a line
        for each, and nothing is left of it."""
        self.ask(self.client("alice"), command="list")  # it has opened all it needs
        before = self.files
        for request in (KEEP, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\0" * 100):
            with socket.create_connection(("127.0.0.1", self.daemon.port), SECONDS) as plain:
                plain.sendall(request)
                said = b"".join(parts(plain))
            self.assertIn(said[:1], (b"", b"\x15"), "an alert, if anything")
            told = self.daemon.logged("{principal}")
            self.assertEqual((told["log_format"], told["principal"]), (REFUSED, "127.0.0.1"))
            self.assertRegex(told["reason"], "speaks HTTP|does not speak TLS")
        for context, reason in (
            (self.client(), "the client has sent no certificate"),
            (self.client("alice", "Other"), "the client's certificate is rejected"),
            (trusting("Other"), "unknown CA"),
        ):
            self.assertRaises(ssl.SSLError, self.ask, context, command="list")
            self.assertIn(reason, self.daemon.logged("{principal}")["reason"])
        self.assertEqual(self.ask(self.client("alice"), command="list")["status"], "success")
        self.until(lambda: self.files <= before)
        kinds = {event["log_level"]["name"] for event in self.daemon.events}
        self.assertEqual(kinds, {"info", "warn"})

    def test_probe(self) -> None:
        """One that connects and leaves is not worth a line."""
        for _ in range(3):
            socket.create_connection(("127.0.0.1", self.daemon.port), SECONDS).close()
        self.assertEqual(
            self.ask(self.client("alice"), command="attach", id="1-1")["data"]["bus_id"], "1-1"
        )
        self.daemon.logged("audit")
        kinds = {event["log_level"]["name"] for event in self.daemon.events}
        self.assertEqual(kinds, {"info"})


class SlowTests(TlsTestCase):
    """
    Clients that take longer for a handshake than they may.
    """

    config = "timeouts: {request: 1.5}\n"

    def test_slow(self) -> None:
        """One that does not come to an end with its handshake is closed in time."""
        with socket.create_connection(("127.0.0.1", self.daemon.port), SECONDS) as slow:
            slow.sendall(b"\x16\x03\x01")
            self.assertRaises(ConnectionResetError, slow.recv, 1)
        self.assertEqual(self.daemon.logged("{principal}")["reason"], "no handshake within 1.5 s")


class RenewalTests(TlsTestCase):
    """
    Certificates are renewed, and taken away.
    """

    config = "export: {listen: ['tls:0:interface=127.0.0.1']}\n"

    def test_renewed(self) -> None:
        """On SIGHUP files that were written anew are read, for both ports. Connections from before
        are not disturbed."""
        old, port = signed("localhost"), self.daemon.exportPort
        self.assertEqual((self.served(), self.served(port)), (der(old), der(old)))
        before = self.connect(trusting())
        before.sendall(KEEP)
        self.assertIn(b"success", before.recv(65536))
        renewed = signed("localhost", serial=2)
        self.show(renewed)
        self.assertEqual(self.served(), der(old))
        self.assertIn("configuration reloaded", self.daemon.reload(self.text())["log_format"])
        self.assertEqual((self.served(), self.served(port)), (der(renewed), der(renewed)))
        before.sendall(KEEP)
        self.assertIn(b"success", before.recv(65536))

    def test_bad(self) -> None:
        """Where they are of no use nothing is changed, and the log says what is wrong."""
        old = signed("localhost")
        (self.folder / "server.key").write_bytes(signed("localhost", serial=2).keyPem)
        said = self.daemon.reload(self.text())
        self.assertIn("reload failed", said["log_format"])
        self.assertRegex(said["error"], r"yaml:\d+: tls.key: the key in .* does not belong to")
        (self.folder / "server.pem").unlink()
        said = self.daemon.reload(self.text() + "limits: {connections: 1}\n")
        self.assertRegex(said["error"], r"yaml:\d+: tls.certificate: .*server.pem cannot be read")
        with self.connect(trusting()):
            self.assertEqual(self.served(), der(old))

    def test_clients(self) -> None:
        """Whose certificates are taken from clients can change, too."""
        self.assertEqual(self.ask(self.client("alice"), command="list")["status"], "success")
        authority("Other").write(self.folder, "ca")
        self.daemon.reload(self.text())
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
        """Where it serves USB/IP over TLS."""
        port: int = next(
            event["port"]
            for event in self.daemon.events
            if str(event.get("description")).startswith("tls:")
            and str(event["log_format"]).startswith("exporting on")
        )
        return port

    def test_list(self) -> None:
        """A client with a certificate is told which devices there are."""
        with self.connect(self.client("alice"), self.port) as made:
            made.sendall(DEVICES)
            self.assertIn(b"1-1\0", b"".join(parts(made)))

    def test_refused(self) -> None:
        """One without, or without TLS, is told nothing; the port without TLS is another."""
        with socket.create_connection(("127.0.0.1", self.port), SECONDS) as plain:
            plain.sendall(DEVICES)
            said = b"".join(parts(plain))
            self.assertIn(said[:1], (b"", b"\x15"), "an alert, if anything")
        with self.assertRaises(ssl.SSLError), self.connect(self.client(), self.port) as made:
            made.sendall(DEVICES)
            made.recv(1)
        address = ("127.0.0.1", self.daemon.exportPort)
        with socket.create_connection(address, SECONDS) as plain:
            plain.sendall(DEVICES)
            self.assertTrue(b"".join(parts(plain)).startswith(encodeList(())[:8]))


class OwnDescriptionTests(SynchronousTestCase):
    """
    Twisted's own description of TLS.
    """

    def test_curl(self) -> None:
        """It takes HTTP from curl, which offers protocols by name, as well."""
        if shutil.which("curl") is None:
            raise SkipTest("curl is missing (Debian: curl)")
        folder = Path(self.mktemp()).absolute()
        certificate, key = signed("localhost").write(folder, "server")
        authority(LAB).write(folder, "ca")
        listen = f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}"
        with PatientDaemon("backend: {type: virtual}\n", listen=[listen]) as daemon:
            url = f"https://127.0.0.1:{daemon.port}/"
            said = subprocess.check_output(
                [
                    "curl",
                    "-sS",
                    "--noproxy",
                    "*",
                    "--cacert",
                    "ca.pem",
                    url,
                    "-d",
                    '{"command":"list"}',
                ],
                cwd=folder,
                timeout=SECONDS,
            )
        self.assertEqual(json.loads(said)["status"], "success")
