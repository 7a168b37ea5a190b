"""The reference is complete and correct."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import msgspec
import yaml
from msgspec import convert
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from tests.docs.clientexamples import PLUGGED, RESULT, optionsOf
from tests.docs.documentcase import (
    COMMAND_LINE,
    DETAILS,
    FIELDS,
    KEYS_OF,
    MORE_OF,
    NOTICE,
    SOMETIMES,
    DocumentCase,
    fieldsOf,
    plain,
)
from tests.docs.documents import ROOT, Document, documents
from tests.docs.examples import ExampleRunner
from tests.docs.exchanges import DISK, ECHO
from tests.docs.messages import PACKAGE, matches, patternsOf, texts
from tests.docs.serviceexamples import KEYS_OF as LOCAL_KEYS
from tests.docs.serviceexamples import MORE_OF as LOCAL_MORE
from tests.docs.serviceexamples import PORT, ServiceExampleRunner, checkLocal, serviceOf
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
from usbip_server.client.service.config import ClientHook, DeviceRule, ServiceConfig, SocketConfig
from usbip_server.client.service.devices.events import ServiceEventKind
from usbip_server.client.service.messages import COMMANDS as LOCAL_COMMANDS
from usbip_server.model.criteria import CRITERIA
from usbip_server.model.device import DeviceState
from usbip_server.model.devicerules import CLASSES, Hook, Match, Occasion, Rule, Share
from usbip_server.model.errors import ShareError
from usbip_server.model.inventory import ChangeKind
from usbip_server.model.policy import AccessPreset, Grant, Policy, Principal, Right, Who, several
from usbip_server.model.replies import CODE_OF, STATUS_OF, Code, Status
from usbip_server.model.requests import COMMANDS, Command, LeaseRequest, decode
from usbip_server.model.usbip import OpStatus
from usbip_server.net.caller import Caller
from usbip_server.net.certificates import Tls
from usbip_server.net.endpoints import serverEndpoint
from usbip_server.net.keepalive import KeepAlive
from usbip_server.server.access import audit
from usbip_server.server.config import Config, LiveSettings, Source
from usbip_server.server.core import Core


class ProtocolTests(DocumentCase, SynchronousTestCase):
    """The socket API."""

    name = "docs/reference/protocol.md"
    listed = (
        ("Requests", 3, COMMANDS),
        ("Leases", 4, [field.encode_name for field in fieldsOf(LeaseRequest)]),
        ("Responses", 4, [status.value for status in Status]),
        ("The device object", 3, FIELDS | DETAILS | SOMETIMES),
        ("States", 4, [state.value for state in DeviceState]),
        ("Import", 3, [str(status.value) for status in OpStatus]),
        ("Codes", 3, [code.value for code in Code]),
    )

    def test_requests(self) -> None:
        """Each key of a request is documented, with its default."""
        rows = self.document.rows("Requests", 4)
        for kind in get_args(Command):
            for field in msgspec.structs.fields(kind):
                default = yaml.safe_load(rows[field.encode_name][2].strip("`"))
                if not field.required:
                    self.assertEqual(default, field.default, f"{kind}: {field.name}")
        keys = {field.encode_name for kind in get_args(Command) for field in fieldsOf(kind)}
        self.assertEqual({*rows} - {"key"}, keys | {"command"})

    def test_events(self) -> None:
        """Each event is documented, with its keys; so is `queued`, for clients that wait."""
        _, *events = self.document.rows("Watch", 2)
        self.assertEqual(events, [*(kind.value for kind in ChangeKind), "heartbeat"])
        keys = {*self.document.rows("Watch", 3)} - {"key"}
        told = {key for event in events for key in MORE_OF[event]}
        self.assertEqual(keys, told | NOTICE)
        queued = {*self.document.rows("Waiting for a device", 3)} - {"key of `queued"}
        self.assertEqual(queued, MORE_OF["queued"] | NOTICE)

    def test_page(self) -> None:
        """The example of a web page listens to exactly the events that exist."""
        (block,) = (b for b in self.document.blocks if b.kind == "js")
        names = set(re.findall('"([a-z]+)"', block.text))
        self.assertEqual(names, {"snapshot", *(kind.value for kind in ChangeKind)})

    def test_statuses(self) -> None:
        """The keys of each status are documented."""
        rows = self.document.rows("Responses", 4)
        for status, keys in KEYS_OF.items():
            self.assertEqual({"status", *re.findall(r"`(\w+)`", rows[status][1])}, keys)

    def test_codes(self) -> None:
        """Each code has the status of the same errors."""
        _, *rows = self.document.rows("Codes", 3).items()
        for kind, code in CODE_OF.items():
            status = next(STATUS_OF[base] for base in kind.__mro__ if base in STATUS_OF)
            self.assertIn((code.value, f"`{status.value}`"), [(row, it[1]) for row, it in rows])

    def test_limits(self) -> None:
        """Limits are documented with their default values."""
        defaults = flat(plain(Config()))
        for row in self.document.rows("Limits and time-outs", 4).values():
            if "." in row[2]:
                value = float(row[1].removesuffix(" bytes").removesuffix(" s"))
                self.assertEqual(value, defaults[row[2].strip("`")], row)


class ConfigurationTests(DocumentCase, SynchronousTestCase):
    """The configuration of the server."""

    name = "docs/reference/configuration.md"

    def test_keys(self) -> None:
        """Each key is documented, with its default."""
        rows = self.document.rows("Keys", 4)
        self.assertEqual(shownDefaults(rows), flat(plain(Config())))

    def test_keysOfMappings(self) -> None:
        """Each key of each mapping is documented, with its default where there is one."""
        self.checkKeys("devices", 4, Rule)
        self.checkKeys("devices", 3, Match, defaults=False)
        self.checkKeys("access", 3, Policy, Who, defaults=False)
        self.checkKeys("access", 4, Grant, defaults=False)
        self.checkKeys("hooks", 4, Hook)
        self.checkKeys("export", 4, KeepAlive)
        self.checkKeys("tls", 4, Tls)
        self.checkKeys("sysfs", 4, sysfs.Options)
        self.checkKeys("usbip", 4, usbiptool.Options)
        self.checkKeys("remote", 4, RemoteOptions, HostOptions, ClientTls)

    def test_words(self) -> None:
        """Each word that a value can be is documented."""
        for heading, words in (("devices", Share), ("access", AccessPreset)):
            _, *rows = self.document.rows(heading, 2)
            self.assertEqual({*rows}, {word.value for word in words})
        self.assertLessEqual({*CLASSES}, {*self.document.spans()})
        described = self.document.rows("access", 4)["commands"][3]
        self.assertLessEqual({right.value for right in Right}, {*re.findall(r"`(\w+)`", described)})
        names = re.findall(r"\w+", " ".join(self.document.rows("hooks", 2)))
        self.assertEqual(names[1:], [occasion.value for occasion in Occasion])

    def test_listen(self) -> None:
        """Endpoint descriptions in the table are accepted."""
        from twisted.internet import reactor

        for description in [*self.document.rows("listen", 2)][1:]:
            try:
                serverEndpoint(reactor, description)
            except ValueError as error:
                self.assertRegex(
                    str(error), "No such file or directory: '.*pem'|needs a certificate"
                )

    def test_virtual(self) -> None:
        """Each option of a virtual device is documented, with its default."""
        shown = shownDefaults(self.document.rows("virtual", 4))
        devices = shown.pop("devices")
        for sample in virtual.SAMPLES:
            self.assertIn(f"at `{sample.bus_id}`", devices)
        own = plain(virtual.Options())
        own |= plain(virtual.VirtualDevice(bus_id="required"))
        own.pop("devices")
        self.assertEqual(shown, own)

    def test_commandLine(self) -> None:
        """Each option of the command line is documented."""
        rows = " ".join(self.document.rows("The command line", 2))
        for option in COMMAND_LINE.longOpt:
            self.assertIn(f"--{option.rstrip('=')}", rows)


class ClientTests(DocumentCase, SynchronousTestCase):
    """The command C{usbipshare}."""

    name = "docs/reference/command.md"
    listed = (("Commands", 2, TYPED),)

    def test_commands(self) -> None:
        """The options of each subcommand are documented."""
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
        """Each key of the output with C{--json} is documented."""
        rows = {*self.document.rows("JSON", 3)}
        self.assertLessEqual(RESULT | {"servers"} | PLUGGED, rows)


class ClientConfigurationTests(DocumentCase, SynchronousTestCase):
    """The configurations of the command and of the client service."""

    name = "docs/reference/client_configuration.md"

    def test_keys(self) -> None:
        """Each key of client.yaml is documented, with its default."""
        for columns, kind in ((4, ClientFile), (3, ServerEntry), (3, ClientTls)):
            rows = self.document.rows("Which servers", columns)
            for field in fieldsOf(kind):
                self.assertIn(field.encode_name, rows)
            for field in fieldsOf(kind) if kind is not ClientTls else ():
                default = rows[field.encode_name][columns - 2].strip("`")
                if field.default not in (msgspec.NODEFAULT, None):
                    self.assertEqual(yaml.safe_load(default), field.default)

    def test_serviceKeys(self) -> None:
        """Each key of the client service's configuration is documented, with its default."""
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
        """Each key of a hook and of the socket is documented, with its default."""
        shown = self.defaults("Hooks")
        default = plain(ClientHook(command=("x",)))
        self.assertEqual((shown["events"], shown["timeout"]), (default["events"], 10.0))
        self.assertEqual({*shown}, {*default})
        self.assertEqual(self.defaults("Who may ask"), plain(SocketConfig()))

    def defaults(self, heading: str) -> dict[str, Any]:
        """Return the second column of a table by the first, without the heading."""
        _, *rows = self.document.rows(heading, 3).items()
        return {name: yaml.safe_load(cells[1].strip("`")) for name, cells in rows}


