"""
C{usbipshare ca} and C{usbipshare trust}.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import yaml

from tests.client.cli.commandcase import CommandCase
from tests.support.childdaemon import PatientDaemon
from usbip_server.client.cli.exitcodes import Exit
from usbip_server.net import authority

ALONE = "backend: {type: virtual}\n"


class CertificatesCase(CommandCase):
    """
    A CA in the folder C{tls}.
    """

    def setUp(self) -> None:
        super().setUp()
        self.authority = str(self.folder / "tls")
        self.type("ca", "init", "--dir", self.authority)

    def issue(self, *arguments: str, status: int = 0) -> str:
        """Run a command of C{usbipshare ca} with the CA: what it prints."""
        return self.type("ca", *arguments, "--dir", self.authority, status=status).output


class AuthorityTests(CertificatesCase):
    """
    The CA and its certificates.
    """

    def test_again(self) -> None:
        """A second CA in the same folder is refused."""
        self.assertIn("delete ca.pem and ca.key first", self.issue("init", status=Exit.TROUBLE))

    def test_missing(self) -> None:
        """Without a CA it is said how to create one."""
        said = self.type(
            "ca", "client", "alice", "--dir", str(self.folder), status=Exit.TROUBLE
        ).output
        self.assertIn("create a CA with `usbipshare ca init`", said)

    def test_written(self) -> None:
        """The configuration of a server is extended, and the daemon accepts it."""
        config = self.write("server.yaml", "# mine\n" + ALONE)
        said = self.issue("server", "raspi", "--write", "--config", str(config))
        self.assertIn(f"Added `listen`, `export` and `tls` to {config}.", said)
        self.assertTrue(config.read_text().startswith("# mine\n" + ALONE))
        self.assertEqual(
            yaml.safe_load(config.read_text())["tls"],
            {
                "certificate": f"{self.authority}/raspi.pem",
                "key": f"{self.authority}/raspi.key",
                "client_ca": f"{self.authority}/ca.pem",
            },
        )

    def test_notWritten(self) -> None:
        """A configuration that says where to listen is left alone: a person has to merge them."""
        text = "listen: [tcp:5055]\n"
        config = self.write("server.yaml", text)
        said = self.issue(
            "server", "raspi", "--write", "--config", str(config), status=Exit.TROUBLE
        )
        self.assertIn(f"{config} was not changed: it has `listen` already", said)
        self.assertIn("  certificate: ", said)
        self.assertEqual(config.read_text(), text)


class TrustTests(CertificatesCase):
    """
    A server with a certificate of the CA, from the commands' own output to a list of devices.
    """

    def setUp(self) -> None:
        super().setUp()
        said = self.issue("server", "localhost")
        block = said[said.index("\ntls:") : said.index("On each client")]
        ports = "listen: ['tls:0:interface=127.0.0.1']\nexport: off"
        self.text = ALONE + ports + block
        self.server = PatientDaemon(self.text).__enter__()
        self.addCleanup(self.server.__exit__, None, None, None)
        self.config = self.folder / "usbipshare" / "client.yaml"
        self.address = f"localhost:{self.server.port}"

    def trust(self, fingerprint: str, status: int = 0) -> str:
        """Trust the server if it has this fingerprint: what the command prints."""
        given = ("--fingerprint", fingerprint, "--config", str(self.config))
        return self.type("trust", self.address, *given, status=status).output

    def fingerprint(self) -> str:
        """The fingerprint that is shown when no terminal can confirm it."""
        said = self.type("trust", self.address, status=2).output
        found = re.search(r"fingerprint  (\S+)", said)
        assert found is not None, said
        return found[1]

    def test_trusted(self) -> None:
        """A server whose fingerprint is given is trusted: its devices are listed over TLS."""
        said = self.trust(self.fingerprint().lower())
        self.assertIn(f"added localhost to {self.config}", said)
        listed = self.json("list", "--config", str(self.config))
        self.assertEqual([each["server"] for each in listed["devices"]], 2 * ["localhost"])

    def test_watched(self) -> None:
        """Programs with a reactor trust the server too: C{watch} prints its events."""
        self.trust(self.fingerprint())
        script = Path(sys.executable).parent / "usbipshare"
        with subprocess.Popen(
            [script, "watch", "--json", "--config", str(self.config)],
            stdout=subprocess.PIPE,
            text=True,
        ) as watching:
            self.addCleanup(watching.kill)
            assert watching.stdout is not None
            first = watching.stdout.readline()
            watching.kill()
        connected = json.loads(first)
        self.assertEqual((connected["event"], connected["server"]), ("connected", "localhost"))

    def test_anotherFingerprint(self) -> None:
        """A server with another fingerprint is not trusted, and nothing is stored."""
        said = self.trust("AB:CD", status=Exit.REFUSED)
        self.assertIn("the fingerprint is another one: the server is not trusted", said)
        self.assertFalse(self.config.exists())

    def test_harmless(self) -> None:
        """Names in a certificate cannot control the terminal, nor push the fingerprint off it."""
        names = ["\x1b[2J\x1b[H\u202eevil", *(f"host{number}" for number in range(10_000))]
        self.patch(authority, "namesIn", lambda certificate: names)
        said = self.trust("AB:CD", status=Exit.REFUSED)
        self.assertTrue(said.replace("\n", "").isprintable(), said[:200])
        self.assertLess(len(said), 1000)
        self.assertIn("and 9991 more", said)

    def test_another(self) -> None:
        """When the server shows another certificate it is refused, until it is trusted again."""
        self.trust(self.fingerprint())
        for file in Path(self.authority).glob("localhost.*"):
            file.unlink()
        self.issue("server", "localhost")
        self.server.reload(self.text)
        refused = self.json("list", "--config", str(self.config), status=6)
        self.assertIn("certificate", str(refused["errors"]))
        self.assertIn("Replaced the certificate", self.trust(self.fingerprint()))
        self.json("list", "--config", str(self.config))

    def test_noTls(self) -> None:
        """A port without TLS is named as such."""
        plain = self.daemon()
        said = self.type("trust", f"127.0.0.1:{plain.port}", status=Exit.UNREACHABLE).output
        self.assertIn("Is it a port with TLS?", said)
        said = self.type("trust", f"127.0.0.1:{self.nobody()}", status=Exit.UNREACHABLE).output
        self.assertIn("Connection refused", said)
