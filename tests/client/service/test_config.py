"""
Tests of L{usbip_server.client.service.config}, and of C{client.example.yaml}.
"""

from __future__ import annotations

import grp
import re
from pathlib import Path

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from tests.support.certificates import LAB, authority, signed
from tests.test_packaging import PROJECT, keysOf
from usbip_server.client.config import Entry
from usbip_server.client.selection import Selector
from usbip_server.client.servers import ClientTls
from usbip_server.client.service.config import (
    ClientHook,
    DeviceRule,
    HookEvent,
    OnStop,
    ServiceConfig,
    ServiceFile,
    SocketConfig,
    load,
)
from usbip_server.runtime.yamlfile import ConfigError

TOKEN_FILE = re.compile(r"^ *token_file:.*\n", re.MULTILINE)


def config(text: str) -> ServiceConfig:
    """Read a configuration."""
    file = ServiceFile("s.yaml", text)
    found = file.config()
    file.known(found)
    return found


class GoodTests(SynchronousTestCase):
    """
    Valid configurations.
    """

    def test_empty(self) -> None:
        """An empty file is valid: every key has a default."""
        self.assertEqual(config(""), ServiceConfig())

    def test_criteria(self) -> None:
        """A rule selects by criteria, by a word, or by its own name."""
        for said, wanted in (
            ("serial: X, id: '2341:*'", Selector(serial="X", id="2341:*")),
            ("bus: 1", Selector(bus=1)),
            ("word: Laser", Selector(word="Laser")),
            ("symlink: false", Selector(id="it")),
        ):
            (rule,) = config(f"devices: [{{name: it, {said}}}]").devices
            self.assertEqual(rule.selector, wanted)

    def test_hooks(self) -> None:
        """A hook receives both events unless it names some."""
        hooks = "[{command: [/bin/true]}, {events: [lost], url: 'http://a'}]"
        first, second = config(f"devices: [{{name: it, hooks: {hooks}}}]").devices[0].hooks
        self.assertEqual(first.events, (HookEvent.ATTACHED, HookEvent.LOST))
        self.assertEqual((second.events, str(second)), ((HookEvent.LOST,), "http://a"))

    def test_socket(self) -> None:
        """The mode is 0660, or 0666 if users or groups are configured."""
        self.assertEqual(SocketConfig().permissions, 0o660)
        self.assertEqual(SocketConfig(allowUids=(5,)).permissions, 0o666)
        self.assertEqual(SocketConfig(allowGids=(5,), mode="0600").permissions, 0o600)
        group = grp.getgrgid(0).gr_name
        self.assertEqual(config(f"socket: {{group: {group}}}").socket.groupId(), 0)
        self.assertEqual(config("socket: {group: 17}").socket.groupId(), 17)

    def test_servers(self) -> None:
        """Servers have the keys of C{client.yaml}."""
        file = ServiceFile("s.yaml", "servers: {a: {}, lab: {range: 192.0.2.1-3}}")
        known = file.known(file.config()).known
        names = [server.name for server in known["lab"]]
        self.assertEqual(names, ["192.0.2.1", "192.0.2.2", "192.0.2.3"])

    def test_file(self) -> None:
        """A file that cannot be read is an error."""
        path = Path(self.mktemp())
        path.write_text("on_stop: detach")
        self.assertEqual(load(str(path)).config().onStop, OnStop.DETACH)
        self.assertRaises(ConfigError, load, f"{path}.not")


