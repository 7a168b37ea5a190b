"""
Tests of L{usbip_server.server.config}.
"""

from __future__ import annotations

import json
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from usbip_server.backends.virtual import Options
from usbip_server.model.devicerules import Occasion, Share
from usbip_server.model.options import InvalidOption, convert
from usbip_server.runtime.statefile import statePath
from usbip_server.runtime.yamlfile import ConfigError
from usbip_server.server.config import Config, Export, OnStop, Source, load

SHARES = (Share.ALWAYS, Share.NEVER)
RIGHT_SHARES = "3: devices.0.share: invalid enum value 'allways': it is one of always, on_import,"


def config(text: str) -> Config:
    """The configuration that a text is."""
    return Source("c.yaml", text).config()


class GoodTests(SynchronousTestCase):
    """
    What is right.
    """

    def test_empty(self) -> None:
        """Every key has a default."""
        for text in ("", "# nothing\n", "{}", "---\n"):
            self.assertEqual(config(text), Config())
        self.assertEqual(Config().listen, ("tcp:5055",))
        self.assertEqual(Config().backendType, "sysfs")
        self.assertEqual(Config().timeouts.answer, 1.8)

    def test_everything(self) -> None:
        """Every key is taken."""
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
        """What is written once can be used twice."""
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

    def test_hosts(self) -> None:
        """Names as they can stand in a Host header are taken."""
        names = ("usb", "USB.lab.example.com", "pi.", "my_pi-2.local", "xn--bcher-kva.example", "7")
        self.assertEqual(config(f"http: {{hosts: {json.dumps(names)}}}").http.hosts, names)