class ClientServiceTests(DocumentCase, SynchronousTestCase):
    """The client service."""

    name = "docs/reference/client_service_api.md"
    listed = (("Requests", 3, LOCAL_COMMANDS), ("ports", 2, PORT))

    def checkJson(self, where: str, text: str) -> None:
        """Answers of the service have other keys than those of a server."""
        checkLocal(where, text, FIELDS)

    @contextmanager
    def runner(self, folder: Path) -> Iterator[ExampleRunner]:
        """The examples are executed against a client service."""
        with (
            PatientDaemon(f"backend: {{type: virtual}}\n{EXPORT}") as daemon,
            serviceOf(daemon) as service,
        ):
            assert isinstance(service, ChildService)
            yield ServiceExampleRunner(daemon, service, folder)

    def test_answers(self) -> None:
        """Each status is documented, with its keys."""
        rows = self.document.rows("Answers", 4)
        for status, keys in LOCAL_KEYS.items():
            self.assertEqual({"status", *re.findall(r"`(\w+)`", rows[status][1])}, keys)

    def test_events(self) -> None:
        """Each event of the service is documented, with its keys."""
        rows = self.document.rows("watch", 3)
        for word in ServiceEventKind:
            keys = {*re.findall(r"`(\w+)`", rows[word.value][1])}
            self.assertEqual(keys, LOCAL_MORE[word.value], word)


