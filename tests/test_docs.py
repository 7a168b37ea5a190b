"""
The README and the documents in C{docs} say what is true, and their examples work.
"""

from __future__ import annotations

import ast
import configparser
import errno
import re
import shutil
import socket
import sys
import threading
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import msgspec
import yaml
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.childdaemon import EXPORT, ChildDaemon
from tests.documentcase import (
    COMMAND_LINE,
    DETAILS,
    FIELDS,
    KEYS_OF,
    MORE_OF,
    NOTICE,
    DocumentCase,
)
from tests.documents import ROOT, anchor, documents
from tests.examples import child
from tests.exchanges import RealWorld
from usbip_server.backends import sysfs, usbiptool, virtual
from usbip_server.commands import COMMANDS, Command, LeaseRequest
from usbip_server.config import Config, Source
from usbip_server.device import DeviceState
from usbip_server.handoff import KeepAlive
from usbip_server.inventory import ChangeKind
from usbip_server.listening import explain, serverEndpoint
from usbip_server.opcodec import OpStatus
from usbip_server.policy import Grant, Openness, Policy, Right, Who
from usbip_server.replies import Status
from usbip_server.rules import CLASSES, Hook, Match, Occasion, Rule, Share


class Breaking:
    """
    A relay to a daemon, each of whose connections breaks after an answer and one line more.

    @ivar port: where it listens.
    @ivar connections: how many there have been.
    """

    def __init__(self, daemon: int) -> None:
        """
        @param daemon: its port.
        """
        self._daemon = daemon
        self.connections = 0

    def __enter__(self) -> Breaking:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with client, socket.create_connection(("127.0.0.1", self._daemon)) as server:
                server.sendall(client.makefile("rb").readline())
                lines = server.makefile("rb")
                for _ in range(2):
                    client.sendall(lines.readline())


class ReadmeTests(DocumentCase, SynchronousTestCase):
    """
    The README.
    """

    name = "README.md"


class ProtocolTests(DocumentCase, SynchronousTestCase):
    """
    The socket API.
    """

    name = "docs/protocol.md"

    def test_requests(self) -> None:
        """Each command and each key of a request is there, with its default."""
        self.assertEqual([*self.document.rows("Requests", 3)][1:], [*COMMANDS])
        rows = self.document.rows("Requests", 4)
        for kind in get_args(Command):
            for field in msgspec.structs.fields(kind):
                default = yaml.safe_load(rows[field.encode_name][2].strip("`"))
                if not field.required:
                    self.assertEqual(default, field.default, f"{kind}: {field.name}")
        keys = {field.encode_name for kind in get_args(Command) for field in fieldsOf(kind)}
        self.assertEqual({*rows} - {"key"}, keys | {"command"})

    def test_lease(self) -> None:
        """Each key of a lease is there."""
        keys = {field.encode_name for field in fieldsOf(LeaseRequest)}
        self.assertEqual({*self.document.rows("Leases", 4)} - {"key"}, keys)

    def test_events(self) -> None:
        """Each event is there, with its keys; so is what is told to those who wait."""
        _, *events = self.document.rows("Watch", 2)
        self.assertEqual(events, [*(kind.value for kind in ChangeKind), "heartbeat"])
        keys = {*self.document.rows("Watch", 3)} - {"key"}
        told = {key for event in events for key in MORE_OF[event]}
        self.assertEqual(keys, told | NOTICE)
        queued = {*self.document.rows("Waiting for a device", 3)} - {"key of `queued"}
        self.assertEqual(queued, MORE_OF["queued"] | NOTICE)

    def test_page(self) -> None:
        """A web page listens to events that there are, and to all of them."""
        (block,) = (b for b in self.document.blocks if b.kind == "js")
        names = set(re.findall('"([a-z]+)"', block.text))
        self.assertEqual(names, {"snapshot", *(kind.value for kind in ChangeKind)})

    def test_watcher(self) -> None:
        """The example of a watcher misses nothing when its connection breaks."""
        (block,) = (b for b in self.document.blocks if "def watch(" in b.text)
        names: dict[str, Any] = {}
        config = "backend: {type: virtual}"
        with ChildDaemon(config) as daemon, Breaking(daemon.port) as relay:
            program = block.text.partition("\n\n\nnews = ")[0].replace("5055", str(relay.port))
            exec(compile(program, block.where, "exec"), names)
            news = names["watch"]("127.0.0.1", serial="DISK1")
            self.assertEqual(next(news)["data"][0]["serial"], "DISK1")
            for command in ("attach", "detach", "attach"):
                daemon.ask(command, serial="DISK1")
            told = (message.get("event") for message in news)
            heard = [*islice((event for event in told if event), 3)]
        self.assertEqual(heard, ["bound", "unbound", "bound"])
        self.assertGreater(relay.connections, 1)

    def test_statuses(self) -> None:
        """Each status is there, with its keys."""
        rows = self.document.rows("Responses", 4)
        self.assertEqual([*rows][1:], [status.value for status in Status])
        for status, keys in KEYS_OF.items():
            self.assertEqual({"status", *re.findall(r"`(\w+)`", rows[status][1])}, keys)

    def test_fields(self) -> None:
        """Each field of a device is there."""
        rows = self.document.rows("The device object", 3)
        self.assertEqual({*rows} - {"field"}, FIELDS | DETAILS)

    def test_states(self) -> None:
        """Each state is there."""
        rows = self.document.rows("States", 4)
        self.assertEqual([*rows][1:], [state.value for state in DeviceState])

    def test_import(self) -> None:
        """Each answer to an import is there."""
        rows = self.document.rows("Import", 3)
        self.assertEqual([*rows][1:], [str(status.value) for status in OpStatus])

    def test_limits(self) -> None:
        """Limits have the values they have by default."""
        defaults = flat(plain(Config()))
        for row in self.document.rows("Limits and time-outs", 4).values():
            if "." in row[2]:
                value = float(row[1].removesuffix(" bytes").removesuffix(" s"))
                self.assertEqual(value, defaults[row[2].strip("`")], row)


