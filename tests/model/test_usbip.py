"""
Tests of L{usbip_server.model.usbip}: both halves of USB/IP's OP_REQ and OP_REP messages.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import MOUSE, STICK, UNO, changed
from usbip_server.backends import softdevice
from usbip_server.model.usbip import (
    IMPORT_REPLY,
    LONGEST_REQUEST,
    REPLY_HEAD,
    SPEED_OF,
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

if softdevice.installed:
    from usbip import protocol  # type: ignore[import-untyped]

FUZZ = settings(max_examples=500, deadline=None, database=None)
"""As many inputs as take half a second; none are stored."""

LIST = bytes.fromhex("0111 8005 00000000")
IMPORT = bytes.fromhex("0111 8003 00000000") + b"1-1.4" + 27 * b"\0"
IMPORT_HEAD = bytes.fromhex("0111 0003 00000000")
LIST_HEAD = bytes.fromhex("0111 0005 00000000")

BOARD = changed(
    UNO,
    busId="3-7.2",
    deviceNumber=0x1234,
    release=0x0102,
    subclass="03",
    protocol="04",
    configurations=5,
    sysfsPath="/sys/devices/pci0000:00/usb3/3-7/3-7.2",
)
"""A device whose numbers are all different."""

DESCRIBED = (
    b"/sys/devices/pci0000:00/usb3/3-7/3-7.2".ljust(256, b"\0")
    + b"3-7.2".ljust(32, b"\0")
    + bytes.fromhex("00000003 00001234 00000002")  # bus, device number, full speed
    + bytes.fromhex("2341 0043 0102")
    + bytes.fromhex("02 03 04")
    + bytes.fromhex("00 05 02")  # no configuration is set, of 5; two interfaces
)

EXPORTED = Exported(
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
"""L{BOARD} as a client decodes it."""

WINDOWS = (
    IMPORT_HEAD
    + b"USB\\VID_2341&PID_0043\\75330303035351F0A1C1".ljust(256, b"\0")
    + b"1-4".ljust(32, b"\0")
    + struct.pack(">IIIHHHBBBBBB", 1, 4, 2, 0x2341, 0x0043, 0x0001, 2, 0, 0, 1, 1, 2)
)
"""A reply of C{usbipd-win}, whose paths have another form."""


class RequestTests(SynchronousTestCase):
    """
    Requests, as a server decodes them.
    """

    def assertInvalid(self, received: bytes, because: str) -> None:
        """It is no request."""
        self.assertIn(because, str(self.assertRaises(NotUsbIp, decode, received)))

    def importOf(self, busId: bytes) -> bytes:
        """A request to import a bus id."""
        return IMPORT[:8] + busId.ljust(32, b"\0")

    def test_requests(self) -> None:
        """A list and an import, as a client encodes them too. What follows the NUL of a bus id is
        ignored. The longest bus id leaves room for the NUL. Of a beginning the rest is awaited."""
        longest = b"1-1" + 14 * b".1"
        for received, request in (
            (LIST, ListRequest()),
            (IMPORT, ImportRequest("1-1.4")),
            (IMPORT[:8] + b"1-2\0" + 28 * b"\xa5", ImportRequest("1-2")),
            (self.importOf(longest), ImportRequest(longest.decode())),
        ):
            self.assertEqual(decode(received), request)
            self.assertEqual(decode(encodeRequest(request)), request)
            for length in range(len(received)):
                self.assertIsNone(decode(received[:length]), length)
        self.assertEqual(len(IMPORT), LONGEST_REQUEST)

    def test_invalid(self) -> None:
        """Another version, code, or status, a text that is no bus id, and bytes after the request
        are refused, as soon as that can be seen."""
        version = "version 0x0111"
        http = (b"\0", b"\x02", b"G", b"GET / HTTP/1.1\r\n", b'{"command":"list"}', b"\x01\x10")
        codes = (0, 3, 5, 0x8000, 0x8002, 0x8004, 0x8006, 0xFFFF)
        noBusIds = (b"", b"usb1", b"1-1:1.0", b"../../x", b"1-1\n", b"\xff", b" 1-1", b"0-1")
        for received, because in (
            *((text, version) for text in (*http, b"\x01\x06" + LIST[2:])),
            *(
                (struct.pack(">HHI", 0x0111, it, 0), f"unknown request code {it:#06x}")
                for it in codes
            ),
            *(
                (self.importOf(it), "not a bus id")
                for it in (*noBusIds, b"1-1" + 14 * b".1" + b"1")
            ),
        ):
            self.assertInvalid(received, because)
        for request in (LIST, IMPORT):
            for more in (b"\0", b"\1", request, 48 * b"\0"):
                self.assertInvalid(request + more, "after the request")
            for status in (1, 0x01000000):
                self.assertInvalid(request[:4] + struct.pack(">I", status) + request[8:], "status")

    @FUZZ
    @given(st.binary(max_size=64), st.integers(0, 64))
    def test_anyBytes(self, received: bytes, length: int) -> None:
        """Any bytes are a request, the beginning of one, or invalid, which more bytes do not
        change."""
        self.assertDecoded(received)
        try:
            decode(received[:length])
        except NotUsbIp:
            self.assertRaises(NotUsbIp, decode, received)

    @FUZZ
    @given(
        st.sampled_from([LIST, IMPORT]),
        st.lists(st.tuples(st.integers(0, 47), st.integers(0, 255)), max_size=4),
        st.integers(0, 48),
        st.binary(max_size=8),
    )
    @example(LIST, [], 8, b"")
    def test_nearlyOne(
        self, request: bytes, changes: list[tuple[int, int]], length: int, behind: bytes
    ) -> None:
        """So are requests with some bytes changed."""
        received = bytearray(request)
        for at, byte in changes:
            received[at % len(received)] = byte
        self.assertDecoded(bytes(received[:length]) + behind)

    def assertDecoded(self, received: bytes) -> None:
        """It is decoded or refused, and only a request's own bytes are one."""
        try:
            request = decode(received)
        except NotUsbIp as error:
            self.assertTrue(str(error).isprintable())
        else:
            self.assertIsInstance(request, ListRequest | ImportRequest | None)
            if request is None:
                self.assertLess(len(received), LONGEST_REQUEST)
            if isinstance(request, ListRequest):
                self.assertEqual(received, LIST)
            if isinstance(request, ImportRequest):
                busId = request.busId.encode() + b"\0"
                self.assertEqual(received[: 8 + len(busId)], IMPORT[:8] + busId)
                self.assertEqual(len(received), LONGEST_REQUEST)


