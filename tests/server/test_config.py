"""
Tests of L{usbip_server.server.config}.
"""

from __future__ import annotations

import json
from pathlib import Path

from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from usbip_server.backends.virtual import Options
from usbip_server.model.devicerules import Occasion, Share
from usbip_server.model.options import InvalidOption, convert
from usbip_server.runtime.statefile import statePath
from usbip_server.runtime.yamlfile import ConfigError
from usbip_server.server.config import Config, Export, OnStop, Source, load

SHARES = (Share.ALWAYS, Share.NEVER)

WRONG: tuple[tuple[str, ...], ...] = (
    # unknown keys, at whichever depth
    ("listen: [tcp:1]\nlisten_on: 5\n", "2: listen_on: unknown key"),
    ("timeouts:\n  answer: 1\n  bnid: 2\n", "3: timeouts.bnid: unknown key"),
    ("http:\n\n\n  host: [a]\n", "4: http.host: unknown key"),
    ("limits: {requestBytes: 2048}", "1: limits.requestBytes: unknown key"),
    ("Listen: [tcp:1]", "1: Listen: unknown key"),
    ("export: {port: 3240}", "1: export.port: unknown key"),
    # keys that occur twice
    ("http: {}\nlisten: [tcp:1]\nhttp: {}\n", "3: http: occurs twice"),
    ("backend:\n  type: virtual\n  port: 1\n  port: 2\n", "4: backend.port: occurs twice"),
    (
        "backend:\n  devices:\n    - {bus_id: 1-1,\n       bus_id: 1-2}\n",
        "4: backend.devices.0.bus_id: occurs twice",
    ),
    # wrong types
    ("listen: [[]]", "1: listen.0: expected text, got a list"),
    (
        "listen:\n- tcp:1\n- 5055\n",
        "3: listen.1: 5055 is not an endpoint description. Did you mean 'tcp:5055'?",
    ),
    ("timeouts: {answer: fast}", "1: timeouts.answer: expected a number, got text"),
    ("limits:\n  connections: 1.5\n", "2: limits.connections: ", "a whole number"),
    ("limits: {connections: true}", "1: limits.connections: "),
    ("http:\n  hosts: lab\n", "2: http.hosts: "),
    ("http:\n  hosts:\n    - a\n    - [b]\n", "4: http.hosts.1: "),
    ("\n\nbackend: sysfs\n", "3: backend: "),
    ("timeouts:\n", "1: timeouts: "),
    ("listen: [2026-01-01]", "1: listen.0: "),
    ("listen: [2026-99-99]", "1: ", "'2026-99-99' is no timestamp", "quotes"),
    ("export: tcp:3240", "1: export: "),
    ("devices: {match: {desc: x}}\n", "1: devices: expected a list, got a mapping"),
    ("devices:\n  - match: {serial: 7}\n", "2: devices.0.match.serial: expected text"),
    ("state: {file: 5}\n", "1: state.file: "),
    # numbers out of their range
    ("limits: {connections: 0}", "1: limits.connections: ", ">= 1"),
    ("limits: {request_bytes: 5}", "1: limits.request_bytes: ", ">= 1024"),
    ("timeouts: {answer: 0}", "1: timeouts.answer: ", "> 0"),
    ("timeouts: {answer: -1}", "1: timeouts.answer: "),
    ("timeouts: {bind: .inf}", "1: timeouts.bind: "),
    ("timeouts: {bind: .nan}", "1: timeouts.bind: "),
    ("timeouts: {heartbeat: 0}\n", "1: timeouts.heartbeat: "),
    ("export:\n  keepalive: {idle: 0}\n", "2: export.keepalive.idle: "),
    # wrong values
    ("backend: {}", "1: backend.type: is missing"),
    ("backend:\n  port: 5\n", "1: backend.type: is missing"),
    ("\nbackend:\n  port: 5\n  type: 7\n", "4: backend.type: "),
    ("listen: []", "1: listen: nowhere"),
    ("export: on", "1: export: is `off`, or a mapping"),
    ("export: {listen: 3240}", "1: export.listen: 3240 is not an endpoint description."),
    ("export: {listen: []}", "1: export.listen: nowhere to listen: `export: off`"),
    (
        "devices:\n  - match: {desc: x}\n    share: allways\n",
        "3: devices.0.share: invalid enum value 'allways': it is one of always, on_import,",
    ),
    ("hooks:\n  - events: [bond]\n", "2: hooks.0.events.0: invalid enum value 'bond': it"),
    ("on_stop: kep\n", "1: on_stop: invalid enum value 'kep': it is one of keep, unbind"),
    ("devices:\n  - {name: x}\n", "2: devices.0.match: is missing"),
    ("devices:\n  - match: {}\n", "2: devices.0.match: no criterion"),
    ("devices:\n  - match: {desc: x}\n    name: 1-1\n", "2: devices.0: '1-1' is not a"),
    # numbers that are not what they look like
    *(
        (f"devices:\n  - match: {{bus: {text}}}\n", f"2: devices.0.match.bus: {text} is the number")
        for text in ("010", "0x8", "1:30", "1_0", "0b11")
    ),
    # not a mapping of words
    *((text, "1: ") for text in ("- a\n- b\n", "tcp:5055", "5", "null: 5\n", "[a]: 5\n", "5: 6\n")),
    ("hooks:\n  - on: [bound]\n", "2: a key has to be a word (YAML takes on, off"),
    # not YAML, or not all of YAML
    ("listen: [tcp:1\nhttp: {}\n", "2: this is not YAML: "),
    ("listen: [tcp:1]\n\thttp: {}\n", "2: this is not YAML: "),
    ("a: b: c\n", "1: this is not YAML: "),
    ("http: *nobody\n", "1: this is not YAML: "),
    ("http: {}\n---\nhttp: {}\n", "2: this is not YAML: "),
    ("http: {}\nlisten: !!python/name:os.system x\n", "2: this is not YAML: "),
    ("listen: [tcp:1]\n# \x00\n", "2: this is not YAML: "),
    ("limits: &a {connections: 5}\nhttp: {<<: *a}\n", "2: "),
    # nested too deeply
    ("listen: " + "[" * 5000 + "]" * 5000, "1: "),
    ("a: &a [*a]", "1: "),
)
"""Wrong configurations, the beginning of the error, and other parts of it."""