class MessagesTests(DocumentCase, SynchronousTestCase):
    """Messages, and what to do."""

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
        """Each row, also in other documents, is of a message in the code."""
        there = [text.text for text in texts()]
        patterns = [each for document in documents() for each in patternsOf(document)]
        stale = [each for each in patterns if not any(matches(each, text) for text in there)]
        self.assertEqual(stale, [])


class MetricsTests(DocumentCase, SynchronousTestCase):
    """The metrics."""

    name = "docs/reference/metrics.md"

    def test_metrics(self) -> None:
        """Each metric is documented, with its type and its labels."""
        documented = {
            name: cells
            for names, cells in self.document.rows("Metrics", 4).items()
            for name in re.findall(r"usbipshare_\w+", f"{names} {cells[0]}")
        }
        pattern = re.compile(r'"(usbipshare_\w+)"')
        modules = (path.read_text() for path in PACKAGE.rglob("*.py"))
        self.assertEqual(
            {*documented}, {name for text in modules for name in pattern.findall(text)}
        )


class AuditTrailTests(DocumentCase, SynchronousTestCase):
    """The audit trail."""

    name = "docs/reference/audit_trail.md"
    listed = (("Entries", 2, [field.name for field in fieldsOf(audit.Entry)]),)

    def test_audit(self) -> None:
        """The entries in the document are logged for these requests."""
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

    def test_auditResults(self) -> None:
        """Each result is documented."""
        rows = self.document.rows("Entries", 2)
        results = {"done", "failed", *audit.RESULT_OF.values()}
        self.assertEqual({*re.findall("`([a-z_]+)`", rows["result"][1])}, results)


class ExitCodesTests(DocumentCase, SynchronousTestCase):
    """Exit codes."""

    name = "docs/reference/exit_codes.md"

    def test_exits(self) -> None:
        """Each exit code is documented, with its word."""
        _, *rows = self.document.rows("The command usbipshare", 3).items()
        shown = {code: cells[1].strip("`") for code, cells in rows}
        self.assertEqual(shown, {str(each.value): each.word for each in Exit})


class WrongConfigurationsTests(DocumentCase, SynchronousTestCase):
    """Configurations that are refused."""

    name = "tests/docs/wrong_configurations.md"


def shownDefaults(rows: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """The third column, as YAML where it is code."""
    return {
        name: yaml.safe_load(cells[2].strip("`")) if cells[2].startswith("`") else cells[2]
        for name, cells in rows.items()
        if cells[0].startswith("`")
    }


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """C{{"limits": {"connections": 1}}} as C{{"limits.connections": 1}}; C{backend} is whole."""
    return {
        f"{key}.{name}" if name else key: value
        for key, part in config.items()
        for name, value in (
            part.items() if isinstance(part, dict) and key != "backend" else [("", part)]
        )
    }
