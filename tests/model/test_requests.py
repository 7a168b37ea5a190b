"""
Tests of L{usbip_server.model.requests}.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from usbip_server.model.criteria import CRITERIA, LONGEST_CRITERION, describe, given
from usbip_server.model.errors import InvalidRequest
from usbip_server.model.requests import (
    COMMANDS,
    AttachDevice,
    DetachDevice,
    DeviceRequest,
    FindDevice,
    ListDevices,
    Request,
    decode,
)


def subclasses(kind: type[Any]) -> set[type[Any]]:
    """All classes beneath a class."""
    return {found for child in kind.__subclasses__() for found in {child} | subclasses(child)}


class GoodTests(SynchronousTestCase):
    """
    Valid requests.
    """

    def test_decoded(self) -> None:
        """C{list} needs no more keys; the others have criteria, of which one is enough. C{null}
        means absent, blanks and line feeds do not matter, and any language is possible."""
        every: dict[str, Any] = {"id": "1-1", "bus": 1, "serial": "a", "desc": "b", "path": "*"}
        cases: list[tuple[str, Request]] = [
            ('{"command":"list"}', ListDevices()),
            (' {\n "command" : "list"\r\n}\r', ListDevices()),
            ('{"command":"find","desc":"Tästatur"}', FindDevice(desc="Tästatur")),
        ]
        for word, kind in (
            ("find", FindDevice),
            ("attach", AttachDevice),
            ("detach", DetachDevice),
        ):
            request = json.dumps({"command": word, **every, "first": True})
            cases.append((request, kind(**every, first=True)))
        for key in CRITERIA:
            request = json.dumps({"command": "find", **dict.fromkeys(CRITERIA), key: "1-1"})
            cases.append((request, msgspec.convert({key: "1-1"}, FindDevice)))
        for bus in (1, "1", "1-1.4", 0):
            cases.append((json.dumps({"command": "find", "bus": bus}), FindDevice(bus=bus)))
        for text, command in cases:
            self.assertEqual(decode(text.encode()), command)
        for rest in ('"command":"list"', '"command":"find","id":"1-1"'):
            decoded = decode(b'{%s,"detail":true,"keep_alive":true}' % rest.encode())
            self.assertTrue(decoded.detail and decoded.keep_alive)
        nothing = b'{"command":"find","id":"1-1","bus":null,"serial":null,"desc":null'
        found = decode(nothing + b',"first":null,"detail":null,"keep_alive":null}')
        assert isinstance(found, FindDevice)
        self.assertFalse(found.first or found.detail or found.keep_alive)
        self.assertEqual(describe(given(found)), "id='1-1'")

    def test_durations(self) -> None:
        """A duration is a number of seconds, or a text with units."""
        for text, expected in (
            *(("600", 600.0), ("0.5", 0.5), ('"10m"', 600.0), ('"1h 30m"', 5400.0)),
            *(('"90 s"', 90.0), ('"250ms"', 0.25), ('"0.5h"', 1800.0), ('" 1d "', 86400.0)),
        ):
            request = '{"command":"attach","id":"1-1","wait":%s,"lease":{"owner":"a","ttl":%s}}'
            command = decode((request % (text, text)).encode())
            assert isinstance(command, AttachDevice) and command.lease is not None
            self.assertEqual((command.waitSeconds, command.lease.ttl), (expected, expected))
            self.assertEqual(decode(msgspec.json.encode(command)), command)
        forever = decode(b'{"command":"attach","id":"1","lease":{"owner":"a","ttl":"connection"}}')
        assert isinstance(forever, AttachDevice) and forever.lease is not None
        self.assertEqual((forever.lease.ttl, forever.waitSeconds), ("connection", 0.0))

    def test_everyCommand(self) -> None:
        """C{COMMANDS} has the names of all requests."""
        words = {
            kind.__struct_config__.tag
            for kind in subclasses(Request)
            if kind.__module__ == Request.__module__ and kind not in (Request, DeviceRequest)
        }
        self.assertEqual(words, set(COMMANDS))

    def test_describe(self) -> None:
        """In a message a request is shown as its criteria."""
        self.assertEqual(
            describe(given(FindDevice(bus=1, desc="Uno", first=True))), "bus=1, desc='Uno'"
        )


class BadTests(SynchronousTestCase):
    """
    Invalid requests.
    """

    def refused(self, raw: bytes) -> str:
        """The message that a request is refused with: one short line."""
        with self.assertRaises(InvalidRequest) as caught:
            decode(raw)
        message = str(caught.exception)
        self.assertNotIn("\n", message)
        self.assertNotIn("$", message)
        self.assertLess(len(message), 1000)
        return message

    def test_namesTheKey(self) -> None:
        """A message names the key that is wrong."""
        for raw, key in (
            (b"{}", "command"),
            (b'{"command":"reboot"}', "command"),
            (b'{"command":7}', "command"),
            (b'{"command":"find","id":7}', "id"),
            (b'{"command":"find","bus":1.5}', "bus"),
            (b'{"command":"find","bus":false}', "bus"),
            (b'{"command":"find","serial":{}}', "serial"),
            (b'{"command":"find","desc":[]}', "desc"),
            (b'{"command":"find","id":"1-1","first":"yes"}', "first"),
            (b'{"command":"list","detail":0}', "detail"),
            (b'{"command":"list","keep_alive":1}', "keep_alive"),
            (b'{"command":"list","first":true}', "first"),
            (b'{"command":"find","id":"1-1","ID":"1-1"}', "ID"),
            (b'{"command":"find","serial":""}', "serial"),
            (b'{"command":"find","desc":"  "}', "desc"),
        ):
            self.assertIn(f"`{key}`", self.refused(raw), raw)

    def test_wrongDurations(self) -> None:
        """A text that is no duration, or one out of range, is refused with the key."""
        for text in ("", "10", "10x", "m", "-5m", "0s", "40d", "1e3s", "10 minutes", "9" * 5000):
            for key, rest in (
                ("ttl", '"lease":{"owner":"a","ttl":"%s"}'),
                ("wait", '"wait":"%s"'),
            ):
                request = '{"command":"attach","id":"1-1",%s}' % (rest % text)
                self.assertIn(f"`{key}`", self.refused(request.encode()))

    def test_suggestions(self) -> None:
        """An unknown key is refused with the most similar key there is, if one is similar."""
        for raw, suggestion in (
            ('{"command":"find","serail":"1"}', ". Did you mean 'serial'?"),
            ('{"command":"find","ID":"1-1"}', ". Did you mean 'id'?"),
            ('{"command":"attach","id":"1","lease":{"ownr":"a"}}', ". Did you mean 'owner'?"),
            ('{"command":"list","keepalive":true}', ". Did you mean 'keep_alive'?"),
            ('{"command":"list","first":true}', "`first`"),
            ('{"command":"list","%s":true}' % ("frobnicate" * 1000), "…"),
        ):
            self.assertTrue(self.refused(raw.encode()).endswith(suggestion), raw)

    def test_namesTheCommands(self) -> None:
        """A message about the command names those there are."""
        for raw in (b"{}", b'{"command":"reboot"}', b'{"command":null}', b'{"Command":"list"}'):
            message = self.refused(raw)
            for word in COMMANDS:
                self.assertIn(word, message, raw)

    def test_noCriterion(self) -> None:
        """Without a criterion it could be any device: the message names those there are."""
        for raw in (b'{"command":"attach"}', b'{"command":"find","id":null,"first":true}'):
            message = self.refused(raw)
            for key in CRITERIA:
                self.assertIn(f"`{key}`", message)

    def test_length(self) -> None:
        """A criterion has a limit, so that no glob takes for ever."""
        for key in CRITERIA:
            fits = json.dumps({"command": "find", key: "x" * LONGEST_CRITERION})
            decode(fits.encode())
            tooLong = json.dumps({"command": "find", key: "x" * (LONGEST_CRITERION + 1)})
            self.assertIn(f"`{key}`", self.refused(tooLong.encode()))

    def test_noObject(self) -> None:
        """What is no JSON object is refused, text that is no JSON with an example; so are bytes
        that are not UTF-8, deep nesting, and numbers that are too large."""
        for raw in (b"", b"list", b'{"command":"list"', b'{"command":"list"}}', b"NaN", b"'"):
            self.assertIn('{"command":"list"}', self.refused(raw), raw)
        for raw in (
            *(b"[]", b"5", b"null", b'"list"', b"true", b"[" * 60_000),
            *(b'{"command":"\xff"}', b'{"command":"list","\xc3":1}', b"\xff"),
            b'{"command":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
            b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
            b'{"command":"find","bus":1e400}',
            *(b'{"command":"find","bus":' + b"7" * digits + b"}" for digits in (4000, 10_000)),
        ):
            self.refused(raw)

    def test_harmless(self) -> None:
        """What a message quotes of the request is short and escaped; printable characters are left
        as they are."""
        for text, shown in (
            (r"a\nb", r"a\nb"),
            (r"\u001b[31m", r"\x1b[31m"),
            (r"\u0000\u202e", r"\x00\u202e"),
            ("Gerät", "Gerät"),
            ("x" * 50_000, "…"),
            (r"\u0007" * 5_000, "…"),
        ):
            for request in ('{"command":"%s"}', '{"command":"list","%s":1}'):
                message = self.refused((request % text).encode())
                self.assertIn(shown, message)
                self.assertTrue(message.isprintable())

    def test_owner(self) -> None:
        """The name of an owner is printable, as it is displayed and logged."""
        request = '{"command":"attach","id":"1-1","lease":{"owner":"%s","ttl":1}}'
        decode((request % "Jürgen 2, CI").encode())
        for owner in (r"a\nb", r"\u001b[31m", r"\u202e", r"\u0000"):
            self.assertIn("`owner`", self.refused((request % owner).encode()))