def config(text: str) -> Config:
    """The configuration in a text."""
    return Source("c.yaml", text).config()


class GoodTests(SynchronousTestCase):
    """
    Correct configurations.
    """

    def test_empty(self) -> None:
        """Every key has a default."""
        for text in ("", "# nothing\n", "{}", "---\n"):
            self.assertEqual(config(text), Config())
        self.assertEqual(Config().listen, ("tcp:5055",))
        self.assertEqual(Config().backendType, "sysfs")
        self.assertEqual(Config().timeouts.answer, 1.8)

    def test_everything(self) -> None:
        """Every key has its effect."""
        made = config(
            """
listen: [tcp:5055, "unix:/run/usbipshare"]
backend: {type: virtual, devices: []}
http: {hosts: [lab.example.org]}
limits: {request_bytes: 2048, connections: 5}
timeouts: {request: 1, answer: 0.5, bind: 2, stop: 3}
"""
        )
        self.assertEqual(made.listen, ("tcp:5055", "unix:/run/usbipshare"))
        self.assertEqual(made.backendType, "virtual")
        self.assertEqual(made.backendOptions, {"devices": []})
        self.assertEqual(made.http.hosts, ("lab.example.org",))
        self.assertEqual((made.limits.requestBytes, made.limits.connections), (2048, 5))
        timeouts = made.timeouts
        self.assertEqual(
            (timeouts.request, timeouts.answer, timeouts.bind, timeouts.stop), (1, 0.5, 2, 3)
        )

    def test_anchors(self) -> None:
        """YAML anchors can be used."""
        made = config(
            "backend:\n  type: virtual\n  devices:\n    - &a {bus_id: 1-1}\n    - *a\n"
            "limits: &b {connections: 5}\n"
        )
        self.assertEqual(made.backend["devices"], [{"bus_id": "1-1"}] * 2)

    def test_file(self) -> None:
        """A file is read as UTF-8."""
        path = self.mktemp()
        Path(path).write_bytes("listen: ['unix:/run/bücher']".encode())
        self.assertEqual(load(path).config().listen, ("unix:/run/bücher",))

    def test_formerPlace(self) -> None:
        """
        /etc/usbipshare.yaml is read, with a warning, while /etc/usbipshare/server.yaml is missing
        or has no keys. No other file has such a former place.
        """
        etc = Path(self.mktemp()).absolute()
        new, old = etc / "usbipshare" / "server.yaml", etc / "usbipshare.yaml"
        other, besideOther = etc / "other" / "server.yaml", etc / "other.yaml"
        for path in (new, other):
            path.parent.mkdir(parents=True)
        besideOther.write_text("listen: [tcp:9]")
        with self.assertRaises(ConfigError):
            load(str(other))
        with self.assertRaises(ConfigError):
            load(str(new))
        old.write_text("listen: [tcp:1]")
        for text, port in ((None, 1), ("# no keys\n", 1), ("{}", 1), ("listen: [tcp:2]", 2)):
            if text is not None:
                new.write_text(text)
            with capturedLogs() as events:
                self.assertEqual(load(str(new)).config().listen, (f"tcp:{port}",))
            warned = [formatEvent(event) for event in events]
            expected = f"reading {old}: its place is now {new}"
            if port == 2:
                expected = f"{old} is not read: {new} has keys"
            self.assertEqual(warned, [expected])
        new.write_text("listen: [")
        with self.assertRaises(ConfigError):
            load(str(new))

    def test_hosts(self) -> None:
        """Names as they can stand in a Host header are accepted."""
        names = ("usb", "USB.lab.example.com", "pi.", "my_pi-2.local", "xn--bcher-kva.example", "7")
        self.assertEqual(config(f"http: {{hosts: {json.dumps(names)}}}").http.hosts, names)


