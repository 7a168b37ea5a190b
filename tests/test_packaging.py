"""The installed package, its data files, and the example configurations."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import msgspec
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.backends.sysfscase import SysfsCase
from usbip_server import DOCUMENTS
from usbip_server.backends import sysfs, usbiptool, virtual
from usbip_server.backends.remote import config as remotehosts
from usbip_server.client.servers import ClientTls
from usbip_server.model.devicerules import Hook, Match, Occasion, Rule
from usbip_server.model.options import Limits
from usbip_server.model.policy import Grant, Policy, Who
from usbip_server.net.certificates import Tls
from usbip_server.runtime.service import SPARE_FILES, WRONG_CONFIGURATION
from usbip_server.server.config import Config, Source

PROJECT = Path(__file__).parent.parent
SECONDS = 120

FILES = {
    *("usbipshare.service", "usbipclient.service", "60-usbipshare.rules"),
    *("config.example.yaml", "client.example.yaml"),
    *("server.yaml", "client.yaml", "service.yaml"),
}
"""The data files of the package, besides the documents."""

SUFFIXES = (".py", ".service", ".rules")


class ExampleTests(SynchronousTestCase):
    """config.example.yaml shows every key with its default."""

    def setUp(self) -> None:
        self.text = (PROJECT / "config.example.yaml").read_text()

    def commented(self, key: str) -> list[str]:
        """The blocks of a key that are commented out."""
        blocks = re.findall(rf"^# {key}:\n(?:#   .*\n)+", self.text, re.MULTILINE)
        return [re.sub("^# ", "", block, flags=re.MULTILINE) for block in blocks]

    def backends(self) -> list[dict[str, Any]]:
        """The backend block, and those that are commented out."""
        blocks = (self.text, *self.commented("backend"))
        return [Source("example", text).config().backend for text in blocks]

    def test_defaults(self) -> None:
        """Each key that is not commented out has its default."""
        config = Source("example", self.text).config()
        rest = msgspec.structs.replace(config, backend=Config().backend)
        self.assertEqual(rest, Config())
        self.assertEqual(config.backendType, Config().backendType)

    def test_complete(self) -> None:
        """Each key is in the file."""
        blocks = (self.text, *self.commented("access"), *self.commented("tls"))
        paths = {path for text in blocks for path in Source("example", text)._lines}
        self.assertLessEqual({*keysOf(Config)}, {".".join(map(str, path)) for path in paths})

    def test_long(self) -> None:
        """The examples of C{access} and C{tls} that are commented out are valid, and have each
        key."""
        ((access,), (tls,)) = self.commented("access"), self.commented("tls")
        config = Source("example", access + tls).config()
        self.assertIsInstance(config.access, Policy)
        self.assertIsNotNone(config.tls)
        for kind, text in ((Who, access), (Grant, access), (Tls, tls)):
            for field in msgspec.structs.fields(kind):
                self.assertRegex(text, rf"[ {{]{field.encode_name}:")

    def test_backends(self) -> None:
        """The options of each backend have their defaults, and none is missing."""
        kinds: dict[str, Any] = {
            "sysfs": sysfs.Options,
            "usbip": usbiptool.Options,
            "virtual": virtual.Options,
        }
        found = {str(backend.pop("type")): backend for backend in self.backends()}
        self.assertEqual(found.keys(), kinds.keys() | {"remote"})
        for name, kind in kinds.items():
            self.assertEqual(msgspec.convert(found[name], kind), kind(), name)
            keys = {field.encode_name for field in msgspec.structs.fields(kind)}
            self.assertEqual(found[name].keys(), keys)
        devices = found["virtual"]["devices"]
        shown = {key for device in devices for key in device}
        fields = msgspec.structs.fields(virtual.VirtualDevice)
        self.assertEqual(shown, {field.encode_name for field in fields})

    def test_remote(self) -> None:
        """Each option of a server of the remote backend is in the file."""
        (remote,) = (each for each in self.backends() if each["type"] == "remote")
        options = msgspec.convert({"hosts": remote["hosts"]}, remotehosts.Options)
        self.assertIsInstance(options.hosts[0], str)
        hosts = [host for host in remote["hosts"] if isinstance(host, dict)]
        for shown, kind in (
            (hosts, remotehosts.HostOptions),
            ([host["tls"] for host in hosts if "tls" in host], ClientTls),
        ):
            keys = {field.encode_name for field in msgspec.structs.fields(kind)}
            self.assertEqual({key for each in shown for key in each}, keys)

    def test_rules(self) -> None:
        """The rules and hooks that are commented out are valid, and have each key."""
        ((rules,), (hooks,)) = self.commented("devices"), self.commented("hooks")
        config = Source("example", rules + hooks).config()
        for kind, text in ((Rule, rules), (Match, rules), (Hook, hooks)):
            for field in msgspec.structs.fields(kind):
                self.assertRegex(text, rf"[ {{]{field.encode_name}:")
        told = {occasion for hook in config.hooks for occasion in hook.events}
        self.assertEqual(told, {*Occasion})

    def test_comments(self) -> None:
        """Each key has a comment where it is first used."""
        seen = set()
        for line in self.text.splitlines():
            found = re.match(r"(?:# )? *(?:- )?([a-z_]+):(?: |$)(.*)", line)
            if found and found[1] not in seen:
                seen.add(found[1])
                self.assertIn("#", found[2], line)
        self.assertIn("vendor_id", seen)


def keysOf(kind: Any, above: str = "") -> Iterator[str]:
    """The keys of a mapping, and those of the mappings in it: C{export.keepalive.idle}."""
    for field in msgspec.structs.fields(kind):
        key = f"{above}{field.encode_name}"
        yield key
        choices = get_args(field.type) if isinstance(field.type, UnionType) else (field.type,)
        for choice in choices:
            if hasattr(choice, "__struct_fields__"):
                yield from keysOf(choice, f"{key}.")


class UnitTests(SynchronousTestCase):
    """The systemd unit of the server."""

    name = "usbipshare.service"

    def analyze(self, *arguments: str) -> str:
        """Run systemd-analyze on it."""
        if shutil.which("systemd-analyze") is None:
            raise SkipTest("systemd-analyze is missing (Debian: systemd)")
        unit = Path(self.mktemp()).with_suffix(".service").absolute()
        text = packaged(self.name)
        unit.write_text(text.replace("/opt/usbipshare/bin/twistd", "/bin/true"))
        done = subprocess.run(
            ["systemd-analyze", *arguments, str(unit)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout + done.stderr

    def test_user(self) -> None:
        """The daemon does not run as root, and has no capabilities."""
        service = packaged("usbipshare.service").splitlines()
        for line in ("User=usbipshare", "CapabilityBoundingSet=", "AmbientCapabilities="):
            self.assertIn(line, service)

    def test_verify(self) -> None:
        """systemd accepts each line."""
        output = self.analyze("verify", "--man=no")
        self.assertNotIn("usbipshare", output.replace("Unit file usbipshare", ""))

    def test_security(self) -> None:
        """The exposure that systemd computes is below 2.5 of 10."""
        self.analyze("security", "--offline=true", "--threshold=25")


class ClientUnitTests(UnitTests):
    """The systemd unit of the client service."""

    name = "usbipclient.service"

    def test_user(self) -> None:
        """It runs as root, with one capability, which sets the group of the socket."""
        self.assertIn("CapabilityBoundingSet=CAP_CHOWN", packaged(self.name).splitlines())

    def test_security(self) -> None:
        """The exposure that systemd computes is below 3 of 10."""
        self.analyze("security", "--offline=true", "--threshold=30")


class BothUnitsTests(SynchronousTestCase):
    """
    What the units of the server and of the client service have in common, and what not.
    """

    units = ("usbipshare.service", "usbipclient.service")

    def values(self, name: str, key: str) -> list[str]:
        """The values of a key of a unit."""
        text = packaged(name).replace("\\\n", "")
        return re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)

    def test_noCommonFolder(self) -> None:
        """
        They share no state nor runtime directory: systemd changes the owner of what is in one to
        the user of the unit that it starts, and removes a runtime directory with its unit.
        """
        for key in ("StateDirectory", "RuntimeDirectory"):
            first, second = (self.values(name, key) for name in self.units)
            self.assertTrue(first and second)
            self.assertFalse({*first} & {*second})

    def test_openFiles(self) -> None:
        """The limit on open files allows the default number of connections: with one descriptor
        for requests, and with two for USB/IP over TLS."""
        for name, each in zip(self.units, (3, 1), strict=True):
            (limit,) = self.values(name, "LimitNOFILE")
            most = int(limit.rpartition(":")[2])
            self.assertGreaterEqual(most, each * Limits().connections + SPARE_FILES)

    def test_wrongConfiguration(self) -> None:
        """It ends the daemon for good, and makes a reload fail before the daemon gets a signal."""
        for name in self.units:
            self.assertEqual(self.values(name, "RestartPreventExitStatus"), ["78"])
            self.assertEqual(WRONG_CONFIGURATION, 78)
            (start,) = self.values(name, "ExecStart")
            check, signal = self.values(name, "ExecReload")
            self.assertEqual(
                check,
                start.replace("--nodaemon --pidfile= ", "").replace(
                    " --config", " --check --config"
                ),
            )
            self.assertEqual(signal, "/bin/kill -HUP $MAINPID")

    def test_clientStateMoves(self) -> None:
        """The unit of the client service fetches its state from the server's folder, once."""
        if os.geteuid() != 0:
            raise SkipTest("needs root, for chown")
        (line,) = (each for each in self.values(self.units[1], "ExecStartPre") if "mv" in each)
        lib = Path(self.mktemp()).absolute()
        old, new = lib / "usbipshare" / "client.json", lib / "usbipclient" / "client.json"
        for path in (old, new):
            path.parent.mkdir(parents=True)
        script = shlex.split(line.removeprefix("+-").replace("/var/lib", str(lib)))
        for before, after in (("", ""), ("first", "first"), ("second", "first")):
            if before:
                old.write_text(before)
                os.chown(old, 1, 1)
            subprocess.run(script, check=True, timeout=SECONDS)
            self.assertEqual(new.read_text() if new.exists() else "", after)
        self.assertEqual((new.stat().st_uid, old.read_text()), (0, "second"))


