"""
Tests of L{usbip_server.errors}.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.support import STICK, UNO, changed, manyDevices
from usbip_server.device import Holder
from usbip_server.errors import (
    NAMED_AT_MOST,
    DeviceInUse,
    InvalidOption,
    OperationFailed,
    SeveralMatch,
    ShareError,
)


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