class WrongTests(SynchronousTestCase):
    """
    Errors contain the file, the line, the key and the reason, in one line.
    """

    def assertWrong(self, text: str, where: str, *reasons: str) -> None:
        """A configuration is refused with an error that begins and goes on like this."""
        with self.assertRaises(ConfigError) as caught:
            config(text)
        message = str(caught.exception)
        self.assertTrue(message.startswith(f"c.yaml:{where}"), f"{where!r}: {message}")
        for reason in reasons:
            self.assertIn(reason, message)
        self.assertNotIn("\n", message)
        self.assertNotIn("$", message)

    def test_wrong(self) -> None:
        """Everything wrong is reported where it stands."""
        for text, *expected in WRONG:
            self.assertWrong(text, *expected)

    def test_hosts(self) -> None:
        """A host that cannot stand in a Host header is refused."""
        for name in (
            *("usb.lab:5055", "*.lab", "http://x", "", ".", "usb..lab", ".lab", "pi..", "usb lab"),
            *("usb\n", "::1", "bücher.example", "\ud800"),
        ):
            text = f"http:\n  hosts:\n    - usb\n    - {json.dumps(name)}\n"
            self.assertWrong(text, f"4: http.hosts.1: {name!r} is not a host name: letters, ")

    def test_strangeScalars(self) -> None:
        """A value that looks like a date and is none, or has a wrong tag, is refused."""
        for value in (
            *("2026-99-99", "2026-02-30", "!!bool perhaps", "!!int five", '!!int ""'),
            *("!!float much", "!!timestamp now", "!!binary =", "!ours thing"),
        ):
            self.assertWrong(f"http: {{}}\nlisten:\n  - {value}\n", "3: ")

    def test_notUtf8(self) -> None:
        """A file that is not UTF-8 is refused, with the line."""
        path = self.mktemp()
        for data, line in (
            (b"listen: [\xff\xfe]", 1),
            (b"backend: {type: virtual}\n# Gr\xfc\xdfe\n", 2),
            (b"# \xc3\xbc\r\n\r\nlisten: [tcp:0]\rhttp: \xc3", 4),
        ):
            Path(path).write_bytes(data)
            with self.assertRaises(ConfigError) as caught:
                load(path)
            self.assertEqual(str(caught.exception), f"{path}:{line}: it is not UTF-8")

    def test_missing(self) -> None:
        """A file that does not exist is an error, and does not mean the defaults."""
        path = self.mktemp()
        for wrong, reason in ((path, "No such file"), ("/", "directory")):
            with self.assertRaises(ConfigError) as caught:
                load(wrong)
            self.assertIn(f"{wrong}: cannot be read: ", str(caught.exception))
            self.assertIn(reason, str(caught.exception))