class PermissionTests(SysfsCase):
    """The files below C{/sys} that the daemon may write without being root."""

    def test_same(self) -> None:
        """The unit permits the files that the daemon writes and no others; the udev rule permits
        those that are created while it runs."""
        self.successResultOf(self.bind("1-1"))
        self.kernel.importDevice("1-1")
        self.successResultOf(self.release("1-1"))
        self.successResultOf(self.unbind("1-1"))
        self.kernel.fillTable(*(f"9-{port}" for port in range(1, 16)))
        self.successResultOf(self.bind("1-2"))
        bound = "usbip-host/*/usbip_sockfd"
        written = {
            path.replace("bus/usb/devices/1-1", "usbip-host/*").removeprefix("bus/usb/drivers/")
            for path, _ in self.kernel.writes
        }
        unit = re.findall(r"(?<= )usb(?:ip-host)?/[\w/*]+", packaged("usbipshare.service"))
        self.assertEqual({*unit}, written)
        self.assertLessEqual({bound, "usbip-host/rebind"}, written)
        rules = packaged("60-usbipshare.rules")
        created = {name for name in written - {bound} if name.startswith("usbip-host/")}
        for change in ("chgrp usbipshare", "chmod g+w"):
            (names,) = re.findall(rf"&& {re.escape(change)} ([a-z_ ]+)", rules)
            self.assertEqual({f"usbip-host/{name}" for name in names.split()}, created)
            self.assertIn(f'RUN+="/bin/{change} $sys$devpath/usbip_sockfd"', rules)

    def test_rules(self) -> None:
        """udev accepts each line of the rule."""
        if shutil.which("udevadm") is None:
            raise SkipTest("udevadm is missing (Debian: udev)")
        rules = Path(self.mktemp()).with_suffix(".rules").absolute()
        rules.write_text(packaged("60-usbipshare.rules"))
        done = subprocess.run(
            ["udevadm", "verify", "--resolve-names=never", str(rules)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        if "Unknown command verb" in done.stderr:
            raise SkipTest("udevadm cannot verify rules before systemd 254")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)


def packaged(name: str) -> str:
    """The text of a data file of the package."""
    return resources.files("usbip_server.data").joinpath(name).read_text()


def documentsIn(folder: Path) -> set[str]:
    """The names of the documents in a folder and the folders in it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*.md")}


class DocumentsTests(SynchronousTestCase):
    """The documents in the package."""

    def test_messagesReferToDocumentsThatAreThere(self) -> None:
        """Each path of a document in a message exists in the package."""
        text = "".join(path.read_text() for path in (PROJECT / "usbip_server").rglob("*.py"))
        names = set(re.findall(r"\{DOCUMENTS\}/([\w/]+\.md)", text))
        self.assertIn("howto/server_setup.md", names)
        for name in names:
            self.assertTrue((Path(DOCUMENTS) / name).is_file(), name)

    def test_everyOtherReferenceIsToADocument(self) -> None:
        """Comments, docstrings and units refer to documents that exist."""
        for path in [
            *(p for p in (PROJECT / "usbip_server").rglob("*") if p.suffix in SUFFIXES),
            *PROJECT.glob("*.example.yaml"),
        ]:
            for name in re.findall(r"\bdocs/([\w/]+\.md)", path.read_text()):
                self.assertTrue((PROJECT / "docs" / name).is_file(), f"{path}: {name}")


class WheelTests(SynchronousTestCase):
    """A wheel."""

    def run_(self, *command: str | Path, **more: Any) -> str:
        """Run a program that has to succeed, and return what it prints."""
        done: subprocess.CompletedProcess[str] = subprocess.run(
            list(map(str, command)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
            **more,
        )
        self.assertEqual(done.returncode, 0, done.stdout)
        return done.stdout

    def test_wheel(self) -> None:
        """An installed wheel has the plugin, the backends, the unit, the udev rule and the
        documents. Installing leaves nothing in the folder with the sources, and takes nothing from
        a folder C{build} that an older version has left there."""
        source, target = Path(self.mktemp()), Path(self.mktemp())
        source.mkdir()
        for path in (PROJECT / name for name in ("setup.cfg", "pyproject.toml", "MANIFEST.in")):
            shutil.copy(path, source)
        for path in (PROJECT / "README.md", PROJECT / "LICENSE", *PROJECT.glob("*.example.yaml")):
            shutil.copy(path, source)
        for name in ("usbip_server", "twisted", "docs", "distribution"):
            ignored = shutil.ignore_patterns("__pycache__", "dropin.cache")
            shutil.copytree(PROJECT / name, source / name, symlinks=True, ignore=ignored)
        stale = source / "build" / "lib" / "usbip_server" / "stale.py"
        stale.parent.mkdir(parents=True)
        stale.write_text("")
        before = {*source.rglob("*")}
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install")
        options = ("--no-deps", "--no-build-isolation", "--no-index", "--target", target)
        self.run_(*pip, *options, source)
        # What pip asks for where it builds in an environment of its own.
        asked = "import buildbackend; assert buildbackend.get_requires_for_build_wheel() == []"
        backend = {"PYTHONPATH": str((source / "distribution").absolute())}
        self.run_(sys.executable, "-c", asked, env=backend, cwd=source)
        self.assertEqual({*source.rglob("*")}, before)
        self.assertFalse((target / "usbip_server" / "stale.py").exists())
        environment = {"PYTHONPATH": str(target.absolute()), "PATH": "/usr/bin:/bin"}
        where = (
            "import usbip_server.data as d, importlib.resources as r;"
            "print(d.__file__, {each.name for each in r.files(d).iterdir()})"
        )
        output = self.run_(sys.executable, "-c", where, env=environment, cwd="/")
        self.assertIn(str(target), output)
        self.assertLessEqual(FILES, {*output.split("'")})
        where = "import usbip_server; print(usbip_server.DOCUMENTS)"
        installed = Path(self.run_(sys.executable, "-c", where, env=environment, cwd="/").strip())
        self.assertTrue(installed.is_relative_to(target.absolute()), installed)
        self.assertEqual(documentsIn(installed), documentsIn(PROJECT / "docs"))
        output = self.run_(sys.executable, "-m", "twisted", "--help", env=environment, cwd="/")
        self.assertIn("usbipshare", output)
        check = ("-m", "twisted", "usbipshare", "--check", "--backend", "virtual")
        self.assertIn(" OK", self.run_(sys.executable, *check, env=environment, cwd="/"))