class ConfigTests(DocumentCase, SynchronousTestCase):
    """
    The configuration.
    """

    name = "docs/config.md"

    def test_keys(self) -> None:
        """Each key is there, with its default."""
        rows = self.document.rows("Keys", 4)
        self.assertEqual(shownDefaults(rows), flat(plain(Config())))

    def test_rules(self) -> None:
        """So is each key of a rule, and what it can be."""
        rows = self.document.rows("devices", 4)
        for field in msgspec.structs.fields(Rule):
            default = rows[field.encode_name][2].strip("`")
            self.assertEqual(default, "required" if field.required else shown(field.default))
        self.assertEqual({*rows} - {"key"}, {field.encode_name for field in fieldsOf(Rule)})
        shares = {share.value for share in Share}
        self.assertEqual({*self.document.rows("devices", 2)} - {"share"}, shares)
        keys = {field.encode_name for field in fieldsOf(Match)}
        self.assertEqual({*self.document.rows("devices", 3)} - {"key of `match"}, keys)
        self.assertLessEqual({*CLASSES}, {*self.document.spans()})

    def test_access(self) -> None:
        """So is each key of what is said of who may do what, and each right."""
        words = {openness.value for openness in Openness}
        self.assertEqual({*self.document.rows("access", 2)} - {"access"}, words)
        tables = (("key", Policy), ("key of a principal", Who), ("key of `allow", Grant))
        for title, kind in tables:
            rows = self.document.rows("access", 4 if kind is Grant else 3)
            keys = {field.encode_name for field in fieldsOf(kind)}
            self.assertLessEqual(keys, {*rows}, title)
        described = self.document.rows("access", 4)["commands"][3]
        self.assertLessEqual({right.value for right in Right}, {*re.findall(r"`(\w+)`", described)})

    def test_hookKeys(self) -> None:
        """So is each key of a hook, and each event."""
        rows = self.document.rows("hooks", 4)
        for field in msgspec.structs.fields(Hook):
            default = rows[field.encode_name][2].strip("`")
            self.assertEqual(default, "required" if field.required else shown(field.default))
        self.assertEqual({*rows} - {"key"}, {field.encode_name for field in fieldsOf(Hook)})
        names = re.findall(r"\w+", " ".join(self.document.rows("hooks", 2)))
        self.assertEqual(names[1:], [occasion.value for occasion in Occasion])

    def test_hooks(self) -> None:
        """The examples of hooks do what is said of them."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        scripts = [block.text for block in self.document.blocks if "chmod" in block.text]
        for script in scripts:
            child(["sh", "-e", "-c", script.replace("/run/", f"{folder}/")], folder)
        (hooks,) = (
            b.text for b in self.document.blocks if b.text.startswith("hooks:\n  - events: [a")
        )
        (refusal,) = (b.text for b in self.document.blocks if "says no" in b.text)
        (folder / "backup.lock").touch()
        config = hooks.replace("/usr/local/bin", str(folder))
        config = config.replace("[added, removed,", "[bound,")
        with ChildDaemon(f"backend: {{type: virtual}}\n{config}") as daemon:
            said = daemon.ask("attach", id="1-2")["message"]
            self.assertEqual(said.replace(str(folder), "/usr/local/bin"), refusal)
            (folder / "backup.lock").unlink()
            self.assertEqual(daemon.ask("attach", id="1-2")["status"], "success")
            lines = [daemon.logged("{hook} on {device}: {line}")["line"] for _ in range(2)]
        self.assertEqual(lines, ["failed at 1-2: DISK1", "bound at 1-2: DISK1"])

    def test_onImport(self) -> None:
        """The example of a device that is shared on import does what is said of it."""
        (rule,) = (b.text for b in self.document.blocks if "unbind_released" in b.text)
        config = f"backend: {{type: virtual}}\n{EXPORT}{rule.replace('printer', 'storage')}\n"
        with ChildDaemon(config) as daemon, daemon.watch(id="1-2") as watcher:
            with RealWorld(daemon).imported("1-2"):
                watcher.told("imported", "1-2")
            watcher.told("unbound", "1-2")
            self.assertEqual(watcher.kinds("1-2"), ["bound", "imported", "released", "unbound"])

    def test_keepalive(self) -> None:
        """So is each key of how it is noticed that a client has vanished."""
        shown = shownDefaults(self.document.rows("export", 4))
        self.assertEqual(shown, plain(KeepAlive()))

    def test_listen(self) -> None:
        """What may be listened on can be listened on."""
        from twisted.internet import reactor

        for description in [*self.document.rows("listen", 2)][1:]:
            try:
                serverEndpoint(reactor, description)
            except ValueError as error:
                self.assertRegex(str(error), "No such file or directory: '.*pem'")

    def test_options(self) -> None:
        """So is each option of each backend."""
        for heading, options in (("sysfs", sysfs.Options), ("usbip", usbiptool.Options)):
            rows = self.document.rows(heading, 4)
            self.assertEqual(shownDefaults(rows), plain(options()))

    def test_virtual(self) -> None:
        """So is each option of a virtual device."""
        shown = shownDefaults(self.document.rows("virtual", 4))
        devices = shown.pop("devices")
        for sample in virtual.SAMPLES:
            self.assertIn(f"at `{sample.bus_id}`", devices)
        own = plain(virtual.Options())
        own |= plain(virtual.VirtualDevice(bus_id="required"))
        own.pop("devices")
        self.assertEqual(shown, own)

    def test_commandLine(self) -> None:
        """So is each option of the command line."""
        rows = " ".join(self.document.rows("The command line", 2))
        for option in COMMAND_LINE.longOpt:
            self.assertIn(f"--{option.rstrip('=')}", rows)


class ServerSetupTests(DocumentCase, SynchronousTestCase):
    """
    Setting up a server.
    """

    name = "docs/server_setup.md"

    def test_messages(self) -> None:
        """The messages that are explained are those of the program."""
        literals = [literal for path in sources() for literal in literalsIn(path)]
        for message in [*self.document.rows("What messages mean", 3)][1:]:
            pattern = ".*".join(map(re.escape, message.split("…")))
            self.assertTrue(any(re.search(pattern, text) for text in literals), message)

    def test_taken(self) -> None:
        """What is said when the port of USB/IP is taken is what stands there."""
        (block,) = (b for b in self.document.blocks if b.text.startswith("cannot listen"))
        taken = OSError(errno.EADDRINUSE, "Address already in use")
        self.assertEqual(block.text, explain("tcp:3240", taken, isExport=True))


class ArchitectureTests(DocumentCase, SynchronousTestCase):
    """
    How it is built.
    """

    name = "docs/architecture.md"

    def test_modules(self) -> None:
        """Each module has its line, and each line has a module."""
        package = ROOT / "usbip_server"
        there = {str(path.relative_to(package)) for path in sources()}
        modules = {name for name in there if not name.endswith("__init__.py")}
        grouped = {name for name in modules if name.startswith("testing/")}
        rows = {name for name in self.document.rows("The floor plan", 2) if name.endswith(".py")}
        self.assertEqual(rows, modules - grouped)

    def test_dependencies(self) -> None:
        """Each dependency is there, and why."""
        setup = configparser.ConfigParser(interpolation=None)
        setup.read(ROOT / "setup.cfg")
        needed = setup["options"]["install_requires"]
        for extra in setup["options.extras_require"].values():
            needed += extra
        explained = self.document.spans()
        for package in re.findall(r"^([\w.\[\]-]+)", needed, re.MULTILINE):
            self.assertIn(package, explained)


class BackendsTests(DocumentCase, SynchronousTestCase):
    """
    Write your own backend.
    """

    name = "docs/backends.md"

    def test_package(self) -> None:
        """The example can be installed, is found by the daemon, and passes its tests."""
        if not canBuild():
            raise SkipTest("pip install 'setuptools >= 70.1'")
        folder = Path(self.mktemp()).absolute()
        installed = folder / "installed"
        # A copy, as to build a package leaves files in its folder.
        shutil.copytree(ROOT / "docs" / "example_backend", folder / "source")
        offline = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
        child([*command, *offline, "--target", str(installed), "./source"], folder)
        (block,) = (b for b in self.document.blocks if b.circumstance == "plugin")
        (folder / "usbipshare.yaml").write_text(block.text)
        check = ["twistd", "usbipshare", "--check", "--config", "usbipshare.yaml"]
        said = child(check, folder, path=[installed])
        self.assertEqual(said, "usbipshare.yaml: all is well\n")
        tests = [sys.executable, "-m", "twisted.trial", "jsonfile_backend"]
        self.assertIn("PASSED", child(tests, folder, path=[installed]))

    def test_configuration(self) -> None:
        """Its configuration is right as far as we can tell."""
        (block,) = (b for b in self.document.blocks if b.circumstance == "plugin")
        self.assertEqual(Source("", block.text).config().backendType, "jsonfile")


class AllDocumentsTests(SynchronousTestCase):
    """
    What is said of all documents.
    """

    def test_all(self) -> None:
        """Each document is tested here."""
        tested = {case.name for case in DocumentCase.__subclasses__()}
        self.assertEqual({document.name for document in documents()}, tested)

    def test_anchors(self) -> None:
        """Headings become anchors as GitHub makes them."""
        self.assertEqual(anchor("Limits and time-outs"), "limits-and-time-outs")
        self.assertEqual(anchor("Update, uninstall"), "update-uninstall")
        self.assertEqual(anchor("`id`, `bus`"), "id-bus")


def canBuild() -> bool:
    """
    Can a package be built here, without the network?
    """
    try:
        return find_spec("setuptools.command.bdist_wheel") is not None
    except ModuleNotFoundError:
        return False


def shownDefaults(rows: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """
    The third column, as YAML where it is code.
    """
    return {
        name: yaml.safe_load(cells[2].strip("`")) if cells[2].startswith("`") else cells[2]
        for name, cells in rows.items()
        if cells[0].startswith("`")
    }


def fieldsOf(kind: type[Any]) -> tuple[Any, ...]:
    """
    The keys of a request.
    """
    return msgspec.structs.fields(kind)


def shown(default: Any) -> str:
    """
    A default as it would stand in a file.
    """
    found = msgspec.json.encode(default).decode()
    return found.strip('"')


def plain(struct: msgspec.Struct) -> dict[str, Any]:
    """
    As it would stand in a file.
    """
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(struct))
    return found


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """
    C{{"limits": {"connections": 1}}} as C{{"limits.connections": 1}}; C{backend} is whole.
    """
    return {
        f"{key}.{name}" if name else key: value
        for key, part in config.items()
        for name, value in (
            part.items() if isinstance(part, dict) and key != "backend" else [("", part)]
        )
    }


def sources() -> list[Path]:
    """
    Our modules.
    """
    return sorted((ROOT / "usbip_server").rglob("*.py"))


def literalsIn(path: Path) -> list[str]:
    """
    The strings in a module; what is put into an f-string is shown as C{…}.
    """
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found
