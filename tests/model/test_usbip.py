"""
Tests of L{usbip_server.model.usbip}.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import UNO, changed
from usbip_server.backends import softdevice
from usbip_server.model.usbip import (
    LONGEST_REQUEST,
    SPEED_OF,
    ImportRequest,
    ListRequest,
    NotUsbIp,
    OpStatus,
    decode,
    encodeImport,
    encodeList,
    encodeRefusal,
)

if softdevice.installed:
    from usbip import protocol  # type: ignore[import-untyped]

FUZZ = settings(max_examples=500, deadline=None, database=None)
"""As many inputs as take half a second; nothing is kept of them."""

LIST = bytes.fromhex("0111 8005 00000000")
IMPORT = bytes.fromhex("0111 8003 00000000") + b"1-1.4" + 27 * b"\0"

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

DESCRIBED = (
    b"/sys/devices/pci0000:00/usb3/3-7/3-7.2".ljust(256, b"\0")
    + b"3-7.2".ljust(32, b"\0")
    + bytes.fromhex("00000003 00001234 00000002")  # bus, device number, full speed
    + bytes.fromhex("2341 0043 0102")
    + bytes.fromhex("02 03 04")
    + bytes.fromhex("00 05 02")  # no configuration is set, of 5; two interfaces
)


class DecodingTests(SynchronousTestCase):
    """
    What has come becomes a request.
    """

    def assertNotOne(self, received: bytes, because: str) -> None:
        """It is no request."""
        self.assertIn(because, str(self.assertRaises(NotUsbIp, decode, received)))

    def importOf(self, busId: bytes) -> bytes:
        """A request for what is at a bus id."""
        return IMPORT[:8] + busId.ljust(32, b"\0")

    def test_requests(self) -> None:
        """The two that there are."""
        self.assertEqual(decode(LIST), ListRequest())
        self.assertEqual(decode(IMPORT), ImportRequest("1-1.4"))
        self.assertEqual(len(IMPORT), LONGEST_REQUEST)

    def test_truncated(self) -> None:
        """Of each beginning of one the rest is awaited."""
        for request in (LIST, IMPORT):
            for length in range(len(request)):
                self.assertIsNone(decode(request[:length]), length)

    def test_behind(self) -> None:
        """A client that says more than its request is none."""
        for request in (LIST, IMPORT):
            for more in (b"\0", b"\1", request, 48 * b"\0"):
                self.assertNotOne(request + more, "after the request")

    def test_version(self) -> None:
        """What does not begin with the version is refused as soon as that can be seen."""
        for received in (b"\0", b"\x02", b"G", b"GET / HTTP/1.1\r\n", b'{"command":"list"}'):
            self.assertNotOne(received, "version 0x0111")
        self.assertNotOne(b"\x01\x10", "version 0x0111")
        self.assertNotOne(b"\x01\x06" + LIST[2:], "version 0x0111")

    def test_code(self) -> None:
        """There are no other requests; the answers are none."""
        for code in (0, 3, 5, 0x8000, 0x8002, 0x8004, 0x8006, 0xFFFF):
            received = struct.pack(">HHI", 0x0111, code, 0)
            self.assertNotOne(received, f"unknown request code {code:#06x}")

    def test_status(self) -> None:
        """A request has no status."""
        for request in (LIST, IMPORT):
            for status in (1, 0x01000000):
                received = request[:4] + struct.pack(">I", status) + request[8:]
                self.assertNotOne(received, "status")

    def test_notABusId(self) -> None:
        """What names no device is refused."""
        for text in (b"", b"usb1", b"1-1:1.0", b"../../x", b"1-1\n", b"\xff", b" 1-1", b"0-1"):
            self.assertNotOne(self.importOf(text), "not a bus id")

    def test_noEnd(self) -> None:
        """A bus id that takes all the room, so that no NUL ends it, is none; a byte less is
        one."""
        longest = b"1-1" + 14 * b".1"
        self.assertEqual(decode(self.importOf(longest)), ImportRequest(longest.decode()))
        self.assertNotOne(self.importOf(longest + b"1"), "not a bus id")

    def test_padding(self) -> None:
        """What stands behind the NUL does not count: a client need not clear its memory."""
        self.assertEqual(decode(IMPORT[:8] + b"1-2\0" + 28 * b"\xa5"), ImportRequest("1-2"))

    @FUZZ
    @given(st.binary(max_size=64))
    def test_anyBytes(self, received: bytes) -> None:
        """Whatever comes is a request, the beginning of one, or none."""
        self.assertDecoded(received)

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
        """So is what resembles one."""
        received = bytearray(request)
        for at, byte in changes:
            received[at % len(received)] = byte
        self.assertDecoded(bytes(received[:length]) + behind)

    @FUZZ
    @given(st.binary(max_size=48), st.integers(0, 48))
    def test_sooner(self, received: bytes, length: int) -> None:
        """What is no request does not become one by waiting for more of it."""
        try:
            decode(received[:length])
        except NotUsbIp:
            self.assertRaises(NotUsbIp, decode, received)

    def assertDecoded(self, received: bytes) -> None:
        """It can be told what it is."""
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
    The answers, byte for byte.
    """

    def test_import(self) -> None:
        """A device that the client has got."""
        self.assertEqual(encodeImport(BOARD), bytes.fromhex("0111 0003 00000000") + DESCRIBED)
        self.assertEqual(len(encodeImport(BOARD)), 320)

    def test_refusal(self) -> None:
        """One that it has not: only the status."""
        for status in OpStatus:
            expected = bytes.fromhex("0111 0003 000000") + bytes([status])
            self.assertEqual(encodeRefusal(status), expected)
        self.assertEqual([int(status) for status in OpStatus], [0, 1, 2, 3, 4, 5])

    def test_list(self) -> None:
        """All devices, each with its interfaces."""
        bare = changed(BOARD, interfaces=())
        expected = (
            bytes.fromhex("0111 0005 00000000")
            + bytes.fromhex("00000002")
            + DESCRIBED
            + bytes.fromhex("02020100 0a000000")
            + DESCRIBED[:-1]
            + b"\0"
        )
        self.assertEqual(encodeList([BOARD, bare]), expected)

    def test_manyInterfaces(self) -> None:
        """A device with more interfaces than a list can tell of does not spoil it for others."""
        crowded = changed(BOARD, interfaces=300 * ("ff/01/02",))
        encoded = encodeList([crowded, BOARD])
        self.assertEqual(encoded[12 + 311], 255)
        rest = encoded[12 + 312 :]
        self.assertEqual(rest[: 255 * 4], 255 * bytes.fromhex("ff010200"))
        self.assertEqual(rest[255 * 4 :], DESCRIBED + bytes.fromhex("02020100 0a000000"))

    def test_empty(self) -> None:
        """A list of nothing."""
        self.assertEqual(encodeList([]), bytes.fromhex("0111 0005 00000000 00000000"))

    def test_speeds(self) -> None:
        """The speeds are the kernel's; one that is not known is 0."""
        for speed, number in (("1.5", 1), ("12", 2), ("480", 3), ("5000", 5), ("20000", 6)):
            self.assertEqual(self.field(296, speed=speed), number)
        self.assertEqual(self.field(296, speed=None), 0)
        self.assertEqual(self.field(296, speed="40000"), 0)
        self.assertLessEqual(set(SPEED_OF.values()), set(range(1, 7)))

    def field(self, at: int, **fields: Any) -> int:
        """A number in a description."""
        encoded = encodeImport(changed(BOARD, **fields))[8:]
        return int.from_bytes(encoded[at : at + 4], "big")

    def test_path(self) -> None:
        """A path that is too long is cut, and a NUL stays; none is the bus id; and it may hold
        what is no text."""
        for path, expected in (
            ("/" + 300 * "x", b"/" + 254 * b"x" + b"\0"),
            ("/" + 254 * "x", b"/" + 254 * b"x" + b"\0"),
            (None, b"3-7.2\0"),
            ("/\udcff", b"/?\0"),
        ):
            encoded = encodeImport(changed(BOARD, path=path))
            self.assertEqual(len(encoded), 320)
            self.assertTrue(encoded[8:].startswith(expected), path)

    def test_defaults(self) -> None:
        """A device of which little is known can be described too."""
        little = changed(UNO, speed=None, path=None, interfaces=(), deviceNumber=0)
        self.assertEqual(len(encodeList([little])), 12 + 312)