class WrongTests(SynchronousTestCase):
    """
    What is wrong is said with file, line, key and reason.
    """

    def assertWrong(self, text: str, where: str, *reasons: str) -> None:
        """The text is wrong there, for these reasons, in one line."""
        with self.assertRaises(ConfigError) as caught:
            config(text)
        message = str(caught.exception)
        self.assertTrue(message.startswith(f"c.yaml:{where}"), f"{where!r}: {message}")
        for reason in reasons:
            self.assertIn(reason, message)
        self.assertNotIn("\n", message)
        self.assertNotIn("$", message)

    def test_unknownKey(self) -> None:
        """An unknown key is not passed over, at whichever depth."""
        self.assertWrong("listen: [tcp:1]\nlisten_on: 5\n", "2: listen_on: unknown key")
        self.assertWrong("timeouts:\n  answer: 1\n  bnid: 2\n", "3: timeouts.bnid: unknown key")
        self.assertWrong("http:\n\n\n  host: [a]\n", "4: http.host: unknown key")
        self.assertWrong("limits: {requestBytes: 2048}", "1: limits.requestBytes: unknown key")
        self.assertWrong("Listen: [tcp:1]", "1: Listen: unknown key")

    def test_duplicateKey(self) -> None:
        """A key that stands there twice is not silently the last one."""
        self.assertWrong("http: {}\nlisten: [tcp:1]\nhttp: {}\n", "3: http: occurs twice")
        self.assertWrong(
            "backend:\n  type: virtual\n  port: 1\n  port: 2\n",
            "4: backend.port: occurs twice",
        )
        self.assertWrong(
            "backend:\n  devices:\n    - {bus_id: 1-1,\n       bus_id: 1-2}\n",
            "4: backend.devices.0.bus_id: occurs twice",
        )

    def test_wrongType(self) -> None:
        """So is a wrong type."""
        self.assertWrong("listen: [[]]", "1: listen.0: expected text, got a list")
        self.assertWrong(
            "listen:\n- tcp:1\n- 5055\n",
            "3: listen.1: 5055 is not an endpoint description. Did you mean 'tcp:5055'?",
        )
        self.assertWrong(
            "timeouts: {answer: fast}", "1: timeouts.answer: expected a number, got text"
        )
        self.assertWrong(
            "limits:\n  connections: 1.5\n", "2: limits.connections: ", "a whole number"
        )
        self.assertWrong("http:\n  hosts: lab\n", "2: http.hosts: ")
        self.assertWrong("http:\n  hosts:\n    - a\n    - [b]\n", "4: http.hosts.1: ")
        self.assertWrong("\n\nbackend: sysfs\n", "3: backend: ")
        self.assertWrong("timeouts:\n", "1: timeouts: ")
        self.assertWrong("limits: {connections: true}", "1: limits.connections: ")

    def test_outOfRange(self) -> None:
        """So is a number that is out of its range."""
        self.assertWrong("limits: {connections: 0}", "1: limits.connections: ", ">= 1")
        self.assertWrong("limits: {request_bytes: 5}", "1: limits.request_bytes: ", ">= 1024")
        self.assertWrong("timeouts: {answer: 0}", "1: timeouts.answer: ", "> 0")
        self.assertWrong("timeouts: {answer: -1}", "1: timeouts.answer: ")
        self.assertWrong("timeouts: {bind: .inf}", "1: timeouts.bind: ")
        self.assertWrong("timeouts: {bind: .nan}", "1: timeouts.bind: ")

    def test_backend(self) -> None:
        """A backend needs a type."""
        self.assertWrong("backend: {}", "1: backend.type: is missing")
        self.assertWrong("backend:\n  port: 5\n", "1: backend.type: is missing")
        self.assertWrong("\nbackend:\n  port: 5\n  type: 7\n", "4: backend.type: ")

    def test_hosts(self) -> None:
        """A host that no Host header could ever name is a mistake."""
        for name in (
            "usb.lab:5055",
            "*.lab",
            "http://x",
            "",
            ".",
            "usb..lab",
            ".lab",
            "pi..",
            "usb lab",
            "usb\n",
            "::1",
            "bücher.example",
            "\ud800",
        ):
            text = f"http:\n  hosts:\n    - usb\n    - {json.dumps(name)}\n"
            self.assertWrong(text, f"4: http.hosts.1: {name!r} is not a host name: letters, ")

    def test_nowhere(self) -> None:
        """To listen nowhere is a mistake."""
        self.assertWrong("listen: []", "1: listen: nowhere")

    def test_notMapping(self) -> None:
        """A file that is no mapping is none of ours."""
        for text in ("- a\n- b\n", "tcp:5055", "5", "null: 5\n", "[a]: 5\n", "5: 6\n"):
            self.assertWrong(text, "1: ")

    def test_notYaml(self) -> None:
        """What is not YAML is said to be none, with its line."""
        self.assertWrong("listen: [tcp:1\nhttp: {}\n", "2: this is not YAML: ")
        self.assertWrong("listen: [tcp:1]\n\thttp: {}\n", "2: this is not YAML: ")
        self.assertWrong("a: b: c\n", "1: this is not YAML: ")
        self.assertWrong("http: *nobody\n", "1: this is not YAML: ")
        self.assertWrong("http: {}\n---\nhttp: {}\n", "2: this is not YAML: ")
        self.assertWrong("http: {}\nlisten: !!python/name:os.system x\n", "2: this is not YAML: ")
        self.assertWrong("listen: [tcp:1]\n# \x00\n", "2: this is not YAML: ")

    def test_strangeScalars(self) -> None:
        """A value that looks like a date and is none, or is tagged as what it is not, is said
        to be wrong where it stands."""
        for value in (
            "2026-99-99",
            "2026-02-30",
            "!!bool perhaps",
            "!!int five",
            '!!int ""',
            "!!float much",
            "!!timestamp now",
            "!!binary =",
            "!ours thing",
        ):
            self.assertWrong(f"http: {{}}\nlisten:\n  - {value}\n", "3: ")
        self.assertWrong("listen: [2026-99-99]", "1: ", "'2026-99-99' is no timestamp", "quotes")

    def test_dateIsNoText(self) -> None:
        """A real date is of a wrong type, too."""
        self.assertWrong("listen: [2026-01-01]", "1: listen.0: ")

    def test_deep(self) -> None:
        """A file that is nested too deeply is a mistake, not a crash."""
        self.assertWrong("listen: " + "[" * 5000 + "]" * 5000, "1: ")
        self.assertWrong("a: &a [*a]", "1: ")

    def test_mergeKey(self) -> None:
        """The merge key of YAML 1.1 is not taken."""
        self.assertWrong("limits: &a {connections: 5}\nhttp: {<<: *a}\n", "2: ")

    def test_notUtf8(self) -> None:
        """A file that is not UTF-8 is a mistake."""
        path = self.mktemp()
        Path(path).write_bytes(b"listen: [\xff\xfe]")
        with self.assertRaises(ConfigError) as caught:
            load(path)
        self.assertEqual(str(caught.exception), f"{path}:1: it is not UTF-8")

    def test_missing(self) -> None:
        """A file that is not there is a mistake, and not the defaults."""
        path = self.mktemp()
        for wrong, reason in ((path, "No such file"), ("/", "directory")):
            with self.assertRaises(ConfigError) as caught:
                load(wrong)
            self.assertIn(f"{wrong}: cannot be read: ", str(caught.exception))
            self.assertIn(reason, str(caught.exception))


