"""
The README and the documents in C{docs} say what is true, and their examples work.
"""

from __future__ import annotations

import ast
import configparser
import errno
import json
import re
import shutil
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import msgspec
import yaml
from msgspec import convert
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.docs.clientexamples import PLUGGED, RESULT, optionsOf
from tests.docs.documentcase import (
    COMMAND_LINE,
    DETAILS,
    FIELDS,
    KEYS_OF,
    MORE_OF,
    NOTICE,
    DocumentCase,
)
from tests.docs.documents import ROOT, Document, anchor, documents
from tests.docs.examples import CONFIGURED, SECONDS, Stage, child
from tests.docs.exchanges import DISK, ECHO, RealWorld
from tests.docs.messages import matches, patternsOf, texts
from tests.docs.serviceexamples import KEYS_OF as LOCAL_KEYS
from tests.docs.serviceexamples import MORE_OF as LOCAL_MORE
from tests.docs.serviceexamples import PORT, ServiceStage, checkLocal, serviceOf
from tests.support.childdaemon import EXPORT, PatientDaemon
from tests.support.childservice import ChildService
from tests.support.fixtures import PromptBackend, asked
from usbip_server.backends import sysfs, usbiptool, virtual
from usbip_server.backends.remote.config import HostOptions
from usbip_server.backends.remote.config import Options as RemoteOptions
from usbip_server.client.cli.exitcodes import Exit
from usbip_server.client.cli.main import COMMANDS as TYPED
from usbip_server.client.config import ClientFile
from usbip_server.client.config import Entry as ServerEntry
from usbip_server.client.servers import ClientTls
from usbip_server.client.service.config import (
    ClientHook,
    DeviceRule,
    ServiceConfig,
    SocketConfig,
)
from usbip_server.client.service.devices.events import ServiceEventKind
from usbip_server.client.service.messages import COMMANDS as LOCAL_COMMANDS
from usbip_server.model.device import DeviceState, Encryption
from usbip_server.model.errors import ShareError
from usbip_server.model.inventory import ChangeKind
from usbip_server.model.policy import AccessPreset, Grant, Policy, Principal, Right, Who, several
from usbip_server.model.replies import CODE_OF, STATUS_OF, Code, Status
from usbip_server.model.requests import COMMANDS, Command, LeaseRequest, decode
from usbip_server.model.rules import CLASSES, Hook, Match, Occasion, Rule, Share
from usbip_server.model.selector import CRITERIA
from usbip_server.model.usbip import OpStatus
from usbip_server.net.caller import Caller
from usbip_server.net.certificates import Tls
from usbip_server.net.endpoints import explain, serverEndpoint
from usbip_server.net.keepalive import KeepAlive
from usbip_server.server.access import audit
from usbip_server.server.config import Config, LiveSettings, Source
from usbip_server.server.core import Core


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

    name = "docs/reference/protocol.md"

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

    def test_codes(self) -> None:
        """Each code is there, with the status of the same errors."""
        _, *rows = self.document.rows("Codes", 3).items()
        self.assertEqual([code for code, _ in rows], [code.value for code in Code])
        for kind, code in CODE_OF.items():
            status = next(STATUS_OF[base] for base in kind.__mro__ if base in STATUS_OF)
            self.assertIn((code.value, f"`{status.value}`"), [(row, it[1]) for row, it in rows])

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

    name = "docs/reference/configuration.md"

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
        words = {openness.value for openness in AccessPreset}
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
                self.assertRegex(
                    str(error), "No such file or directory: '.*pem'|needs a certificate"
                )

    def test_tls(self) -> None:
        """Each key of what is shown there, with its default."""
        rows = self.document.rows("tls", 4)
        for field in fieldsOf(Tls):
            default = rows[field.encode_name][2].strip("`")
            self.assertEqual(default, "required" if field.required else shown(field.default))
        self.assertEqual({*rows} - {"key of `tls"}, {field.encode_name for field in fieldsOf(Tls)})

    def test_options(self) -> None:
        """So is each option of each backend."""
        for heading, options in (("sysfs", sysfs.Options), ("usbip", usbiptool.Options)):
            rows = self.document.rows(heading, 4)
            self.assertEqual(shownDefaults(rows), plain(options()))

    def test_remote(self) -> None:
        """So is each thing that can be said of another server."""
        rows = self.document.rows("remote", 4)
        for kind in (RemoteOptions, HostOptions, ClientTls):
            for field in fieldsOf(kind):
                default = rows.pop(field.encode_name)[2].strip("`")
                self.assertEqual(default, "required" if field.required else shown(field.default))
        self.assertEqual({*rows}, {"option", "key of `tls"})

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

    name = "docs/howto/server_setup.md"

    def test_attributes(self) -> None:
        """What the daemon's user may write below C{/sys} is what the unit permits."""
        told = " ".join(self.document.rows("The service", 3))
        unit = resources.files("usbip_server.data").joinpath("usbipshare.service").read_text()
        pattern = r"(?<![\w/])usb(?:ip-host)?/\w+"
        self.assertEqual({*re.findall(pattern, told)}, {*re.findall(pattern, unit)})
        for text in (told, unit):
            self.assertIn("usbip_sockfd", text)

    def test_taken(self) -> None:
        """What is said when the port of USB/IP is taken is what stands there."""
        (block,) = (b for b in self.document.blocks if b.text.startswith("cannot listen"))
        taken = OSError(errno.EADDRINUSE, "Address already in use")
        self.assertEqual(block.text, explain("tcp:3240", taken, isExport=True))


