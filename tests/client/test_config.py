"""
Tests of L{usbip_server.client.config}.
"""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.support.certificates import LAB, authority, signed
from usbip_server.client.config import ClientSettings, find, load
from usbip_server.client.servers import MOST, ClientTls, Server
from usbip_server.runtime.yamlfile import ConfigError

TOKEN = "usbip_0123456789abcdef"


class SettingsTestCase(SynchronousTestCase):
    """
    A file client.yaml.
    """

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()

    def write(self, text: str, name: str = "client.yaml", mode: int = 0o600) -> str:
        """Write a file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return str(path)

    def settings(self, text: str, mode: int = 0o600) -> ClientSettings:
        """The settings that a text makes."""
        return load(self.write(text, mode=mode))


class FileTests(SettingsTestCase):
    """
    The content of the file.
    """

    def test_serverOptions(self) -> None:
        """Every key is optional: a server's host defaults to its name, and every option to the
        usual value."""
        authority(LAB).write(self.folder, "ca")
        settings = self.settings(
            f"""
timeout: 0.5
servers:
  raspi:
  "::1": {{}}
  bench: {{host: 192.0.2.7, port: 5056, export_port: 3241, token: {TOKEN}}}
  secure: {{host: usb.lab, tls: {{ca: ca.pem, server_name: usb}}}}
