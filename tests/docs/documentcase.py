"""Tests that apply to each document. L{tests.docs.documents} describes the kinds of blocks."""

from __future__ import annotations

import configparser
import contextlib
import json
import re
import shlex
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import yaml
from msgspec import NODEFAULT, convert, structs
from msgspec.json import encode
from twisted.trial.unittest import SkipTest

from tests.docs.clientexamples import checkPrinted, checkTyped, isPrinted
from tests.docs.documents import KINDS, ROOT, Document
from tests.docs.examples import EXECUTED, ExampleRunner
from tests.support.childdaemon import EXPORT, PatientDaemon
from usbip_server.model.device import UsbDevice
from usbip_server.model.inventory import ChangeKind
from usbip_server.model.replies import encodeDevices
from usbip_server.model.requests import decode
from usbip_server.server.access.audit import Entry
from usbip_server.tap import Options

if TYPE_CHECKING:
    from twisted.trial.unittest import SynchronousTestCase as Base
else:
    Base = object

PROGRAMS = {
    *("ln", "."),
    *("apt-get", "chgrp", "chmod", "curl", "echo", "install", "journalctl", "ls", "make"),
    *("modprobe", "nc", "openssl", "pip", "podman", "python", "python3", "rm", "ss", "ssh"),
    *("systemctl", "tee", "twistd", "udevadm", "ufw", "useradd", "userdel", "usbip", "usbipshare"),
}
"""What transcripts may call."""

KEYS_OF = {
    "success": {"status", "data"},
    "failure": {"status", "data", "message"},
    "error": {"status", "message"},
    "not_found": {"status", "message"},
    "multiple_matches": {"status", "message"},
}

WATCHED = {"status", "seq", "data"}
"""Keys of the answer to C{watch}; with C{since} there is no C{data}."""

NOTICE = {"event", "time"}
"""Keys of each line that is not an answer."""

MORE_OF = {
    **{kind.value: {"seq", "data"} for kind in ChangeKind},
    "imported": {"seq", "data", "holder"},
    "released": {"seq", "data", "holder"},
    "lease": {"seq", "data", "lease"},
    "heartbeat": {"seq"},
    "queued": {"data", "place", "message"},
    "failed": {"data", "message"},
    "before_bind": {"data", "message"},
}
"""The other keys of such a line, by its C{event}."""

MISSING = {"lease": {"lease"}, "heartbeat": {"seq"}, "queued": {"data", "place"}}
"""Those of them that are optional."""

ANY = UsbDevice(busId="1-1", vendorId="0000", productId="0000", description="any")
FIELDS = set(json.loads(bytes(encodeDevices(ANY, detail=False))))
SOMETIMES = {"classes", "unknown"}
"""The fields of a device that only some devices have."""

DETAILS = set(json.loads(bytes(encodeDevices(ANY, detail=True)))) - FIELDS

LOCAL = ("README.md", "docs/tutorial.md")
"""Documents whose examples have no client.yaml, so that the server is C{localhost}."""

COMMAND_LINE: Any = Options()