class AuditTrailTests(DocumentCase, SynchronousTestCase):
    """
    The audit trail.
    """

    name = "docs/reference/audit_trail.md"

    def test_audit(self) -> None:
        """The audit trail that is shown is what is written down of these requests."""
        lab = Document(ROOT / "docs/howto/access.md").block("{desc: serial port}", "yaml")
        rules = Source("", lab.text).config()
        backend = PromptBackend([ECHO, DISK])
        core = Core(backend, Clock(), LiveSettings(rules.settings))
        asked(core.start())
        for line in self.document.block("audit {", "text").text.splitlines():
            entry = convert(json.loads(line.removeprefix("audit ")), audit.Entry)
            command = decode(json.dumps({"command": entry.command, **entry.asked}).encode())
            shown = rules.settings.access.principals.get(entry.who.get("token", ""), Who(uid=0))
            principal = Principal(**entry.who, hashes=several(shown.token))
            with capturedLogs() as events:
                asked(core.dispatcher.perform(command, Caller(principal))).addErrback(
                    lambda failure: failure.trap(ShareError)
                )
            self.assertIn(line, [formatEvent(event) for event in events])

    def test_auditKeys(self) -> None:
        """Each key of an entry is there, and each result."""
        rows = self.document.rows("Entries", 2)
        self.assertEqual([*rows][1:], [field.name for field in fieldsOf(audit.Entry)])
        results = {"done", "failed", *audit.RESULT_OF.values()}
        self.assertEqual({*re.findall("`([a-z_]+)`", rows["result"][1])}, results)


class ClientTests(DocumentCase, SynchronousTestCase):
    """
    The command for people.
    """

    name = "docs/reference/command.md"

    def test_commands(self) -> None:
        """Each command is there, with its options."""
        self.assertEqual([*self.document.rows("Commands", 2)][1:], [*TYPED])
        told = {*self.document.spans()}
        for name in TYPED:
            common = optionsOf("list") | {"--check"}
            self.assertLessEqual(optionsOf(name) - common, told, name)
        for heading in ("attach", "detach"):
            rows = {row.split("`")[0] for row in self.document.rows(heading, 2)}
            self.assertEqual(rows - {"option"}, optionsOf(heading) - optionsOf("list"))
        criteria = {*self.document.rows("Which device", 2)}
        self.assertLessEqual({f"--{name}" for name in (*CRITERIA, "first")}, criteria)

    def test_printed(self) -> None:
        """So is each key of what is printed in JSON."""
        rows = {*self.document.rows("JSON", 3)}
        self.assertLessEqual(RESULT | {"servers"} | PLUGGED, rows)


