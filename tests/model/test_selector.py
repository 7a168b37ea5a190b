"""
Tests of L{usbip_server.model.selector}. For the notations of criteria see
L{tests.model.test_criteria}.
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
    path="pci-0000:00:14.0-usb-0:1",
)
ALL = (*DEVICES, TWELFTH)

SERIAL = "75330303035351F0A1C1"


class SelectorTests(SynchronousTestCase):
    """
    The devices that match criteria.
    """

    def test_criteria(self) -> None:
        """C{id} is a bus id or C{vid:pid}, C{bus} a number or a bus id, C{serial} a serial number,
        C{desc} a part of the description or of the device's own strings in any case, C{path} the
        path of a port; each may be a glob. A device has to match all. What a device does not have
        matches nothing."""
        cases: tuple[tuple[dict[str, Any], tuple[UsbDevice, ...]], ...] = (
            *(({"id": it}, (UNO,)) for it in ("1-1.4", "1-1.*", "2341:0043")),
            *(({"id": "1-*"}, (UNO, STICK)), ({"id": "?-2"}, (STICK,))),
            *(({"id": "[2-9]-*"}, (MOUSE,)), ({"id": "046D:C077"}, (MOUSE,))),
            *(({"id": "*"}, ALL), ({"id": "*:*"}, ALL), ({"id": "*:00*"}, (UNO, TWELFTH))),
            *(({"id": it}, (TWELFTH,)) for it in ("ABCD:*", "[a-c]*:*", "[A-C]*:*")),
            *(({"id": it}, ()) for it in ("1-1", "1-1x4", "2341", "2341:", ":0043", ":")),
            *(({"bus": it}, (UNO, STICK)) for it in (1, "1", "01", "1-*")),
            *(({"bus": 2}, (MOUSE,)), ({"bus": "12"}, (TWELFTH,)), ({"bus": "1-1.4"}, (UNO,))),
            ({"bus": "1*"}, (UNO, STICK, TWELFTH)),
            *(({"bus": it}, ()) for it in (3, 0, -1, "2341:0043", "²", "one")),
            *(({"serial": it}, (UNO,)) for it in (SERIAL, "7533*")),
            *(({"serial": it}, ()) for it in ("7533", SERIAL.lower(), "None", "null")),
            *(({"serial": it}, (UNO, STICK, TWELFTH)) for it in ("*", "?*", "[!x]*")),
            *(({"serial": "4C530001[23]"}, (STICK,)), ({"serial": "A*B"}, (TWELFTH,))),
            *(({"desc": it}, (UNO,)) for it in ("Uno", "uNO r3", "arduino*acm)")),
            *(({"desc": it}, (UNO,)) for it in ("arduino.cc", "(www.arduino.cc) board")),
            *(({"desc": it}, (TWELFTH,)) for it in ("[rev 2]", "100%")),
            *(({"desc": "*mouse"}, (MOUSE,)), ({"desc": "board WITH a U2"}, (UNO,))),
            *(({"desc": it}, ()) for it in ("m?use", "Uno R4", "None")),
            *(({"path": it}, (TWELFTH,)) for it in (TWELFTH.path, f"{TWELFTH.path}:1.0", "*")),
            *(({"path": it}, ()) for it in (f"{TWELFTH.path}.1", "1-1.4", "*-USB-*")),
            *(({"id": "1-*", "desc": "uno"}, (UNO,)), ({"id": "1-*", "desc": "mouse"}, ())),
            ({"bus": 1, "serial": "*", "desc": "s", "id": "0781:*"}, (STICK,)),
        )
        for criteria, expected in cases:
            found = FindDevice(**criteria).selector.among(ALL)
            self.assertEqual([d.busId for d in found], [d.busId for d in expected], criteria)

    def test_literally(self) -> None:
        """A serial number that is literally that of a device is not used as a glob."""
        other = changed(TWELFTH, busId="12-2", serial="AxxB")
        for serial, expected in (
            ("A*B", (TWELFTH,)),
            ("A?B", (TWELFTH,)),
            ("A**B", (TWELFTH, other)),
        ):
            self.assertEqual(FindDevice(serial=serial).selector.among((TWELFTH, other)), expected)

    def test_escapes(self) -> None:
        """Characters that cannot be displayed may be given as they are or escaped, and blanks at
        the ends do not count."""
        odd = changed(TWELFTH, serial=r"AB\x05\x5cC", product=r"Odd \u202eone")
        named = changed(TWELFTH, description="Remote PHY (JTAG\\DUT)")
        cases: tuple[tuple[dict[str, Any], UsbDevice], ...] = (
            *(({"serial": it}, odd) for it in (r"AB\x05\x5cC", "AB\x05\\C", r" AB*\x5CC ")),
            *(({"desc": it}, odd) for it in (r"odd \u202EONE ", "\u202eo", r"odd*\u202e*")),
            *(({"desc": it}, named) for it in ("jtag\\dut", r"jtag\x5cdut")),
        )
        for criteria, expected in cases:
            found = FindDevice(**criteria).selector.among((TWELFTH, odd, named))
            self.assertEqual(found, (expected,), criteria)

    def test_compiledOnce(self) -> None:
        """A request and a rule compile their criteria once, however many devices there are."""
        for criteria in (FindDevice(desc="*"), WatchDevices(desc="*"), Match(desc="*")):
            self.assertIs(criteria.selector, criteria.selector)
            self.assertTrue(all(map(criteria.selector.matches, ALL)))

    def test_select(self) -> None:
        """One device has to match, or with C{first} at least one. The errors repeat the criteria,
        or have the devices."""
        self.assertEqual(select(FindDevice(desc="uno"), ALL), UNO)
        self.assertEqual(select(FindDevice(bus=1, first=True), ALL), UNO)
        self.assertEqual(select(FindDevice(id="*-*0", first=True), ALL), MOUSE)
        error = self.assertRaises(DeviceNotFound, select, FindDevice(desc="Uno R4", bus=1), ALL)
        self.assertIn("bus=1, desc='Uno R4'", str(error))
        self.assertRaises(DeviceNotFound, select, FindDevice(id="9-9", first=True), ALL)
        several = self.assertRaises(SeveralMatch, select, FindDevice(bus=1), ALL)
        self.assertEqual(several.devices, (UNO, STICK))