class EncodingTests(SynchronousTestCase):
    """
    Replies, byte for byte.
    """

    def test_replies(self) -> None:
        """An import, each refusal, and a list with the interfaces of each device."""
        self.assertEqual(encodeImport(BOARD), IMPORT_HEAD + DESCRIBED)
        self.assertEqual(len(encodeImport(BOARD)), 320)
        for status in OpStatus:
            expected = bytes.fromhex("0111 0003 000000") + bytes([status])
            self.assertEqual(encodeRefusal(status), expected)
        self.assertEqual([int(status) for status in OpStatus], [0, 1, 2, 3, 4, 5])
        self.assertEqual(encodeList([]), LIST_HEAD + bytes(4))
        both = encodeList([BOARD, changed(BOARD, interfaces=())])
        described = DESCRIBED + bytes.fromhex("02020100 0a000000") + DESCRIBED[:-1] + b"\0"
        self.assertEqual(both, LIST_HEAD + bytes.fromhex("00000002") + described)

    def test_manyInterfaces(self) -> None:
        """A device with more interfaces than the format allows does not spoil the list."""
        encoded = encodeList([changed(BOARD, interfaces=300 * ("ff/01/02",)), BOARD])
        self.assertEqual(encoded[12 + 311], 255)
        rest = encoded[12 + 312 :]
        self.assertEqual(rest[: 255 * 4], 255 * bytes.fromhex("ff010200"))
        self.assertEqual(rest[255 * 4 :], DESCRIBED + bytes.fromhex("02020100 0a000000"))

    def test_fields(self) -> None:
        """Speeds are the kernel's numbers, 0 if not known. A path that is too long is cut off
        before the NUL; without a path the bus id is sent. Little needs to be known of a device."""
        for speed, number in (
            *(("1.5", 1), ("12", 2), ("480", 3), ("5000", 5), ("20000", 6)),
            *((None, 0), ("40000", 0)),
        ):
            encoded = encodeImport(changed(BOARD, speed=speed))[8:]
            self.assertEqual(int.from_bytes(encoded[296:300], "big"), number)
        self.assertLessEqual(set(SPEED_OF.values()), set(range(1, 7)))
        for path, expected in (
            ("/" + 300 * "x", b"/" + 254 * b"x" + b"\0"),
            ("/" + 254 * "x", b"/" + 254 * b"x" + b"\0"),
            *((None, b"3-7.2\0"), ("/\udcff", b"/?\0")),
        ):
            encoded = encodeImport(changed(BOARD, sysfsPath=path))
            self.assertEqual(len(encoded), 320)
            self.assertTrue(encoded[8:].startswith(expected), path)
        little = changed(UNO, speed=None, sysfsPath=None, interfaces=(), deviceNumber=0)
        self.assertEqual(len(encodeList([little])), 12 + 312)


