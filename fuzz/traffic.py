"""The USB traffic of a client that has imported a virtual device. The first byte selects it."""

from __future__ import annotations

import struct
import threading
from typing import Any

from usbip_server.backends import softdevice

DISK_BYTES = 64 * 1024

OUT, IN = 0, 1


def submit(number: int, direction: int, data: bytes = b"", length: int = 64, **more: int) -> bytes:
    """C{USBIP_CMD_SUBMIT}."""
    length = len(data) or length
    setup = more.get("setup", 0).to_bytes(8, "big")
    head = struct.pack(">6Ii12x", 1, number, 0, direction, more.get("endpoint", 1), 0, length)
    return head + setup + data


def unlink(number: int, other: int) -> bytes:
    """C{USBIP_CMD_UNLINK}."""
    return struct.pack(">6I24x", 2, number, 0, 0, 1, other)


def wrapper(command: bytes, size: int, isIn: bool = True) -> bytes:
    """A SCSI command in a command block wrapper (USB Mass Storage Bulk-Only Transport, 5.1)."""
    head = struct.pack("<4sIIBBB", b"USBC", 1, size, 0x80 * isIn, 0, len(command))
    return head + command.ljust(16, b"\0")


DESCRIPTOR = 0x8006000100001200
CODING, ADDRESS = 0x2120000000000700, 0x0005020000000000
READ = wrapper(struct.pack(">BxIxHx", 0x28, 1, 2), 1024)
WRITE = wrapper(struct.pack(">BxIxHx", 0x2A, 1, 1), 512, isIn=False)
INQUIRY = wrapper(bytes((0x12, 0, 0, 0, 36, 0)), 36)

SEEDS = (
    b"\0" + submit(1, IN, length=18, endpoint=0, setup=DESCRIPTOR),
    b"\0" + submit(1, OUT, b"1234567", endpoint=0, setup=CODING) + submit(2, IN),
    b"\0" + submit(1, IN) + submit(2, OUT, b"hello") + submit(3, IN) + unlink(4, 3),
    b"\1" + submit(1, OUT, INQUIRY) + submit(2, IN, length=36, endpoint=2),
    b"\1" + submit(1, OUT, READ) + 2 * submit(2, IN, length=1024, endpoint=2),
    b"\1" + submit(1, OUT, WRITE) + submit(2, OUT, bytes(512)) + submit(3, IN, endpoint=2),
    b"\1" + submit(1, IN, endpoint=2) + submit(1, IN, endpoint=2),
)

WORDS = (b"USBC", READ[:15], WRITE[:15], b"\xa8", b"\xaa", b"\x80\6\3", b"\0\0\0\2", b"\x7f\xff")


class MemoryWire(softdevice.Wire):
    """
    A connection whose client has sent some bytes and no more.

    @ivar sent: the replies.
    """

    def __init__(self, data: bytes) -> None:
        self.sending = threading.Lock()
        self.sent = bytearray()
        self._ahead, self._data = b"", data

    def recv(self, most: int) -> bytes:
        if self._ahead:
            return super().recv(most)
        received, self._data = self._data[:most], self._data[most:]
        return received

    def sendall(self, data: bytes) -> None:
        self.sent += data


def check(data: bytes) -> None:
    """An input ends the session, or gets valid replies; what the device buffers is bounded."""
    if not softdevice.installed:
        return
    size = DISK_BYTES if data[:1] and data[0] % 2 else None
    device = softdevice.makeDevice("1209", "0001", size)
    wire = MemoryWire(data[1:])
    carrier: Any = softdevice.SoftDevice(device, None, lambda: None)
    try:
        carrier._carry(wire)
    except softdevice.InvalidTraffic as error:
        assert str(error).isprintable()
    assert 0 <= device.unread.bytes <= 2 * softdevice.LARGEST
    checkReplies(bytes(wire.sent))


def checkReplies(sent: bytes) -> None:
    """Assert that these are C{USBIP_RET_SUBMIT} and C{USBIP_RET_UNLINK}."""
    while sent:
        kind, _, _, direction, _, _, length = struct.unpack_from(">5Iii", sent)
        assert kind in (3, 4) and 0 <= length <= softdevice.LARGEST
        carried = length if kind == 3 and direction == IN else 0
        assert len(sent) >= 48 + carried
        sent = sent[48 + carried :]