"""
        )
        self.assertEqual(settings.timeout, 0.5)
        for text in ("", "servers: {}\n"):
            empty = self.settings(text)
            self.assertEqual((empty.known, empty.timeout, empty.warnings), ({}, 3.0, []))
        self.assertEqual(settings.known["raspi"], (Server(name="raspi", host="raspi"),))
        self.assertEqual(settings.known["::1"], (Server(name="::1", host="::1"),))
        bench = Server(name="bench", host="192.0.2.7", port=5056, exportPort=3241, token=TOKEN)
        self.assertEqual(settings.known["bench"], (bench,))
        tls = ClientTls(ca=str(self.folder / "ca.pem"), serverName="usb")
        self.assertEqual(
            settings.known["secure"], (Server(name="secure", host="usb.lab", tls=tls),)
        )

    def test_range(self) -> None:
        """The servers of a range share all options."""
        settings = self.settings("servers: {lab: {range: 192.0.2.10-12, port: 5056}}\n")
        names = [(server.name, server.host, server.port) for server in settings.known["lab"]]
        self.assertEqual(names, [(f"192.0.2.{n}", f"192.0.2.{n}", 5056) for n in (10, 11, 12)])
        self.assertEqual(settings.rangeOf(settings.known["lab"][0]), "lab")

    def test_tokens(self) -> None:
        """A token can be in a file, whose path is relative to client.yaml. One that other users
        can read causes a warning."""
        inline, beside = f"token: {TOKEN}", "token_file: raspi.token"
        absolute = self.write(f" {TOKEN}\n", "raspi.token")
        for option, mode, other, warned in (
            (inline, 0o600, 0o600, None),
            (inline, 0o640, 0o600, "client.yaml: chmod 600"),
            (inline, 0o604, 0o600, "client.yaml: chmod 600"),
            (beside, 0o644, 0o600, None),
            (f"token_file: {absolute}", 0o644, 0o600, None),
            (beside, 0o644, 0o644, "raspi.token: chmod 600"),
        ):
            Path(absolute).chmod(other)
            settings = self.settings(f"servers: {{raspi: {{{option}}}}}\n", mode)
            self.assertEqual(settings.known["raspi"][0].token, TOKEN)
            self.assertEqual(len(settings.warnings), 0 if warned is None else 1)
            self.assertIn(warned or "", "".join(settings.warnings))

    def test_wrongFile(self) -> None:
        """An error is reported with its file, line and key."""
        self.write("\n", "empty.token")
        for text, said in (
            ("servers: [raspi]", "1: servers: expected a mapping, got a list"),
            ("hosts: {}", "1: hosts: unknown key"),
            ("timeout: 0", "1: timeout: expected a number > 0.0"),
            ("servers:\n  a: {prot: 1}", "2: servers.a.prot: unknown key. Did you mean 'port'?"),
            ("servers:\n  a: {port: 0}", "2: servers.a.port: expected a whole number >= 1"),
            ("servers:\n  a: {tls: {cert: x}}", "2: servers.a.tls.cert: unknown key"),
            ("servers:\n  a: {host: 'b:5056'}", "2: servers.a.host: 'b:5056' is not a host alone"),
            ("servers:\n  a: {host: 'b c'}", "2: servers.a.host: 'b c' is not a server"),
            (
                "servers:\n  a b: {host: c}",
                "2: servers.a b: a server's name must not contain spaces",
            ),
            (
                "servers:\n  a: {range: 192.0.2.9-5}",
                "2: servers.a.range: '192.0.2.9-5' is not a range",
            ),
            ("servers:\n  a: {range: 10.0.0.0/8}", f"more than {MOST}"),
            ("servers:\n  a: {host: b, range: 192.0.2.9}", "2: servers.a: `host` and `range`"),
            (
                "servers:\n  a: {range: 192.0.2.1-3, token: x}",
                "2: servers.a: a token for a `range`",
            ),
            ("servers:\n  a: {range: 192.0.2.1-3, token_file: x}", "for a `range` requires `tls`"),
            ("servers:\n  a: {token: x, token_file: y}", "2: servers.a: `token` and `token_file`"),
            ("servers:\n  a: {token_file: none}", "none cannot be read: No such file or directory"),
            ("servers:\n  a: {token_file: empty.token}", "empty.token holds no token"),
            ("servers:\n  a: {tls: {key: x}}", "2: servers.a.tls: `key` requires `certificate`"),
            ("servers:\n  a: {\n", "3: this is not YAML"),
            ("[]", "1: the file has to be a mapping"),
        ):
            path = self.write(text)
            error = self.assertRaises(ConfigError, load, path)
            self.assertTrue(str(error).startswith(f"{path}:"), error)
            self.assertIn(said, str(error))


class TlsTests(SettingsTestCase):
    """
    Certificates and keys.
    """

    def setUp(self) -> None:
        super().setUp()
        authority(LAB).write(self.folder, "ca")
        signed("alice").write(self.folder, "alice")
        signed("bob").write(self.folder, "bob")

    def test_paths(self) -> None:
        """Paths are relative to client.yaml, also for a range."""
        said = "tls: {ca: ca.pem, certificate: alice.pem, key: alice.key}"
        for host in ("host: a", "range: 192.0.2.1-2"):
            for server in self.settings(f"servers: {{lab: {{{host}, {said}}}}}").known["lab"]:
                assert server.tls is not None
                self.assertEqual(server.tls.key, str(self.folder / "alice.key"))

    def test_wrongCertificates(self) -> None:
        """A file that is missing, of the wrong kind, or does not belong to the other is reported
        with its key."""
        (self.folder / "locked.key").write_bytes(signed("alice").encryptedKeyPem)
        (self.folder / "folder").mkdir()
        mine = "certificate: alice.pem"
        for said, key, file, reason in (
            ("ca: no.pem", "ca", "no.pem", "cannot be read: No such file or directory"),
            ("ca: folder", "ca", "folder", "cannot be read: Is a directory"),
            ("ca: alice.key", "ca", "alice.key", "holds no certificate in PEM"),
            ("certificate: no.pem", "certificate", "no.pem", "cannot be read: No such file"),
            (mine, "certificate", "alice.pem", "holds no private key in PEM"),
            (f"{mine}, key: no.key", "key", "no.key", "cannot be read: No such file"),
            (f"{mine}, key: ca.pem", "key", "ca.pem", "holds no private key in PEM"),
            (f"{mine}, key: bob.key", "key", "bob.key", "does not belong to"),
            (f"{mine}, key: locked.key", "key", "locked.key", "is encrypted: decrypt it"),
        ):
            for host in ("host: a", "range: 192.0.2.1-2"):
                path = self.write(f"servers:\n  a:\n    {host}\n    tls: {{{said}}}\n")
                error = self.assertRaises(ConfigError, load, path)
                self.assertTrue(str(error).startswith(f"{path}:4: servers.a.tls.{key}: "), error)
                self.assertIn(f"{self.folder / file} {reason}", str(error))


class ServersTests(SettingsTestCase):
    """
    The choice of servers.
    """

    def names(self, settings: ClientSettings, *named: str, hosts: str = "") -> list[str]:
        """The names of the chosen servers."""
        servers = settings.servers(named, {"USBIPSHARE_HOSTS": hosts})
        return [server.name for server in servers]

    def test_precedence(self) -> None:
        """Servers come from the command line, or else the environment, the file, or this
        machine."""
        settings = self.settings("servers: {raspi: {}, bench: {}}\n")
        self.assertEqual(self.names(settings, "c", "raspi", hosts="d"), ["c", "raspi"])
        self.assertEqual(self.names(settings, hosts="d,  e:1,"), ["d", "e:1"])
        self.assertEqual(self.names(settings), ["raspi", "bench"])
        self.assertEqual(self.names(ClientSettings(), hosts=" , "), ["localhost"])

    def test_namesInTheFile(self) -> None:
        """A name in the file, or an address of a range, has the options of the file."""
        settings = self.settings(
            f"servers:\n  raspi: {{host: h, token: {TOKEN}}}\n"
            "  lab: {range: 192.0.2.1-3, port: 7}\n"
        )
        [raspi] = settings.servers(["raspi", "raspi"], {})
        self.assertEqual((raspi.host, raspi.token), ("h", TOKEN))
        self.assertEqual(self.names(settings, "lab"), ["192.0.2.1", "192.0.2.2", "192.0.2.3"])
        [second] = settings.servers(["192.0.2.2"], {})
        self.assertEqual(second.port, 7)
        [other] = settings.servers(["raspi:5055"], {})
        self.assertIsNone(other.token)

    def test_wrongAddress(self) -> None:
        """A text that is not an address is an error."""
        self.assertRaises(ValueError, ClientSettings().servers, ["a b"], {})

    def test_serverOfARecord(self) -> None:
        """The server of a record is found in the file, or made of its address."""
        settings = self.settings("servers: {raspi: {host: h, export_port: 3241}}\n")
        self.assertEqual(settings.exporting("h", "3241").name, "raspi")
        self.assertEqual(settings.exporting("h", "usbip"), Server(name="h", host="h"))


class PlacesTests(SettingsTestCase):
    """
    The places of the file.
    """

    def test_userBeforeMachine(self) -> None:
        """The user's file precedes the machine's; both are optional."""
        etc = str(self.folder / "etc")
        homes = {"HOME": str(self.folder / "home")}
        self.assertEqual(find(homes, etc).known, {})
        self.write("servers: {a: {}}\n", "etc/client.yaml")
        self.assertEqual([*find(homes, etc).known], ["a"])
        self.write("servers: {b: {}}\n", "home/.config/usbipshare/client.yaml")
        self.assertEqual([*find(homes, etc).known], ["b"])
        self.write("servers: {c: {}}\n", "xdg/usbipshare/client.yaml")
        homes["XDG_CONFIG_HOME"] = str(self.folder / "xdg")
        self.assertEqual([*find(homes, etc).known], ["c"])
        self.assertEqual([*find({}, etc).known], ["a"])

    def test_wrongFileIsNotSkipped(self) -> None:
        """A file with an error is not skipped."""
        self.write("servers: []\n", "client.yaml")
        self.assertRaises(ConfigError, find, {}, str(self.folder))
        self.assertRaises(ConfigError, load, str(self.folder / "none.yaml"))
