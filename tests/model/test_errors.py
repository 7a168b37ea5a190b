"""
Tests of L{usbip_server.model.errors}.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import STICK, UNO, changed, manyDevices
from usbip_server.model.device import Holder
from usbip_server.model.errors import (
    NAMED_AT_MOST,
    DeviceInUse,
    OperationFailed,
    SeveralMatch,
    ShareError,
)
from usbip_server.model.options import InvalidOption, invalid


class SeveralMatchTests(SynchronousTestCase):
    """
    Several devices match.
    """

    def test_names(self) -> None:
        """The message names them with what tells them apart, and says what to do."""
        message = str(SeveralMatch("id='1-*'", [UNO, STICK]))
        for part in (
            "2 devices match id='1-*'",
            "1-1.4",
            "1-2",
            "0781:5581",
            "75330303035351F0A1C1",
            "Ultra",
            '"first": true',
        ):
            self.assertIn(part, message)

    def test_sameName(self) -> None:
        """Devices with the same name in C{usb.ids} are told apart by their own product strings. A
        product string that is part of the description is not repeated."""
        chip = changed(STICK, description="Silicon Labs CP210x UART Bridge")
        first, second = (changed(chip, product=it) for it in ("Zigbee Stick", "CP210X uart bridge"))
        message = str(SeveralMatch("desc='cp210x'", [first, second]))
        self.assertIn("1-2 (Silicon Labs CP210x UART Bridge, Zigbee Stick) id=0781:5581", message)
        self.assertIn("1-2 (Silicon Labs CP210x UART Bridge) id=0781:5581", message)

    def test_many(self) -> None:
        """Of many it names some and counts the others; it has all."""
        devices = manyDevices(25)
        error = SeveralMatch("id='*'", devices)
        self.assertEqual(error.devices, devices)
        self.assertIn(f"and {25 - NAMED_AT_MOST} more", str(error))
        self.assertNotIn("1-1.11 ", str(error))
        self.assertNotIn("more", str(SeveralMatch("id='*'", devices[:NAMED_AT_MOST])))


class OtherErrorTests(SynchronousTestCase):
    """
    The other errors.
    """

    def test_inUse(self) -> None:
        """A device in use names who uses it, where that is known."""
        known = DeviceInUse(changed(UNO, holder=Holder(address="192.0.2.9")))
        self.assertIn("192.0.2.9", str(known))
        self.assertIn("1-1.4", str(known))
        self.assertIsInstance(known, OperationFailed)
        self.assertIn("in use", str(DeviceInUse(UNO)))

    def test_operationFailed(self) -> None:
        """A failed operation has the device and the message."""
        error = OperationFailed(UNO, "it bit me")
        self.assertEqual((error.device, str(error)), (UNO, "it bit me"))

    def test_invalidOption(self) -> None:
        """An option is named by the keys that lead to it; no client sees it."""
        error = InvalidOption(["devices", 0, "kind"], "is no kind")
        self.assertEqual(error.path, ("devices", 0, "kind"))
        self.assertEqual(str(error), "devices.0.kind: is no kind")
        self.assertNotIsInstance(error, ShareError)


class InvalidTests(SynchronousTestCase):
    """
    What is wrong in a file that people write.
    """

    def reason(self, value: Any, kind: Any) -> str:
        """Why a value is not of a kind."""
        error = self.assertRaises(msgspec.ValidationError, msgspec.convert, value, kind)
        return invalid(error).reason

    def test_words(self) -> None:
        """Types are called as those who write YAML call them."""
        least = Annotated[int, msgspec.Meta(ge=1)]
        some = Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
        for value, kind, reason in (
            ({}, list[str], "expected a list, got a mapping"),
            ([], dict[str, int] | None, "expected a mapping or nothing, got a list"),
            (None, str, "expected text, got nothing"),
            (1.5, int, "expected a whole number, got a number"),
            ("x", float, "expected a number, got text"),
            (1, str | None, "expected text or nothing, got a whole number"),
            ("no", bool, "expected true or false, got text"),
            (0, least, "expected a whole number >= 1"),
            ([], some, "expected a list of length >= 1"),
        ):
            self.assertEqual(self.reason(value, kind), reason)

    def test_others(self) -> None:
        """What else is said stays as it is, also if a key is called as a type."""

        class Key(msgspec.Struct):
            str: int = 0

            def __post_init__(self) -> None:
                raise ValueError("`str` or `int`: which?")

        self.assertEqual(self.reason({}, Key), "`str` or `int`: which?")