class WrongTests(SynchronousTestCase):
    """
    Errors have the file, the line, the key and a reason.
    """

    def assertWrong(self, text: str, where: str, reason: str) -> None:
        """A text has an error at this place, with this reason."""
        error = self.assertRaises(ConfigError, config, text)
        self.assertTrue(str(error).startswith(f"s.yaml:{where}"), str(error))
        self.assertIn(reason, str(error))

    def test_keys(self) -> None:
        """An unknown key, a wrong type, a value out of range."""
        self.assertWrong("server: {}", "1: server: ", "unknown key")
        self.assertWrong("socket: {mode: 0660}", "1: socket.mode: ", "text")
        self.assertWrong("socket: {mode: rw}", "1: socket", "in quotes")
        self.assertWrong("on_stop: unbind", "1: on_stop: ", "keep, detach")
        self.assertWrong("retry: {first: 0}", "1: retry.first: ", "> 0")
        self.assertWrong("retry: {first: 50}", "1: retry.first: ", "longer than `longest`")
        self.assertWrong("socket: {group: no-such-group}", "1: socket.group: ", "no group")

    def test_rules(self) -> None:
        """Invalid rules, and rules with the same name."""
        for said, where, reason in (
            ("serial: X", "2: devices.0", "name"),
            ("name: ../x", "2: devices.0", "is not a name"),
            ("name: 1-1", "2: devices.0", "no bus id"),
            ("name: x, word: y, bus: 1", "2: devices.0", "exclude each other"),
            ("name: x, serial: ''", "2: devices.0", "is empty"),
            ("name: x, serial:", "2: devices.0.serial", "text"),
            ("name: x, servers: [a, b]", "2: devices.0.servers.1: ", "not configured at"),
            ("name: x, hooks: [{events: [lots], url: 'http://a'}]", "2: ", "attached, lost"),
            ("name: x, hooks: [{}]", "2: devices.0.hooks.0", "either"),
        ):
            self.assertWrong(f"servers: {{a: {{}}}}\ndevices: [{{{said}}}]", where, reason)
        self.assertWrong(
            "devices:\n- name: a\n- name: a\n", "3: devices.1.name: ", "already the name"
        )
        self.assertWrong("devices:\n- name: a\n- name: a-1\n", "3: devices.1.name: ", "symlinks")

    def test_servers(self) -> None:
        """Invalid servers, and stock C{usbipd}, which sends no events."""
        self.assertWrong("servers: {a: {port: 0}}", "1: servers.a.port: ", ">= 1")
        self.assertWrong("servers:\n  a: {stock: true}", "2: servers.a.stock: ", "stock usbipd")
        said = "servers:\n  a: {tls: {ca: /nowhere.pem}}"
        self.assertWrong(said, "2: servers.a.tls.ca: ", "/nowhere.pem cannot be read: No such file")


class ExampleTests(SynchronousTestCase):
    """
    C{client.example.yaml} shows every key with its default.
    """

    def setUp(self) -> None:
        self.text = (PROJECT / "client.example.yaml").read_text()

    def commented(self, key: str) -> str:
        """The commented block of a key, without the C{#}."""
        (block,) = re.findall(rf"^# {key}:\n(?:#   .*\n)+", self.text, re.MULTILINE)
        return re.sub("^# ", "", block, flags=re.MULTILINE)

    def test_defaults(self) -> None:
        """The file has the default values."""
        self.assertEqual(config(self.text), ServiceConfig())

    def test_complete(self) -> None:
        """The file has every key."""
        paths = {".".join(map(str, path)) for path in ServiceFile("example", self.text)._lines}
        self.assertLessEqual({*keysOf(ServiceConfig)}, paths)

    def test_long(self) -> None:
        """The commented blocks are valid, and have every key."""
        servers, devices = self.commented("servers"), self.commented("devices")
        folder = self.mktemp()
        authority(LAB).write(folder, "ca")
        signed("bench").write(folder, "bench")
        here = servers.replace("/etc/usbipshare", str(Path(folder).absolute()))
        found = config(TOKEN_FILE.sub("", here) + devices)
        self.assertEqual(found.devices[0].selector, Selector(id="scratch-disk"))
        for kind, text in (
            (Entry, servers),
            (ClientTls, servers),
            (DeviceRule, devices),
            (ClientHook, devices),
        ):
            for field in msgspec.structs.fields(kind):
                if field.encode_name != "stock":  # there are none
                    self.assertRegex(text, rf"[ {{]{field.encode_name}:")

    def test_comments(self) -> None:
        """Each key has a comment where it first occurs."""
        seen = set()
        for line in self.text.splitlines():
            found = re.match(r"(?:# )? *(?:- )?([a-z_]+):(?: |$)(.*)", line)
            if found and found[1] not in seen:
                seen.add(found[1])
                if found[1] not in ("bench", "lab"):
                    self.assertIn("#", found[2], line)
        self.assertIn("export_port", seen)
