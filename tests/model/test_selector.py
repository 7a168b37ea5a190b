"""
Tests of L{usbip_server.model.selector}.
"""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import DEVICES, MOUSE, STICK, UNO, changed
from usbip_server.model.device import UsbDevice
from usbip_server.model.devicerules import Match
from usbip_server.model.errors import DeviceNotFound, SeveralMatch
from usbip_server.model.requests import FindDevice, WatchDevices
from usbip_server.model.selector import select

TWELFTH = UsbDevice(
    busId="12-1",
    vendorId="abcd",
    productId="00ef",
    description="Something [rev 2] 100%",
    serial="A*B",
)
ALL = (*DEVICES, TWELFTH)


class MatchingTests(SynchronousTestCase):
    """
    Which devices meet the criteria.
    """

    def assertMatches(self, criteria: dict[str, Any], *expected: UsbDevice) -> None:
        """These devices, and no other, meet the criteria."""
        found = FindDevice(**criteria).selector.among(ALL)
        self.assertEqual([d.busId for d in found], [d.busId for d in expected], criteria)

    def test_idIsBusId(self) -> None:
        """An id without a colon is a bus id, or a glob of one."""
        self.assertMatches({"id": "1-1.4"}, UNO)
        self.assertMatches({"id": "1-1.*"}, UNO)
        self.assertMatches({"id": "1-*"}, UNO, STICK)
        self.assertMatches({"id": "?-2"}, STICK)
        self.assertMatches({"id": "[2-9]-*"}, MOUSE)
        self.assertMatches({"id": "*"}, *ALL)
        self.assertMatches({"id": "1-1"})
        self.assertMatches({"id": "1-1x4"})
        self.assertMatches({"id": "2341"})

    def test_idIsVendorAndProduct(self) -> None:
        """An id with a colon is vendor and product, or a glob of them, in any case."""
        self.assertMatches({"id": "2341:0043"}, UNO)
        self.assertMatches({"id": "046D:C077"}, MOUSE)
        self.assertMatches({"id": "ABCD:*"}, TWELFTH)
        self.assertMatches({"id": "*:00*"}, UNO, TWELFTH)
        self.assertMatches({"id": "*:*"}, *ALL)
        self.assertMatches({"id": "[a-c]*:*"}, TWELFTH)
        self.assertMatches({"id": "[A-C]*:*"}, TWELFTH)
        self.assertMatches({"id": "2341:"})
        self.assertMatches({"id": ":0043"})
        self.assertMatches({"id": ":"})

    def test_busIsNumber(self) -> None:
        """A bus that is a number, in digits or not, is the number of a bus."""
        for bus in (1, "1", "01"):
            self.assertMatches({"bus": bus}, UNO, STICK)
        self.assertMatches({"bus": 2}, MOUSE)
        self.assertMatches({"bus": "12"}, TWELFTH)
        self.assertMatches({"bus": 3})
        self.assertMatches({"bus": 0})
        self.assertMatches({"bus": -1})

    def test_busIsBusId(self) -> None:
        """Any other is a bus id or a glob of one."""
        self.assertMatches({"bus": "1-1.4"}, UNO)
        self.assertMatches({"bus": "1-*"}, UNO, STICK)
        self.assertMatches({"bus": "1*"}, UNO, STICK, TWELFTH)
        self.assertMatches({"bus": "2341:0043"})
        self.assertMatches({"bus": "²"})
        self.assertMatches({"bus": "one"})

    def test_serial(self) -> None:
        """A serial number is matched exactly, or as a glob."""
        self.assertMatches({"serial": "75330303035351F0A1C1"}, UNO)
        self.assertMatches({"serial": "7533*"}, UNO)
        self.assertMatches({"serial": "7533"})
        self.assertMatches({"serial": "75330303035351f0a1c1"})
        self.assertMatches({"serial": "*"}, UNO, STICK, TWELFTH)

    def test_serialWithSpecials(self) -> None:
        """A serial number in which a glob's characters stand can be named as it is."""
        self.assertMatches({"serial": "4C530001[23]"}, STICK)
        self.assertMatches({"serial": "A*B"}, TWELFTH)
        other = changed(TWELFTH, busId="12-2", serial="AxxB")
        found = FindDevice(serial="A*B").selector.among((TWELFTH, other))
        self.assertEqual(found, (TWELFTH,))
        found = FindDevice(serial="A?B").selector.among((TWELFTH, other))
        self.assertEqual(found, (TWELFTH,))

    def test_escapes(self) -> None:
        """Characters that cannot be displayed may be given as they are or escaped, and blanks at
        the ends do not count."""
        odd = changed(TWELFTH, serial=r"AB\x05\x5cC", product=r"Odd \u202eone")
        cases: tuple[dict[str, Any], ...] = (
            *({"serial": r"AB\x05\x5cC"}, {"serial": "AB\x05\\C"}, {"serial": r" AB*\x5CC "}),
            *({"desc": r"odd \u202EONE "}, {"desc": "\u202eo"}, {"desc": r"odd*\u202e*"}),
        )
        for criteria in cases:
            found = FindDevice(**criteria).selector.among((TWELFTH, odd))
            self.assertEqual(found, (odd,), criteria)
        named = changed(TWELFTH, description="Remote PHY (JTAG\\DUT)")
        for text in ("jtag\\dut", r"jtag\x5cdut"):
            self.assertEqual(FindDevice(desc=text).selector.among((named, odd)), (named,))
        self.assertEqual(FindDevice(serial=r"AB\x06\x5cC").selector.among((odd,)), ())

    def test_noSerial(self) -> None:
        """A device without a serial number never matches one."""
        for serial in ("*", "None", "null", "?*", "[!x]*"):
            self.assertEqual(FindDevice(serial=serial).selector.among((MOUSE,)), ())

    def test_desc(self) -> None:
        """A description is matched in part, in any case, or as a glob."""
        self.assertMatches({"desc": "Uno"}, UNO)
        self.assertMatches({"desc": "uNO r3"}, UNO)
        self.assertMatches({"desc": "arduino*acm)"}, UNO)
        self.assertMatches({"desc": "*mouse"}, MOUSE)
        self.assertMatches({"desc": "m?use"})
        self.assertMatches({"desc": "[rev 2]"}, TWELFTH)
        self.assertMatches({"desc": "100%"}, TWELFTH)
        self.assertMatches({"desc": "Uno R4"})

    def test_descIsOwnStrings(self) -> None:
        """That is so for the device's own strings as well as for the name it has in usb.ids."""
        self.assertMatches({"desc": "arduino.cc"}, UNO)
        self.assertMatches({"desc": "(www.arduino.cc) board"}, UNO)
        self.assertMatches({"desc": "board WITH a U2"}, UNO)

    def test_path(self) -> None:
        """A path is matched exactly or as a glob; what udev adds for interfaces, device nodes and
        revisions of USB is ignored. A device whose path is not known matches none."""
        path = "pci-0000:00:14.0-usb-0:2.1"
        plugged = changed(UNO, path=path)
        for text, expected in (
            *((path, True), ("*-usb-0:2.1", True), ("pci-0000:00:14.0-*", True), ("*", True)),
            *((f" {path}:1.0 ", True), (f"{path}:1.2-port0", True)),
            ("pci-0000:00:14.0-usbv2-0:2.1", True),
            *((f"{path}.1", False), ("2.1", False), ("pci-0000:00:14.0-usb-0:2", False)),
            *(("1-1.4", False), (path.upper(), False)),
        ):
            found = FindDevice(path=text).selector.among((plugged, STICK))
            self.assertEqual(found, (plugged,) if expected else (), text)

    def test_descNone(self) -> None:
        """What a device does not have is not matched as a word."""
        self.assertMatches({"desc": "None"})

    def test_allCriteria(self) -> None:
        """All criteria have to be met."""
        self.assertMatches({"id": "1-*", "desc": "uno"}, UNO)
        self.assertMatches({"id": "1-*", "desc": "mouse"})
        self.assertMatches({"bus": 1, "serial": "*", "desc": "s", "id": "0781:*"}, STICK)

    def test_twoReadingsNeverCollide(self) -> None:
        """No text is a bus id and a vendor with product at once."""
        for device in ALL:
            self.assertMatches({"id": device.busId}, device)
            self.assertMatches({"id": f"{device.vendorId}:{device.productId}"}, device)

    def test_compiledOnce(self) -> None:
        """A request and a rule compile their criteria once, however many devices there are."""
        for criteria in (FindDevice(desc="*"), WatchDevices(desc="*"), Match(desc="*")):
            self.assertIs(criteria.selector, criteria.selector)
            self.assertTrue(all(map(criteria.selector.matches, ALL)))


class SelectTests(SynchronousTestCase):
    """
    Which one is meant.
    """

    def test_one(self) -> None:
        """The one that matches."""
        self.assertEqual(select(FindDevice(desc="uno"), ALL), UNO)

    def test_none(self) -> None:
        """None that matches is an error that repeats the criteria."""
        with self.assertRaises(DeviceNotFound) as caught:
            select(FindDevice(desc="Uno R4", bus=1), ALL)
        self.assertIn("bus=1, desc='Uno R4'", str(caught.exception))

    def test_several(self) -> None:
        """Several that match are an error that has them."""
        with self.assertRaises(SeveralMatch) as caught:
            select(FindDevice(bus=1), ALL)
        self.assertEqual(caught.exception.devices, (UNO, STICK))

    def test_first(self) -> None:
        """Unless the first will do."""
        self.assertEqual(select(FindDevice(bus=1, first=True), ALL), UNO)
        self.assertEqual(select(FindDevice(id="*-*0", first=True), ALL), MOUSE)
        with self.assertRaises(DeviceNotFound):
            select(FindDevice(id="9-9", first=True), ALL)
