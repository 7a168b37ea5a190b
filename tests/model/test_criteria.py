"""
Tests of L{usbip_server.model.criteria}: the notations of criteria.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import UNO
from usbip_server.model.criteria import Unmatchable, parseBus, parseId, parsePath
from usbip_server.model.devicerules import Match, Rule
from usbip_server.model.policy import Grant
from usbip_server.model.requests import FindDevice


class NotationTests(SynchronousTestCase):
    """
    Notations.
    """

    def test_understood(self) -> None:
        """Each notation of a bus id, C{vid:pid}, bus number or path that has one meaning."""
        ids, path = "1050:0407", "pci-0000:00:14.0-usb-0:2.1"
        cases: tuple[tuple[Callable[[Any], object], Any, object], ...] = (
            *((parseId, text, text) for text in ("1-1.4", "1-*", "uno", "board-3.a_B", "[2-9]-*")),
            *((parseId, text, ids) for text in ("1050:0407", "0x1050:0x0407", "1050:407")),
            *((parseId, text, ids) for text in ("1050/0407", "1050 0407", " 1050:0407\t")),
            *((parseId, text, ids) for text in ("vid=0x1050 pid=0x0407", "VID=1050:PID=0407")),
            *((parseId, "046D:C077", "046d:c077"), (parseId, "ABCD:*", "abcd:*")),
            *((parseId, "0x1050:*", "1050:*"), (parseId, "[A-C]*:?0??", "[a-c]*:?0??")),
            *((parseId, " 1-1.4 ", "1-1.4"), (parseId, "*:*", "*:*")),
            *((parseBus, value, 8) for value in (8, "8", "08", "usb8", "USB8", "Bus 008", " 8 ")),
            *((parseBus, text, text) for text in ("1-1.4", "1-*", "*")),
            (parseBus, " 1-1.4 ", "1-1.4"),
            *((parsePath, f"{it}{path}{more}", path)
              for it in ("", " ", "/dev/serial/by-path/") for more in ("", ":1.0", ":1.2-port0 ")),
            (parsePath, "platform-3f980000.usb-usbv2-0:1", "platform-3f980000.usb-usb-0:1"),
            *((parsePath, text, text) for text in ("*-usb-0:2", "raspi/pci-0000:00:14.0-usb-0:2")),
        )  # fmt: skip
        for parse, value, expected in cases:
            self.assertEqual(parse(value), expected, value)

    def test_unmatchable(self) -> None:
        """A value that no device can match is recognized as that."""
        cases: tuple[tuple[Callable[[Any], object], tuple[Any, ...]], ...] = (
            (parseId, ("1050:", ":0407", ":", "1050:xyz", "1050:*z", "a b c", "10500:0407", "ü")),
            (parseId, ("1050:0407:1", "pci-0000:00:14.0-usb-0:1")),
            (parseBus, (0, -1, 65536, "0", "one", "²", "1050:0407", "usb", "70000", "1-", "1-0")),
            (parsePath, ("1-1", "2.1", "pci-0000:00:14.0", "/sys/bus/usb/devices/1-1")),
        )  # fmt: skip
        for parse, values in cases:
            for value in values:
                self.assertRaises(Unmatchable, parse, value)

    def test_interface(self) -> None:
        """The name of an interface is refused, with the bus id of its device."""
        for parse in (parseId, parseBus):
            error = self.assertRaises(ValueError, parse, "8-1.2:1.0")
            self.assertNotIsInstance(error, Unmatchable)
            self.assertIn("'8-1.2:1.0' is an interface; its device is '8-1.2'", str(error))

    def test_hugeNumber(self) -> None:
        """A number that could be no bus is refused, and not repeated."""
        for value in (10**4000, -(10**4000), 2**64):
            self.assertEqual(
                str(self.assertRaises(ValueError, parseBus, value)),
                "`bus` is not the number of a bus",
            )


class UseTests(SynchronousTestCase):
    """
    Criteria in requests, rules and access.
    """

    def test_everywhere(self) -> None:
        """A request, a rule and access understand the same notations."""
        for criteria in ({"id": "0x2341:43"}, {"id": "vid=0x2341 pid=0x0043"}, {"bus": "usb1"}):
            self.assertEqual(msgspec.convert(criteria, FindDevice).selector.among((UNO,)), (UNO,))
            self.assertTrue(msgspec.convert(criteria, Match).meets(UNO))

    def test_unmatchable(self) -> None:
        """What no device can match is refused in rules and access, and matches nothing in a
        request: a rule would be ignored, and C{share: never} would protect nothing."""
        for criteria in ({"id": "1050:"}, {"bus": "usb"}, {"bus": 0}, {"path": "1-1"}):
            self.assertEqual(msgspec.convert(criteria, FindDevice).selector.among((UNO,)), ())
            for kind, value in (
                (Match, criteria),
                (Rule, {"match": criteria}),
                (Grant, {"who": "anyone", "devices": criteria}),
            ):
                self.assertRaises(msgspec.ValidationError, msgspec.convert, value, kind)

    def test_names(self) -> None:
        """A rule cannot select devices by a name, which rules give; requests and access can."""
        for criteria in ({"id": "uno"}, {"id": "1050"}, {"id": "usb8"}):
            msgspec.convert(criteria, FindDevice)
            msgspec.convert({"who": "anyone", "devices": criteria}, Grant)
            error = self.assertRaises(
                msgspec.ValidationError, msgspec.convert, {"match": criteria}, Rule
            )
            self.assertIn("cannot select by one", str(error))