class ClientServiceTests(DocumentCase, SynchronousTestCase):
    """
    The client service.
    """

    name = "docs/reference/client_service_api.md"

    def checkJson(self, where: str, text: str) -> None:
        """It has shapes of its own."""
        checkLocal(where, text, FIELDS)

    @contextmanager
    def stage(self, folder: Path) -> Iterator[Stage]:
        """It asks a service, and not a daemon."""
        with (
            PatientDaemon(f"backend: {{type: virtual}}\n{EXPORT}") as daemon,
            serviceOf(daemon) as service,
        ):
            assert isinstance(service, ChildService)
            yield ServiceStage(daemon, service, folder)

    def test_requests(self) -> None:
        """Each command is there."""
        self.assertEqual([*self.document.rows("Requests", 3)][1:], [*LOCAL_COMMANDS])

    def test_answers(self) -> None:
        """Each status is there, with its keys."""
        rows = self.document.rows("Answers", 4)
        for status, keys in LOCAL_KEYS.items():
            self.assertEqual({"status", *re.findall(r"`(\w+)`", rows[status][1])}, keys)

    def test_ports(self) -> None:
        """Each key of a port is there."""
        self.assertEqual({*self.document.rows("ports", 2)} - {"key"}, PORT)

    def test_events(self) -> None:
        """Each event of the service is there, with its keys."""
        rows = self.document.rows("watch", 3)
        for word in ServiceEventKind:
            keys = {*re.findall(r"`(\w+)`", rows[word.value][1])}
            self.assertEqual(keys, LOCAL_MORE[word.value], word)


class ArchitectureTests(DocumentCase, SynchronousTestCase):
    """
    How it is built.
    """

    name = "docs/explanation/architecture.md"

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

    name = "docs/howto/backend.md"

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
        self.assertEqual(said, "usbipshare.yaml: configuration OK\n")
        tests = [sys.executable, "-m", "twisted.trial", "jsonfile_backend"]
        self.assertIn("PASSED", child(tests, folder, path=[installed]))

    def test_configuration(self) -> None:
        """Its configuration is right as far as we can tell."""
        (block,) = (b for b in self.document.blocks if b.circumstance == "plugin")
        self.assertEqual(Source("", block.text).config().backendType, "jsonfile")


class ScriptsTests(DocumentCase, SynchronousTestCase):
    """
    Asking the daemon from scripts.
    """

    name = "docs/howto/scripts.md"

    def test_watcher(self) -> None:
        """The example of a watcher misses nothing when its connection breaks."""
        (block,) = (b for b in self.document.blocks if "def watch(" in b.text)
        names: dict[str, Any] = {}
        config = "backend: {type: virtual}"
        with PatientDaemon(config) as daemon, Breaking(daemon.port) as relay:
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


class HooksTests(DocumentCase, SynchronousTestCase):
    """
    Hooks.
    """

    name = "docs/howto/hooks.md"

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
        (refusal,) = (b.text for b in self.document.blocks if "refuses: " in b.text)
        (folder / "backup.lock").touch()
        config = hooks.replace("/usr/local/bin", str(folder))
        config = config.replace("[added, removed,", "[bound,")
        with PatientDaemon(f"backend: {{type: virtual}}\n{config}") as daemon:
            said = daemon.ask("attach", id="1-2")["message"]
            self.assertEqual(said.replace(str(folder), "/usr/local/bin"), refusal)
            (folder / "backup.lock").unlink()
            self.assertEqual(daemon.ask("attach", id="1-2")["status"], "success")
            lines = [daemon.logged("{hook} on {device}: {line}")["line"] for _ in range(2)]
        self.assertEqual(lines, ["failed at 1-2: DISK1", "bound at 1-2: DISK1"])


class DevicesTests(DocumentCase, SynchronousTestCase):
    """
    Rules for devices.
    """

    name = "docs/howto/devices.md"

    def test_onImport(self) -> None:
        """The example of a device that is shared on import does what is said of it."""
        (rule,) = (b.text for b in self.document.blocks if "unbind_released" in b.text)
        config = f"backend: {{type: virtual}}\n{EXPORT}{rule.replace('printer', 'storage')}\n"
        with PatientDaemon(config) as daemon, daemon.watch(id="1-2") as watcher:
            with RealWorld(daemon).imported("1-2"):
                watcher.told("imported", "1-2")
            watcher.told("unbound", "1-2")
            self.assertEqual(watcher.kinds("1-2"), ["bound", "imported", "released", "unbound"])


class MessagesTests(DocumentCase, SynchronousTestCase):
    """
    Messages, and what to do.
    """

    name = "docs/reference/messages.md"

    def test_everyMessageIsExplained(self) -> None:
        """Each message in the code has a row."""
        patterns = patternsOf(self.document)
        missing = [
            f"{text.where}: {text.text}"
            for text in texts()
            if text.isMessage() and not any(matches(each, text.text) for each in patterns)
        ]
        self.assertEqual(missing, [])

    def test_everyRowExplainsMessage(self) -> None:
        """Each row is of a message in the code."""
        there = [text.text for text in texts()]
        patterns = patternsOf(self.document)
        stale = [each for each in patterns if not any(matches(each, text) for text in there)]
        self.assertEqual(stale, [])