class OtherClientTests(SynchronousTestCase):
    """
    What a client that others wrote says and understands.
    """

    if not softdevice.installed:
        skip = "the package usbip is not installed"

    def setUp(self) -> None:
        self.client, self.server = socket.socketpair()
        self.addCleanup(self.client.close)
        self.addCleanup(self.server.close)

    def test_import(self) -> None:
        """It asks for a device, and gets it."""
        self.server.sendall(encodeImport(BOARD))
        told = protocol.client_import(self.client, b"3-7.2")
        self.assertEqual(decode(self.server.recv(100)), ImportRequest("3-7.2"))
        self.assertEqual(
            told,
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
        """It asks which devices there are, and is told."""
        self.server.sendall(encodeList([BOARD, changed(BOARD, busId="1-2", interfaces=())]))
        told = protocol.client_devlist(self.client)
        self.assertEqual(decode(self.server.recv(100)), ListRequest())
        self.assertEqual([device["busid"] for device in told], ["3-7.2", "1-2"])
        self.assertEqual([device["interfaces"] for device in told], [[(2, 2, 1), (10, 0, 0)], []])

    def test_refused(self) -> None:
        """It asks for a device, and does not get it."""
        for status in set(OpStatus) - {OpStatus.OK}:
            self.server.sendall(encodeRefusal(status))
            with self.assertRaisesRegex(Exception, f"status {status:d}"):
                protocol.client_import(self.client, b"3-7.2")
            self.server.recv(100)