class WrongOptionTests(SynchronousTestCase):
    """
    A backend checks its own options, and the mistake is said where it stands.
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
        """What is wrong with the options for the virtual backend."""
        source = Source("c.yaml", text)
        try:
            convert(source.config().backendOptions, Options)
        except InvalidOption as error:
            return str(source.error(("backend", *error.path), error.reason))
        self.fail("nothing is wrong")

    def test_nested(self) -> None:
        """The line is that of the key within the list."""
        self.assertTrue(
            self.message(self.TEXT).startswith("c.yaml:8: backend.devices.1.kind: "),
            self.message(self.TEXT),
        )

    def test_missing(self) -> None:
        """What is missing is missed where it should stand."""
        text = self.TEXT.replace("bus_id: 1-2\n      kind: toaster", "kind: inert")
        self.assertEqual(self.message(text), "c.yaml:7: backend.devices.1.bus_id: is missing")

    def test_unknown(self) -> None:
        """What is unknown is shown."""
        text = self.TEXT.replace("kind: toaster", "knid: inert")
        self.assertEqual(
            self.message(text),
            "c.yaml:8: backend.devices.1.knid: unknown key. Did you mean 'kind'?",
        )

    def test_range(self) -> None:
        """So is what is out of its range."""
        text = self.TEXT.replace("size: 64", "size: 5")
        self.assertTrue(self.message(text).startswith("c.yaml:5: backend.devices.0.size: "))

    def test_absent(self) -> None:
        """An option that does not stand in the file is blamed on what would hold it."""
        source = Source("c.yaml", self.TEXT)
        error = source.error(("backend", "root", "deep"), "is needed")
        self.assertEqual(str(error), "c.yaml:1: backend.root.deep: is needed")


class DevicesTests(SynchronousTestCase):
    """
    What is said of devices, and what is remembered.
    """

    def test_everything(self) -> None:
        """Rules, hooks and the state file are taken."""
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

    def test_wrong(self) -> None:
        """What is wrong is said where it stands, and what there is to choose from."""
        for text, message in (
            ("devices:\n  - match: {desc: x}\n    share: allways\n", RIGHT_SHARES),
            ("hooks:\n  - events: [bond]\n", "2: hooks.0.events.0: invalid enum value 'bond': it"),
            ("on_stop: kep\n", "1: on_stop: invalid enum value 'kep': it is one of keep, unbind"),
            ("hooks:\n  - on: [bound]\n", "2: a key has to be a word (YAML takes on, off"),
            ("devices:\n  - {name: x}\n", "2: devices.0.match: is missing"),
            ("devices:\n  - match: {}\n", "2: devices.0.match: no criterion"),
            ("devices:\n  - match: {desc: x}\n    name: 1-1\n", "2: devices.0: '1-1' is not a"),
            ("devices:\n  - match: {serial: 7}\n", "2: devices.0.match.serial: expected text"),
            ("devices: {match: {desc: x}}\n", "1: devices: expected a list, got a mapping"),
            ("state: {file: 5}\n", "1: state.file: "),
            ("timeouts: {heartbeat: 0}\n", "1: timeouts.heartbeat: "),
        ):
            with self.assertRaises(ConfigError) as caught:
                config(text)
            self.assertIn(f"c.yaml:{message}", str(caught.exception))

    def test_export(self) -> None:
        """USB/IP is served on its usual port, elsewhere, or by somebody else."""
        self.assertEqual(config("").export, Export(listen=("tcp:3240",)))
        self.assertIs(config("export: off").export, False)
        made = config("export: {listen: [tcp:1], keepalive: {idle: 9, user_timeout: 7}}").export
        assert isinstance(made, Export)
        self.assertEqual((made.listen, made.keepalive.idle), (("tcp:1",), 9))
        self.assertEqual((made.keepalive.count, made.keepalive.userTimeout), (3, 7))
        for text, message in (
            ("export: on", "1: export: is `off`, or a mapping"),
            ("export: {listen: 3240}", "1: export.listen: 3240 is not an endpoint description."),
            ("export: {listen: []}", "1: export.listen: nowhere to listen: `export: off`"),
            ("export:\n  keepalive: {idle: 0}\n", "2: export.keepalive.idle: "),
            ("export: {port: 3240}", "1: export.port: unknown key"),
            ("export: tcp:3240", "1: export: "),
        ):
            with self.assertRaises(ConfigError) as caught:
                config(text)
            self.assertIn(f"c.yaml:{message}", str(caught.exception))

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