class WrongOptionTests(SynchronousTestCase):
    """
    A backend checks its own options, and errors are reported where they stand.
    """

    TEXT = """\
backend:
  type: virtual
  devices:
    - bus_id: 1-1
      size: 64
      kind: inert
    - bus_id: 1-2
      kind: toaster
"""

    def message(self, text: str) -> str:
        """The error in the options for the virtual backend."""
        source = Source("c.yaml", text)
        try:
            convert(source.config().backendOptions, Options)
        except InvalidOption as error:
            return str(source.error(("backend", *error.path), error.reason))
        self.fail("nothing is wrong")

    def test_wrong(self) -> None:
        """The line is that of the key within the list, or of the mapping that lacks it."""
        for old, new, message in (
            ("", "", "c.yaml:8: backend.devices.1.kind: "),
            (
                "bus_id: 1-2\n      kind: toaster",
                "kind: inert",
                "c.yaml:7: backend.devices.1.bus_id: is missing",
            ),
            (
                "kind: toaster",
                "knid: inert",
                "c.yaml:8: backend.devices.1.knid: unknown key. Did you mean 'kind'?",
            ),
            ("size: 64", "size: 5", "c.yaml:5: backend.devices.0.size: "),
        ):
            self.assertTrue(self.message(self.TEXT.replace(old, new, 1)).startswith(message), new)

    def test_absent(self) -> None:
        """The error for an option that is not in the file has the line of what would contain it."""
        source = Source("c.yaml", self.TEXT)
        error = source.error(("backend", "root", "deep"), "is needed")
        self.assertEqual(str(error), "c.yaml:1: backend.root.deep: is needed")


class DevicesTests(SynchronousTestCase):
    """
    Rules for devices, hooks, the state file and the export.
    """

    def test_everything(self) -> None:
        """Rules, hooks and the state file have their effect."""
        made = config(
            """
devices:
  - match: {id: "2341:*", bus: 1, serial: "75*", desc: uno, device_class: "02"}
    name: uno
    share: always
    allow_mounted: true
    hooks:
      - {events: [bound, before_bind], url: "http://localhost:8080/usb", timeout: 2}
  - {match: {device_class: keyboard}, share: never}
hooks:
  - {events: [failed], command: [/usr/bin/logger, -t, usb]}
state: {file: /tmp/state.json, remember: false}
on_stop: unbind
limits: {watch_bytes: 2048, history: 0, hooks: 1}
timeouts: {heartbeat: 5}
"""
        )
        first, second = made.devices
        self.assertEqual((first.name, first.share, second.share), ("uno", *SHARES))
        self.assertEqual(first.hooks[0].events, (Occasion.BOUND, Occasion.BEFORE_BIND))
        self.assertEqual(made.hooks[0].command, ("/usr/bin/logger", "-t", "usb"))
        settings = made.settings
        self.assertEqual(settings.devices, made.devices)
        self.assertEqual(settings.hooks, made.hooks)
        self.assertFalse(settings.remember)
        self.assertIs(settings.onStop, OnStop.UNBIND)
        limits = settings.limits
        self.assertEqual((limits.watchBytes, limits.history, limits.hooks), (2048, 0, 1))
        self.assertEqual(settings.timeouts.heartbeat, 5)

    def test_export(self) -> None:
        """USB/IP is served on port 3240, on another one, or by another program."""
        self.assertEqual(config("").export, Export(listen=("tcp:3240",)))
        self.assertIs(config("export: off").export, False)
        made = config("export: {listen: [tcp:1], keepalive: {idle: 9, user_timeout: 7}}").export
        assert isinstance(made, Export)
        self.assertEqual((made.listen, made.keepalive.idle), (("tcp:1",), 9))
        self.assertEqual((made.keepalive.count, made.keepalive.userTimeout), (3, 7))

    def test_statePath(self) -> None:
        """The state file is where systemd says, or where such files are for root or a user."""
        for file, environment, isRoot, path in (
            (None, {}, True, None),
            ("/x/y", {"STATE_DIRECTORY": "/a"}, True, "/x/y"),
            ("auto", {"STATE_DIRECTORY": "/a:/b"}, False, "/a/state.json"),
            ("auto", {}, True, "/var/lib/usbipshare/state.json"),
            ("auto", {"HOME": "/h"}, False, "/h/.local/state/usbipshare/state.json"),
            ("auto", {"HOME": "/h", "XDG_STATE_HOME": "/s"}, False, "/s/usbipshare/state.json"),
        ):
            self.assertEqual(statePath(file, environment, isRoot), path)
        self.assertEqual(statePath("auto", {}, True, "a", "b"), "/var/lib/b/a")
