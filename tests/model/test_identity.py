"""
Tests of L{usbip_server.model.identity}.
"""

from __future__ import annotations

from msgspec import UNSET
from msgspec.structs import replace
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import UNO, changed
from usbip_server.model import identity
from usbip_server.model.identity import Identity, Twins, isFiller

IDENTITY = Identity.of(UNO)


class IdentityTests(SynchronousTestCase):
    """
    What identifies a device.
    """

    def test_matches(self) -> None:
        """All fields have to be equal; strings that are not known can be. A string that a device
        does not have is another one than one that is not known."""
        for fields, expected in (
            ({}, True),
            ({"vendorId": "2342"}, False),
            ({"productId": "0044"}, False),
            ({"serial": "1"}, False),
            ({"serial": None}, False),
            ({"manufacturer": "other"}, False),
            ({"product": "other"}, False),
            ({"product": None}, False),
            ({"product": UNSET}, True),
            ({"manufacturer": UNSET, "product": UNSET}, True),
            ({"manufacturer": UNSET, "product": "other"}, False),
        ):
            other = replace(IDENTITY, **fields)
            self.assertIs(IDENTITY.matches(other), expected, fields)
            self.assertIs(other.matches(IDENTITY), expected, fields)

    def test_port(self) -> None:
        """The state of a device and its port do not matter."""
        moved = changed(UNO, busId="2-3", deviceNumber=9, description="x", driver=None)
        self.assertEqual(Identity.of(moved), IDENTITY)

    def test_fillers(self) -> None:
        """Serial numbers that many devices have do not identify one."""
        for serial in (
            *("", "0", "1", "0000", "0001", "000000000001", "FFFF", "------", "xxx", "11111111"),
            *("123", "1234", "12345678", "123456789ABC", "0123456789ABCDEF", "00001234"),
            *("1234567890", "abcdef", "None", "N/A", "SerialNumber", " default ", "DEADBEEF"),
        ):
            self.assertTrue(isFiller(serial), serial)
            self.assertFalse(replace(IDENTITY, serial=serial).isUnique, serial)
        for serial in (
            *("2", "12", "42", "0002", "00012", "A50285BI", "75330303035351F0A1C1", "12346", "AB1"),
            *("1234567890123456789012", "FF01", r"AB\x05C", "0x0001"),
        ):
            self.assertFalse(isFiller(serial), serial)
        self.assertTrue(IDENTITY.isUnique)
        self.assertFalse(replace(IDENTITY, serial=None).isUnique)


class TwinsTests(SynchronousTestCase):
    """
    Devices with the same identity.
    """

    def test_found(self) -> None:
        """An identity that two devices have at the same time is found, once, and remembered."""
        twins, other = Twins(), changed(UNO, busId="2-3")
        self.assertFalse(twins.added(UNO))
        self.assertFalse(twins.added(changed(UNO, deviceNumber=9)))
        twins.removed(UNO)
        self.assertFalse(twins.added(other))
        self.assertNotIn(IDENTITY, twins)
        self.assertTrue(twins.added(UNO))
        for device in (UNO, other):
            twins.removed(device)
        self.assertIn(IDENTITY, twins)
        self.assertFalse(twins.added(UNO))
        self.assertFalse(twins.added(other))

    def test_bounded(self) -> None:
        """A bounded number of identities is remembered."""
        self.patch(identity, "REMEMBERED", 2)
        twins = Twins()
        devices = [changed(UNO, serial=f"S{number}") for number in range(3)]
        for device in devices:
            twins.added(device)
            twins.added(changed(device, busId="2-3"))
        found = [Identity.of(device) in twins for device in devices]
        self.assertEqual(found, [False, True, True])
