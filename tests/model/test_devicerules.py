"""
Tests of L{usbip_server.model.devicerules}.
"""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import MOUSE, STICK, UNO, changed
from usbip_server.model.device import UsbDevice
from usbip_server.model.devicerules import (
    CLASSES,
    LONGEST_NAME,
    NO_RULE,
    Hook,
    Match,
    Occasion,
    Rule,
    Rules,
    Share,
)
from usbip_server.model.inventory import ChangeKind

KEYBOARD = changed(MOUSE, busId="1-9", interfaces=("03/01/01", "03/00/00"))

LAB = "https://lab.example:8080"


class MatchTests(SynchronousTestCase):
    """
    Which devices a rule is for.
    """

    def test_meets(self) -> None:
        """The criteria of requests, and a class of the device or of one of its interfaces, by
        number or word; all have to be met."""
        cases: tuple[tuple[dict[str, Any], set[str]], ...] = (
            *(({"id": "2341:*"}, {"1-1.4"}), ({"serial": "4C530001[23]"}, {"1-2"})),
            *(({"desc": "mouse"}, {"2-10", "1-9"}), ({"bus": 2}, {"2-10"})),
            *(({"bus": "*"}, {"1-1.4", "1-2", "2-10", "1-9"}), ({"path": "*"}, set())),
            ({"bus": "1-*", "desc": "mouse"}, {"1-9"}),
            *(({"device_class": it}, {"1-1.4"}) for it in ("02", "0a", "communication")),
            *(({"device_class": it}, {"1-9"}) for it in ("03", "03/01", "keyboard", "HID")),
            *(({"device_class": it}, set()) for it in ("mouse", "storage")),
        )
        for criteria, busIds in cases:
            match = Match(**criteria)
            met = {it.busId for it in (UNO, STICK, MOUSE, KEYBOARD) if match.meets(it)}
            self.assertEqual(met, busIds, criteria)
        for word in CLASSES:
            Match(device_class=word)

    def test_wrong(self) -> None:
        """A rule that says nothing, or what is no class, is a mistake."""
        for wrong in (
            {},
            {"device_class": "toaster"},
            {"device_class": "3"},
            {"device_class": "03/"},
            {"device_class": "03/01/01/01"},
            {"serial": ""},
            {"desc": "x" * 300},
            {"usb": "1"},
        ):
            self.assertRaises(msgspec.ValidationError, msgspec.convert, wrong, Match)

    def test_nameIsNoCriterion(self) -> None:
        """What a rule has named is not matched by that name."""
        self.assertFalse(Match(id="uno").meets(changed(UNO, name="other")))
        rules = Rules([Rule(match=Match(id="u*"))])
        self.assertIs(rules.of(changed(UNO, name="uno")), NO_RULE)


class RuleTests(SynchronousTestCase):
    """
    What a rule says.
    """

    def test_of(self) -> None:
        """The first rule that matches applies; without one a device is shared on request."""
        first = Rule(match=Match(desc="uno"), name="uno")
        second = Rule(match=Match(bus="*"), share=Share.ALWAYS)
        rules = Rules([first, second])
        self.assertEqual((rules.of(UNO), rules.of(STICK)), (first, second))
        rule = Rules().of(UNO)
        self.assertEqual((rule.name, rule.share), (None, Share.ON_REQUEST))
        self.assertFalse(rule.allow_mounted)

    def test_names(self) -> None:
        """A name is a word that cannot be taken for anything else."""
        match = {"bus": "*"}
        for name in ("uno", "board-3", "A_1.b", "7", "x" * LONGEST_NAME):
            msgspec.convert({"match": match, "name": name}, Rule)
        for name in ("", "1-1", "1-1.4", "a b", "a:b", "*", "a[1]", "-a", "ü", "a/b", "x" * 65):
            self.assertRaises(
                msgspec.ValidationError, msgspec.convert, {"match": match, "name": name}, Rule
            )

    def test_mounted(self) -> None:
        """To share a disk that is mounted it has to be named."""
        rule = {"match": {"bus": "*"}, "allow_mounted": True}
        error = self.assertRaises(msgspec.ValidationError, msgspec.convert, rule, Rule)
        self.assertIn("requires a `name`", str(error))
        msgspec.convert({**rule, "name": "boot"}, Rule)


