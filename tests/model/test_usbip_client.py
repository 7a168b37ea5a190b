"""
The client's half of L{usbip_server.model.usbip}.
"""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import MOUSE, STICK, UNO, changed
from usbip_server.model.usbip import (
    IMPORT_REPLY,
    REPLY_HEAD,
    Exported,
    ImportRequest,
    ListRequest,
    NotGiven,
    NotUsbIp,
    OpStatus,
    OtherVersion,
    decode,
    decodeImport,
    decodeList,
    encodeImport,
    encodeList,
    encodeRefusal,
    encodeRequest,
)

FUZZ = settings(max_examples=500, deadline=None, database=None)

BOARD = changed(
    UNO,
    busId="3-7.2",
    deviceNumber=0x1234,
    release=0x0102,
    subclass="03",
    protocol="04",
    configurations=5,
    path="/sys/devices/pci0000:00/usb3/3-7/3-7.2",
)
"""With numbers that cannot be confused."""

TOLD = Exported(
    path="/sys/devices/pci0000:00/usb3/3-7/3-7.2",
    busId="3-7.2",
    busNumber=3,
    deviceNumber=0x1234,
    speed=2,
    vendorId="2341",
    productId="0043",
    release=0x0102,
    deviceClass="02",
    subclass="03",
    protocol="04",
    configurations=5,
)
"""The same, as it comes to a client."""

WINDOWS = (
    bytes.fromhex("0111 0003 00000000")
    + b"USB\\VID_2341&PID_0043\\75330303035351F0A1C1".ljust(256, b"\0")
    + b"1-4".ljust(32, b"\0")
    + struct.pack(">IIIHHHBBBBBB", 1, 4, 2, 0x2341, 0x0043, 0x0001, 2, 0, 0, 1, 1, 2)
)
"""An answer of C{usbipd-win}, whose paths are others."""


class RequestTests(SynchronousTestCase):
    """
    What a client says.
    """

    def test_requests(self) -> None:
        """A server understands it."""
        for request in (ListRequest(), ImportRequest("1-1.4"), ImportRequest("1-" + "1" * 29)):
            self.assertEqual(decode(encodeRequest(request)), request)


class ImportTests(SynchronousTestCase):
    """
    The answer to an import.
    """

    def test_given(self) -> None:
        """A device comes as it was described, and is called what the kernel calls it."""
        answer = encodeImport(BOARD)
        self.assertEqual(len(answer), IMPORT_REPLY)
        self.assertEqual(decodeImport(answer), TOLD)
        self.assertEqual(TOLD.deviceId, 0x00031234)

    def test_windows(self) -> None:
        """Others' paths and names are no trouble."""
        device = decodeImport(WINDOWS)
        assert device is not None
        self.assertEqual((device.busId, device.deviceId, device.speed), ("1-4", 0x10004, 2))

    def test_truncated(self) -> None:
        """As long as something is missing there is more to come."""
        for answer in (encodeImport(BOARD), encodeRefusal(OpStatus.NODEV)):
            for length in range(len(answer)):
                self.assertIsNone(decodeImport(answer[:length]))

    def test_refused(self) -> None:
        """Every status but success says why, those that nobody knows too."""
        for status, text in (
            (OpStatus.NA, "no devices"),
            (OpStatus.DEV_BUSY, "another client"),
            (OpStatus.DEV_ERR, "could not be bound"),
            (OpStatus.NODEV, "no bound device there"),
            (OpStatus.ERROR, "refuses"),
        ):
            error = self.assertRaises(NotGiven, decodeImport, encodeRefusal(status))
            self.assertEqual(error.status, status)
            self.assertIn(text, str(error))
        unknown = bytes.fromhex("0111 0003 000000ff")
        self.assertIn("status 255", str(self.assertRaises(NotGiven, decodeImport, unknown)))

    def test_behind(self) -> None:
        """What comes behind the answer is not to be lost: it is an error."""
        self.assertRaises(NotUsbIp, decodeImport, encodeImport(BOARD) + b"\0")

    def test_others(self) -> None:
        """What is no such answer is told as soon as it can be."""
        for received in (
            b"HTTP/1.1 400",
            b"{",
            b"\x01\x06",
            encodeList((UNO,)),
            b"\x01\x11\x00\x05",
        ):
            for answer in (received, received[:1], received[:4]):
                if not encodeImport(UNO).startswith(answer):
                    self.assertRaises(NotUsbIp, decodeImport, answer)

    def test_version(self) -> None:
        """USB/IP of another version is told as that, with both."""
        for received in (b"\x01\x06", bytes.fromhex("0106 0003 00000000")):
            error = self.assertRaises(OtherVersion, decodeImport, received)
            self.assertEqual(str(error), "the server has USB/IP 0x0106, and 0x0111 is needed")

    def test_busId(self) -> None:
        """It has to be about a device."""
        for name in (b"usb1", b"", b"1-1:1.0", b"\xff" * 32):
            answer = bytearray(encodeImport(BOARD))
            answer[REPLY_HEAD + 256 : REPLY_HEAD + 288] = name.ljust(32, b"\0")
            self.assertRaises(NotUsbIp, decodeImport, bytes(answer))


class ListTests(SynchronousTestCase):
    """
    The answer to a list.
    """

    devices = (BOARD, STICK, changed(MOUSE, interfaces=("03/01/02",)))

    def test_list(self) -> None:
        """All devices come as they were described, with their interfaces."""
        found = decodeList(encodeList(self.devices))
        assert found is not None
        self.assertEqual([each.busId for each in found], ["3-7.2", "1-2", "2-10"])
        self.assertEqual(
            [each.interfaces for each in found], [("02/02/01", "0a/00/00"), (), ("03/01/02",)]
        )
        self.assertEqual(decodeList(encodeList(())), ())

    def test_truncated(self) -> None:
        """As long as something is missing there is more to come."""
        answer = encodeList(self.devices)
        for length in range(len(answer)):
            self.assertIsNone(decodeList(answer[:length]))

    def test_behind(self) -> None:
        """There is nothing behind it."""
        self.assertRaises(NotUsbIp, decodeList, encodeList(self.devices) + b"\0")

    def test_endless(self) -> None:
        """One that promises four thousand million devices is not waited for here."""
        self.assertIsNone(decodeList(bytes.fromhex("0111 0005 00000000 ffffffff")))

    def test_refused(self) -> None:
        """A server may refuse that as well."""
        answer = bytes.fromhex("0111 0005 00000001")
        self.assertRaises(NotGiven, decodeList, answer)


class FuzzTests(SynchronousTestCase):
    """
    Whatever comes.
    """

    @FUZZ
    @given(st.binary(max_size=1000))
    def test_garbage(self, received: bytes) -> None:
        """Nothing but the errors that are known comes of it."""
        for begin in (
            b"",
            bytes.fromhex("0111 0003 00000000"),
            bytes.fromhex("0111 0005 00000000"),
        ):
            for reads in (decodeImport, decodeList):
                try:
                    reads(begin + received)
                except (NotGiven, NotUsbIp):
                    continue