class SecurityTests(DocumentCase, SynchronousTestCase):
    """
    What is protected against whom.
    """

    name = "docs/explanation/security.md"

    def test_encryption(self) -> None:
        """Each way that USB traffic can go is there."""
        told = {*self.document.rows("TLS", 4)} | {*self.document.spans()}
        self.assertLessEqual({encryption.value for encryption in Encryption}, told)


class TlsTests(DocumentCase, SynchronousTestCase):
    """
    How to encrypt.
    """

    name = "docs/howto/tls.md"

    def test_authority(self) -> None:
        """
        With the certificates that the commands make, the server is what its clients connect to,
        with the commands that are shown, and it knows them; it does not speak to anybody else.
        """
        if missing := [name for name in ("curl", "openssl") if shutil.which(name) is None]:
            raise SkipTest(f"apt-get install {' '.join(missing)}")
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        script = self.document.block("openssl req", "sh").text
        bob = script.rpartition("\n\n")[2].replace("alice", "bob")
        child(["sh", "-e", "-c", f"{script}\n{bob}"], folder)
        _, _, config = self.document.block("client_ca", "yaml").text.partition("tls:\n")
        config = f"tls:\n{config.replace(CONFIGURED, f'{folder}/')}\n"
        config += "http: {hosts: [raspi]}\nbackend: {type: virtual}\n"
        place = "tls:0:interface=127.0.0.1"
        with PatientDaemon(f"{config}export: {{listen: ['{place}']}}\n", listen=[place]) as daemon:

            def said(command: str) -> str:
                at = f"127.0.0.1:{daemon.port}"
                for shown, here in (
                    ("https://raspi:5056", f"--connect-to raspi:5056:{at} https://raspi:5056"),
                    ("-connect raspi:5056", f"-connect {at}"),
                    ("-connect raspi:3241", f"-connect 127.0.0.1:{daemon.exportPort}"),
                ):
                    command = command.replace(shown, here)
                return child(["sh", "-e", "-c", f"{command} 2>&1"], folder)

            curl, request, importing = self.document.block("s_client", "console").commands()
            for command in (curl, request):
                self.assertIn('{"status":"success","data":[{', said(command))
                self.assertIn("bob) may not list", said(command.replace("alice", "bob")))
                self.assertRaises(AssertionError, said, command.replace("ca.pem", "bob.pem"))
            self.assertIn("Verification: OK", said(importing))
            without = curl.replace("--cert alice.pem --key alice.key", "")
            self.assertRaises(AssertionError, said, without)
            strict = ssl.create_default_context(cafile=str(folder / "ca.pem"))
            strict.verify_flags |= ssl.VERIFY_X509_STRICT
            strict.load_cert_chain(folder / "alice.pem", folder / "alice.key")
            with (
                socket.create_connection(("127.0.0.1", daemon.port), SECONDS) as plain,
                strict.wrap_socket(plain, server_hostname="raspi") as connection,
            ):
                connection.sendall(b'{"command":"list"}\n')
                self.assertIn(b'"status":"success"', connection.recv(4096))


class ExitCodesTests(DocumentCase, SynchronousTestCase):
    """
    Exit codes.
    """

    name = "docs/reference/exit_codes.md"

    def test_exits(self) -> None:
        """Each exit code is there, with its word."""
        rows = self.document.rows("The command usbipshare", 3)
        told = {code: cells[1].strip("`") for code, cells in rows.items()}
        told.pop("code")
        self.assertEqual(told, {str(each.value): each.word for each in Exit})