class UnknownTests(SynchronousTestCase):
    """
    Devices of which something is not known.
    """

    SILENT = changed(
        UNO,
        serial=None,
        manufacturer=None,
        product=None,
        unknown=("serial", "manufacturer", "product"),
    )
    AWAY = changed(UNO, interfaces=(), classes=(), deviceClass="00", unknown=("classes",))

    def test_match(self) -> None:
        """What is not known never matches, but may match; everything else is compared."""
        cases: tuple[tuple[dict[str, Any], UsbDevice, bool], ...] = (
            ({"serial": "SECRET*"}, self.SILENT, True),
            ({"serial": "SECRET*"}, UNO, False),
            ({"serial": "SECRET*", "bus": 1}, self.SILENT, True),
            ({"serial": "SECRET*", "bus": 2}, self.SILENT, False),
            ({"serial": "SECRET*", "id": "2341:*"}, self.SILENT, True),
            ({"serial": "SECRET*", "id": "dead:*"}, self.SILENT, False),
            ({"desc": "secret"}, self.SILENT, True),
            ({"desc": "secret"}, self.AWAY, False),
            ({"device_class": "storage"}, self.AWAY, True),
            ({"device_class": "storage"}, UNO, False),
            ({"device_class": "storage", "serial": "x"}, self.AWAY, False),
        )
        for criteria, device, may in cases:
            match = Match(**criteria)
            self.assertFalse(match.meets(device), criteria)
            self.assertEqual(match.mayMeet(device), may, criteria)
        for device in (UNO, self.SILENT, self.AWAY):
            self.assertTrue(Match(bus=1).mayMeet(device))

    def test_rules(self) -> None:
        """
        A device is shared as the strictest of the rules says that may apply to it: one before the
        rule that does, but not one behind it.
        """
        secret = Match(serial="SECRET")
        every = Rule(match=Match(bus="*"), name="every", share=Share.ALWAYS, allow_mounted=True)
        for share, expected in (
            (Share.NEVER, ("secret", Share.NEVER, False)),
            (Share.ON_REQUEST, ("every", Share.ON_REQUEST, False)),
            (Share.ALWAYS, ("every", Share.ALWAYS, False)),
        ):
            named = Rule(match=secret, name="secret", share=share)
            rules = Rules([named, every])
            rule = rules.of(self.SILENT)
            self.assertEqual((rule.name, rule.share, rule.allow_mounted), expected)
            self.assertIs(rules.of(UNO), every)
            self.assertEqual(rules.of(changed(UNO, serial="SECRET")).share, share)
            self.assertIs(Rules([every, named]).of(self.SILENT), every)
        never = Rules([Rule(match=secret, share=Share.NEVER)])
        self.assertIs(never.of(self.SILENT).share, Share.NEVER)
        self.assertIs(never.of(UNO).share, Share.ON_REQUEST)

    def test_hooks(self) -> None:
        """Hooks that may veto are run if their rule may apply, other hooks are not."""
        both = (Occasion.BEFORE_BIND, Occasion.BOUND)
        hook = Hook(events=both, command=("gate",))
        rules = Rules([Rule(match=Match(serial="SECRET"), hooks=(hook,)), Rule(match=Match(bus=1))])
        self.assertEqual([rules.hooks(self.SILENT, it) for it in both], [[hook], []])
        self.assertEqual([rules.hooks(UNO, it) for it in both], [[], []])


class HookTests(SynchronousTestCase):
    """
    Whom to tell.
    """

    def test_which(self) -> None:
        """Those for every device come first, then those of the device's rule; each only for
        what it wants to hear of."""
        everyone = Hook(events=(Occasion.BOUND, Occasion.FAILED), command=("a",))
        unos = Hook(events=(Occasion.BOUND,), url="http://localhost/")
        rules = Rules([Rule(match=Match(desc="uno"), hooks=(unos,))], [everyone])
        self.assertEqual(rules.hooks(UNO, Occasion.BOUND), [everyone, unos])
        self.assertEqual(rules.hooks(UNO, Occasion.FAILED), [everyone])
        self.assertEqual(rules.hooks(STICK, Occasion.BOUND), [everyone])
        self.assertEqual(rules.hooks(UNO, Occasion.ADDED), [])

    def test_wrong(self) -> None:
        """A hook is a command or an address, on some occasion."""
        for wrong in (
            {"events": ["bound"]},
            {"events": ["bound"], "command": ["a"], "url": "http://x/"},
            {"events": [], "command": ["a"]},
            {"events": ["binding"], "command": ["a"]},
            {"events": ["bound"], "command": []},
            {"events": ["bound"], "command": "a b"},
            {"events": ["bound"], "url": "ftp://x/"},
            {"events": ["bound"], "url": "http://a b/"},
            {"events": ["bound"], "command": ["a"], "timeout": 0},
            {"command": ["a"]},
        ):
            self.assertRaises(msgspec.ValidationError, msgspec.convert, wrong, Hook)

    def test_str(self) -> None:
        """
        In the log it is its name, or the program without arguments, or the host of the URL: the
        rest may be secret.
        """
        for keys, expected in (
            ({"name": "gate", "command": ("a", "b")}, "gate"),
            ({"command": ("/bin/a", "--api-key", "s3cr3t")}, "/bin/a"),
            ({"url": "http://x/"}, "http://x"),
            ({"url": "https://svc:hunter2@lab.example:8080/hook?key=s3cr3t"}, LAB),
            ({"url": "http://[::1]:80/s3cr3t"}, "http://[::1]:80"),
            ({"url": "http://svc:hun/ter2@x/"}, "a URL"),
            ({"url": "http://[:x"}, "a URL"),
        ):
            self.assertEqual(str(Hook(events=(Occasion.BOUND,), **keys)), expected)
        self.assertRaises(ValueError, Hook, events=(), name="a b", command=("a",))

    def test_occasions(self) -> None:
        """There is an occasion for each event."""
        for kind in ChangeKind:
            Occasion(kind.value)