class ImportReplyTests(SynchronousTestCase):
    """
    The reply to an import, as a client decodes it.
    """

    def test_imported(self) -> None:
        """A device is decoded as it was encoded; paths of other servers are accepted. Of a
        beginning the rest is awaited."""
        answer = encodeImport(BOARD)
        self.assertEqual(len(answer), IMPORT_REPLY)
        self.assertEqual(decodeImport(answer), EXPORTED)
        self.assertEqual(EXPORTED.deviceId, 0x00031234)
        device = decodeImport(WINDOWS)
        assert device is not None
        self.assertEqual((device.busId, device.deviceId, device.speed), ("1-4", 0x10004, 2))
        for reply in (answer, encodeRefusal(OpStatus.NODEV)):
            for length in range(len(reply)):
                self.assertIsNone(decodeImport(reply[:length]))

    def test_refused(self) -> None:
        """Each status but success has its message, unknown ones too."""
        for status, text in (
            *((OpStatus.NA, "no devices"), (OpStatus.DEV_BUSY, "another client")),
            *((OpStatus.DEV_ERR, "could not be bound"), (OpStatus.NODEV, "no bound device there")),
            (OpStatus.ERROR, "refuses"),
        ):
            error = self.assertRaises(NotGiven, decodeImport, encodeRefusal(status))
            self.assertEqual(error.status, status)
            self.assertIn(text, str(error))
        unknown = bytes.fromhex("0111 0003 000000ff")
        self.assertIn("status 255", str(self.assertRaises(NotGiven, decodeImport, unknown)))

    def test_invalid(self) -> None:
        """Other replies, bytes after the reply, and text that is no bus id are refused as soon as
        that can be seen; another version with both versions."""
        self.assertRaises(NotUsbIp, decodeImport, encodeImport(BOARD) + b"\0")
        others = (b"HTTP/1.1 400", b"{", b"\x01\x06", encodeList((UNO,)), b"\x01\x11\x00\x05")
        for received in others:
            for answer in (received, received[:1], received[:4]):
                if not encodeImport(UNO).startswith(answer):
                    self.assertRaises(NotUsbIp, decodeImport, answer)
        for received in (b"\x01\x06", bytes.fromhex("0106 0003 00000000")):
            error = self.assertRaises(OtherVersion, decodeImport, received)
            self.assertEqual(str(error), "the server has USB/IP 0x0106, and 0x0111 is needed")
        for name in (b"usb1", b"", b"1-1:1.0", b"\xff" * 32):
            changedReply = bytearray(encodeImport(BOARD))
            changedReply[REPLY_HEAD + 256 : REPLY_HEAD + 288] = name.ljust(32, b"\0")
            self.assertRaises(NotUsbIp, decodeImport, bytes(changedReply))

    @FUZZ
    @given(st.binary(max_size=1000))
    def test_garbage(self, received: bytes) -> None:
        """Any bytes are decoded or refused."""
        for begin in (b"", IMPORT_HEAD, LIST_HEAD):
            for reads in (decodeImport, decodeList):
                with contextlib.suppress(NotGiven, NotUsbIp):
                    reads(begin + received)


class ListReplyTests(SynchronousTestCase):
    """
    The reply to a list, as a client decodes it.
    """

    def test_list(self) -> None:
        """Devices are decoded with their interfaces. Of a beginning the rest is awaited."""
        answer = encodeList((BOARD, STICK, changed(MOUSE, interfaces=("03/01/02",))))
        found = decodeList(answer)
        assert found is not None
        self.assertEqual([each.busId for each in found], ["3-7.2", "1-2", "2-10"])
        self.assertEqual(
            [each.interfaces for each in found], [("02/02/01", "0a/00/00"), (), ("03/01/02",)]
        )
        self.assertEqual(decodeList(encodeList(())), ())
        for length in range(len(answer)):
            self.assertIsNone(decodeList(answer[:length]))
        self.assertRaises(NotUsbIp, decodeList, answer + b"\0")
        self.assertIsNone(decodeList(LIST_HEAD + bytes.fromhex("ffffffff")))
        self.assertRaises(NotGiven, decodeList, bytes.fromhex("0111 0005 00000001"))


class OtherClientTests(SynchronousTestCase):
    """
    Interoperation with the client in the package C{usbip}.
    """

    if not softdevice.installed:
        skip = "the package usbip is not installed"

    def setUp(self) -> None:
        self.client, self.server = socket.socketpair()
        self.addCleanup(self.client.close)
        self.addCleanup(self.server.close)

    def test_import(self) -> None:
        """It imports a device."""
        self.server.sendall(encodeImport(BOARD))
        decoded: dict[str, Any] = protocol.client_import(self.client, b"3-7.2")
        self.assertEqual(decode(self.server.recv(100)), ImportRequest("3-7.2"))
        self.assertEqual(
            decoded,
            {
                "busid": "3-7.2",
                "busnum": 3,
                "devnum": 0x1234,
                "speed": 2,
                "idVendor": 0x2341,
                "idProduct": 0x0043,
                "bcdDevice": 0x0102,
                "bNumConfigurations": 5,
                "bNumInterfaces": 2,
            },
        )

    def test_list(self) -> None:
        """It lists devices."""
        self.server.sendall(encodeList([BOARD, changed(BOARD, busId="1-2", interfaces=())]))
        decoded = protocol.client_devlist(self.client)
        self.assertEqual(decode(self.server.recv(100)), ListRequest())
        self.assertEqual([device["busid"] for device in decoded], ["3-7.2", "1-2"])
        self.assertEqual([it["interfaces"] for it in decoded], [[(2, 2, 1), (10, 0, 0)], []])

    def test_refused(self) -> None:
        """It reports each status of a refusal."""
        for status in set(OpStatus) - {OpStatus.OK}:
            self.server.sendall(encodeRefusal(status))
            with self.assertRaisesRegex(Exception, f"status {status:d}"):
                protocol.client_import(self.client, b"3-7.2")
            self.server.recv(100)
