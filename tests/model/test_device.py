"""
Tests of L{usbip_server.model.device}.
"""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import MOUSE, UNO, changed
from usbip_server.model.device import UsbDevice, busOrder, isBusId


class BusIdTests(SynchronousTestCase):
    """
    Bus ids.
    """

    def test_good(self) -> None:
        """A device has a bus and a path of ports."""
        for text in ("1-1", "1-1.4", "2-10", "12-3.4.5.6.7"):
            self.assertTrue(isBusId(text), text)

    def test_bad(self) -> None:
        """Root hubs, interfaces and anything else that stands in sysfs or a request are none."""
        for text in (
            "",
            "1",
            "usb1",
            "1-0:1.0",
            "1-1:1.0",
            "1-",
            "-1",
            "1-1.",
            "1-.1",
            "1-1..2",
            "0-1",
            "1-0",
            "01-1",
            "1-01",
            "1-1 ",
            " 1-1",
            "1-1\n",
            "1-1/..",
            "../1-1",
            "1-*",
            "a-b",
            "\u0661-\u0661",
        ):
            self.assertFalse(isBusId(text), repr(text))

    def test_order(self) -> None:
        """Bus ids are in the order of their numbers, not of their letters."""
        ordered = ["1-1", "1-1.1", "1-1.2", "1-1.10", "1-2", "1-10", "2-1", "10-1"]
        mixed = ordered[:]
        random.Random(1).shuffle(mixed)
        self.assertEqual(sorted(mixed, key=busOrder), ordered)


class UsbDeviceTests(SynchronousTestCase):
    """
    Devices.
    """

    def test_numbers(self) -> None:
        """Bus and ports come from the bus id."""
        self.assertEqual((UNO.busNumber, UNO.portNumbers), (1, (1, 4)))
        self.assertEqual((MOUSE.busNumber, MOUSE.portNumbers), (2, (10,)))

    def test_frozen(self) -> None:
        """A device is a value."""
        with self.assertRaises(AttributeError):
            UNO.serial = "other"  # type: ignore[misc]
        self.assertEqual(UNO, changed(UNO))
        self.assertEqual(hash(UNO), hash(changed(UNO)))
        self.assertNotEqual(UNO, changed(UNO, serial=None))

    def test_text(self) -> None:
        """In a message it is its bus id and what it is."""
        self.assertEqual(str(UNO), "1-1.4 (Arduino SA Uno R3 (CDC ACM))")

    def test_required(self) -> None:
        """What the contract never leaves out has no default."""
        with self.assertRaises(TypeError):
            UsbDevice(busId="1-1", vendorId="1209", productId="0001")  # type: ignore[call-arg]