class ClientConfigurationTests(DocumentCase, SynchronousTestCase):
    """
    The configurations of the command and of the client service.
    """

    name = "docs/reference/client_configuration.md"

    def test_keys(self) -> None:
        """Each key of the file of servers is there, with its default."""
        for columns, kind in ((4, ClientFile), (3, ServerEntry), (3, ClientTls)):
            rows = self.document.rows("Which servers", columns)
            for field in fieldsOf(kind):
                self.assertIn(field.encode_name, rows)
            for field in fieldsOf(kind) if kind is not ClientTls else ():
                default = rows[field.encode_name][columns - 2].strip("`")
                if field.default not in (msgspec.NODEFAULT, None):
                    self.assertEqual(yaml.safe_load(default), field.default)

    def test_serviceKeys(self) -> None:
        """Each key of the configuration is there, with its default."""
        rows = self.document.rows("The client service", 3)
        defaults = plain(ServiceConfig())
        told = {name for row in rows for name in re.findall(r"\w+", row.partition(".")[0])}
        for name, default in defaults.items():
            self.assertIn(name, told)
            if (shown := rows.get(name, ("", "", ""))[1]) not in ("", "required"):
                self.assertEqual(yaml.safe_load(shown.strip("`")), default, name)
        keys = {field.encode_name for field in fieldsOf(DeviceRule)}
        self.assertEqual({*self.document.rows("Devices", 3)} - {"key"}, keys)
        for name, default in defaults["reconnect"].items():
            self.assertIn(f"`{name}` (`{default}` s)", rows["reconnect"][2].replace("up to ", ""))
        for default in defaults["retry"].values():
            self.assertIn(f"`{default:g}` s", rows["retry"][2])

    def test_hookKeys(self) -> None:
        """Each key of a hook, and of the socket, likewise."""
        shown = self.defaults("Hooks")
        default = plain(ClientHook(command=("x",)))
        self.assertEqual((shown["events"], shown["timeout"]), (default["events"], 10.0))
        self.assertEqual({*shown}, {*default})
        self.assertEqual(self.defaults("Who may ask"), plain(SocketConfig()))

    def defaults(self, heading: str) -> dict[str, Any]:
        """The second column of a table, by the first, without its head."""
        _, *rows = self.document.rows(heading, 3).items()
        return {name: yaml.safe_load(cells[1].strip("`")) for name, cells in rows}


class UnitTests(DocumentCase, SynchronousTestCase):
    """
    Keeping devices attached.
    """

    name = "docs/howto/client_service.md"

    def test_unit(self) -> None:
        """The unit is what it is said to be."""
        unit = (ROOT / "usbip_server" / "data" / "usbipclient.service").read_text()
        for line in ("Type=notify", "RuntimeDirectoryPreserve=yes"):
            self.assertIn(line, unit.splitlines())
        self.assertIn("--config /etc/usbipshare/service.yaml", unit)


class WrongConfigurationsTests(DocumentCase, SynchronousTestCase):
    """
    Configurations that are refused.
    """

    name = "tests/docs/wrong_configurations.md"


class AllDocumentsTests(SynchronousTestCase):
    """
    What is said of all documents.
    """

    def test_all(self) -> None:
        """Each test of a document is of one that there is."""
        tested = {case.name for case in DocumentCase.__subclasses__()}
        self.assertLessEqual({document.name for document in documents()}, tested)

    def test_changelog(self) -> None:
        """towncrier makes a changelog of all news fragments."""
        command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "9.9"]
        draft = child(command, ROOT)
        self.assertIn("## 9.9 (", draft)
        for fragment in (ROOT / "newsfragments").glob("*.md"):
            kind = fragment.name.split(".")[1]
            self.assertIn(kind, ("feature", "bugfix", "doc", "removal", "misc"), fragment.name)
            if kind != "misc":
                self.assertIn(fragment.read_text()[:40], draft)

    def test_anchors(self) -> None:
        """Headings become anchors as GitHub makes them."""
        self.assertEqual(anchor("Limits and time-outs"), "limits-and-time-outs")
        self.assertEqual(anchor("Update, uninstall"), "update-uninstall")
        self.assertEqual(anchor("`id`, `bus`"), "id-bus")


def casesOf(names: set[str]) -> Iterator[type[DocumentCase]]:
    """
    Make test cases for documents of which nothing more is to be said than of all.
    """
    for name in sorted(names - {case.name for case in DocumentCase.__subclasses__()}):
        words = re.findall("[a-z]+", name.lower().removeprefix("docs/").removesuffix(".md"))
        title = "".join(word.title() for word in words) + "Tests"
        members = {"name": name, "__doc__": name, "__module__": __name__}
        yield type(title, (DocumentCase, SynchronousTestCase), members)


globals().update({case.__name__: case for case in casesOf({d.name for d in documents()})})


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