class DocumentCase(Base):
    """Tests that apply to each document.

    @cvar name: the path of the document in the repository.
    @cvar listed: headings, the number of columns of the tables below each, and the names in their
        first column, in order, or a set."""

    name: str
    listed: ClassVar[tuple[tuple[str, int, Collection[str]], ...]] = ()

    def setUp(self) -> None:
        self.document = Document(ROOT / self.name)

    def checkJson(self, where: str, text: str) -> None:
        """See L{checkJson}."""
        checkJson(where, text)

    @contextlib.contextmanager
    def runner(self, folder: Path) -> Iterator[ExampleRunner]:
        """Start what executes the examples."""
        if {block.kind for block in self.document.blocks} & {*EXECUTED} == {"yaml"}:
            yield ExampleRunner(None, folder)
            return
        with PatientDaemon(f"backend: {{type: virtual}}\n{EXPORT}") as daemon:
            yield ExampleRunner(daemon, folder, "localhost" if self.name in LOCAL else "raspi")

    def checkKeys(
        self, heading: str, columns: int, *kinds: type[Any], defaults: bool = True
    ) -> None:
        """Assert that the tables below a heading have a row for each key of these structs, and no
        others.

        @param columns: of the tables.
        @param defaults: the third column shows the default of each key."""
        rows = self.document.rows(heading, columns)
        told = {name: cells for name, cells in rows.items() if cells[0].startswith("`")}
        fields = {field.encode_name: field for kind in kinds for field in fieldsOf(kind)}
        self.assertEqual(told.keys(), fields.keys(), heading)
        for name, field in fields.items() if defaults else ():
            cell = told[name][2].strip("`")
            if field.required:
                self.assertEqual(cell, "required", name)
            else:
                self.assertEqual(yaml.safe_load(cell), plain(defaultOf(field)), name)

    def test_listed(self) -> None:
        """Tables have a row for each command, key, state or code that exists, and no others."""
        for heading, columns, names in self.listed:
            _, *rows = self.document.rows(heading, columns).items()
            shown = [name for name, _ in rows]
            if isinstance(names, set):
                self.assertEqual(({*shown}, len(shown)), (names, len(names)), heading)
            else:
                self.assertEqual(shown, [*names], heading)

    def test_kinds(self) -> None:
        """Each block is of a kind that is tested."""
        for block in self.document.blocks:
            self.assertIn(block.kind, KINDS, block.where)
            self.assertNotEqual(block.text, "", block.where)

    def test_json(self) -> None:
        """JSON in examples and prose is a valid request, answer or event."""
        for block in self.document.blocks:
            for line in block.text.splitlines() if block.kind != "python" else ():
                if not line.startswith(">"):  # a request; the answer shows whether it is valid
                    for text in re.findall(r'\{"\w+":.*\}', line):
                        self.checkJson(block.where, text)
        for span in self.document.spans():
            if span.startswith('{"'):
                self.checkJson(self.name, span)

    def test_links(self) -> None:
        """Links lead to files and headings that are there."""
        for link in self.document.links():
            if link.startswith("https://"):
                continue
            path, _, heading = link.partition("#")
            target = (self.document.path.parent / path) if path else self.document.path
            self.assertTrue(target.exists(), link)
            self.assertTrue(target.resolve().is_relative_to(ROOT), link)
            if heading:
                self.assertIn(heading, Document(target.resolve()).anchors(), link)

    def test_transcripts(self) -> None:
        """Transcripts call only known programs, with existing options."""
        for block in self.document.blocks:
            if block.kind == "console":
                commands = block.commands()
                self.assertNotEqual(commands, [], block.where)
                for command in commands:
                    checkCommand(block.where, command)

    def test_units(self) -> None:
        """Parts of systemd units can be parsed."""
        for block in self.document.blocks:
            if block.kind == "ini":
                parser = configparser.ConfigParser(strict=False, interpolation=None)
                parser.read_string(block.text, block.where)
                self.assertLessEqual({*parser.sections()}, {"Unit", "Service", "Install"})

    def test_examples(self) -> None:
        """Examples are accepted, and print the output that is shown."""
        blocks = [block for block in self.document.blocks if block.kind in EXECUTED]
        if not blocks:
            return
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        with self.runner(folder) as runner:
            for block in blocks:
                runner.execute(block)
        if runner.missing:
            raise SkipTest(f"not all examples: apt-get install {' '.join(sorted(runner.missing))}")


def fieldsOf(kind: type[Any]) -> tuple[Any, ...]:
    """The keys of a struct."""
    return structs.fields(kind)


def defaultOf(field: Any) -> Any:
    """The value of a key that is not given."""
    return field.default if field.default_factory is NODEFAULT else field.default_factory()


def plain(value: Any) -> Any:
    """A struct or a value as it would stand in a file."""
    return json.loads(encode(value))


def checkJson(where: str, text: str) -> None:
    """Assert that a text is a request, or an answer or event with the right keys."""
    value = json.loads(text)
    if isPrinted(value):
        checkPrinted(where, value, FIELDS | DETAILS)
        return
    if "who" in value:
        convert(value, Entry)
        return
    if "command" in value:
        decode(text.encode())
        return
    if "event" in value:
        kind = value["event"]
        there = set(value) | MISSING.get(kind, set())
        assert there == NOTICE | MORE_OF[kind] | MISSING.get(kind, set()), f"{where}: {text}"
    elif "seq" in value:
        assert set(value) | {"data"} == WATCHED and value["status"] == "success", f"{where}: {text}"
    else:
        assert set(value) - {"code"} == KEYS_OF.get(value.get("status")), f"{where}: {text}"
    data = value.get("data", [])
    for device in data if isinstance(data, list) else [data]:
        assert set(device) in (FIELDS, FIELDS | DETAILS), f"{where}: {device}"
    assert isinstance(value.get("message", ""), str), f"{where}: {text}"


def checkCommand(where: str, command: str) -> None:
    """Assert that a command calls known programs, and ours with existing options."""
    words = shlex.shlex(command, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    first = True
    called: list[str] = []
    for word in words:
        if set(word) <= set("|&;"):
            first = True
        elif first and word != "sudo":
            called.append(word.rpartition("/")[2])
            first = False
    assert set(called) <= PROGRAMS, f"{where}: {called}"
    if "usbipshare" in called:
        checkTyped(where, command)
    if "twistd" in called and "usbipshare" in command.split():
        known = [f"--{option.rstrip('=')}" for option in COMMAND_LINE.longOpt]
        for option in re.findall(r"--[\w-]+", command.partition(" usbipshare")[2]):
            assert option in known, f"{where}: {option}"
