"""
Encodes and decodes the messages of a USB/IP connection before USB traffic begins:
C{OP_REQ_DEVLIST}, C{OP_REQ_IMPORT} and their replies.

All numbers are big-endian, structures packed (Linux, C{Documentation/usb/usbip_protocol.rst};
C{tools/usb/usbip/src/usbip_network.h}, C{libsrc/usbip_common.h})::

    op_common       8   version 0x0111, code, status; the status of a request is 0
    OP_REQ_DEVLIST      op_common
    OP_REP_DEVLIST      op_common, number of devices, then each usb_device with its usb_interfaces
    OP_REQ_IMPORT       op_common, busid[32]
    OP_REP_IMPORT       op_common, and usb_device if the status is 0
    usb_device    312   path[256], busid[32], numbers
    usb_interface   4   class, subclass, protocol, 0
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable

import msgspec

from usbip_server.model.device import UsbDevice, isBusId
from usbip_server.model.errors import ClientError

VERSION = 0x0111

_COMMON = struct.Struct(">HHI")
_BUS_ID = struct.Struct("32s")
_DEVICE = struct.Struct(">256s32sIIIHHHBBBBBB")
_COUNT = struct.Struct(">I")

_PATH_AT_MOST = _INTERFACES_AT_MOST = 255
"""Bytes of a path, which is followed by a NUL; interfaces of a device."""

LONGEST_REQUEST = _COMMON.size + _BUS_ID.size

REPLY_HEAD = _COMMON.size
"""Bytes of C{op_common}: a reply with a status other than 0 has no more."""

IMPORT_REPLY = REPLY_HEAD + _DEVICE.size
"""Bytes of a successful reply to an import."""

_REQ_DEVLIST, _REP_DEVLIST = 0x8005, 0x0005
_REQ_IMPORT, _REP_IMPORT = 0x8003, 0x0003

SPEED_OF = {"1.5": 1, "12": 2, "480": 3, "53.3-480": 4, "5000": 5, "10000": 6, "20000": 6}
"""C{enum usb_device_speed} (C{include/uapi/linux/usb/ch9.h}) for each speed in sysfs."""


class OpStatus(enum.IntEnum):
    """
    The status of a reply (C{ST_OK} and so on, C{libsrc/usbip_common.h}).
    """

    OK = 0
    NA = 1
    DEV_BUSY = 2
    DEV_ERR = 3
    NODEV = 4
    ERROR = 5


class NotUsbIp(Exception):
    """
    The bytes are not the USB/IP message expected. The text states why.
    """


class OtherVersion(NotUsbIp):
    """
    The message is of another version of USB/IP.
    """


class NotGiven(ClientError):
    """
    The server has refused to export a device to this client.

    @ivar status: the status of the reply: an L{OpStatus}, or another number.
    """

    def __init__(self, status: int) -> None:
        super().__init__(MEANING_OF.get(status, f"its server answers with status {status}"))
        self.status = status


MEANING_OF: dict[int, str] = {
    OpStatus.NA: "its server has no devices at present",
    OpStatus.DEV_BUSY: "another client has imported it",
    OpStatus.DEV_ERR: "it could not be bound, or the kernel of its server refused the connection",
    OpStatus.NODEV: "its server has no bound device there, or does not permit the import",
    OpStatus.ERROR: "its server refuses the request",
}


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """
    A device in a server's reply (C{struct usbip_usb_device}).

    @ivar speed: one of the numbers in L{SPEED_OF}.
    @ivar interfaces: class, subclass and protocol of each; only in the reply to a list.
    """

    path: str
    busId: str
    busNumber: int
    deviceNumber: int
    speed: int
    vendorId: str
    productId: str
    release: int
    deviceClass: str
    subclass: str
    protocol: str
    configurations: int
    interfaces: tuple[str, ...] = ()

    @property
    def deviceId(self) -> int:
        """The identifier that C{vhci_hcd} uses (C{devid}, C{drivers/usb/usbip/vhci_sysfs.c})."""
        return self.busNumber << 16 | self.deviceNumber


class ListRequest(msgspec.Struct, frozen=True):
    """
    C{OP_REQ_DEVLIST}: requests the devices that can be imported.
    """


class ImportRequest(msgspec.Struct, frozen=True):
    """
    C{OP_REQ_IMPORT}: requests a device.
    """

    busId: str


def decode(received: bytes) -> ListRequest | ImportRequest | None:
    """
    Decode a request.

    @param received: all bytes that were received.
    @return: C{None} if the request is not complete.
    @raise NotUsbIp: the bytes are not a request, or data follows the request: a client sends
        nothing before the reply.
    """
    if not f"{VERSION:04x}".startswith(received[:2].hex()):
        raise NotUsbIp(f"the request does not begin with version {VERSION:#06x}")
    if len(received) < _COMMON.size:
        return None
    _, code, status = _COMMON.unpack_from(received)
    if code not in (_REQ_DEVLIST, _REQ_IMPORT):
        raise NotUsbIp(f"unknown request code {code:#06x}")
    if status != 0:
        raise NotUsbIp(f"the status of a request has to be 0, not {status}")
    length = _COMMON.size if code == _REQ_DEVLIST else LONGEST_REQUEST
    if len(received) > length:
        raise NotUsbIp("unexpected data after the request")
    if len(received) < length:
        return None
    return ListRequest() if code == _REQ_DEVLIST else ImportRequest(_busId(received))


def _busId(received: bytes) -> str:
    raw = received[_COMMON.size :].partition(b"\0")[0]
    text = raw.decode("latin-1")
    if not isBusId(text) or len(raw) == _BUS_ID.size:
        raise NotUsbIp(f"{text!r} is not a bus id")
    return text


def encodeList(devices: Iterable[UsbDevice]) -> bytes:
    """
    Encode C{OP_REP_DEVLIST}.
    """
    parts = [_described(device) + _interfaces(device) for device in devices]
    head = _COMMON.pack(VERSION, _REP_DEVLIST, OpStatus.OK) + _COUNT.pack(len(parts))
    return head + b"".join(parts)


def encodeImport(device: UsbDevice) -> bytes:
    """
    Encode a successful C{OP_REP_IMPORT}.
    """
    return _COMMON.pack(VERSION, _REP_IMPORT, OpStatus.OK) + _described(device)


def encodeRefusal(status: OpStatus) -> bytes:
    """
    Encode an C{OP_REP_IMPORT} that refuses the import.
    """
    return _COMMON.pack(VERSION, _REP_IMPORT, status)


def _described(device: UsbDevice) -> bytes:
    """
    Encode C{struct usbip_usb_device}. C{bConfigurationValue} is 0: a bound device has no
    configuration until its client sets one. The path is only displayed by clients. The bus and
    device number are the C{devid} in each C{usbip_header_basic}, which C{usbip-host} compares
    with its own (C{valid_request}, C{drivers/usb/usbip/stub_rx.c}).
    """
    path = (device.sysfsPath or device.busId).encode("utf-8", "replace")
    bus, number = device.numbers or (device.busNumber, device.deviceNumber)
    return _DEVICE.pack(
        path[:_PATH_AT_MOST],
        device.busId.encode("ascii"),
        bus,
        number,
        SPEED_OF.get(device.speed or "", 0),
        int(device.vendorId, 16),
        int(device.productId, 16),
        device.release,
        int(device.deviceClass, 16),
        int(device.subclass, 16),
        int(device.protocol, 16),
        0,
        device.configurations,
        len(device.interfaces[:_INTERFACES_AT_MOST]),
    )


def _interfaces(device: UsbDevice) -> bytes:
    triples = device.interfaces[:_INTERFACES_AT_MOST]
    return b"".join(bytes.fromhex(triple.replace("/", "")) + b"\0" for triple in triples)


def encodeRequest(request: ListRequest | ImportRequest) -> bytes:
    """
    Encode a request.
    """
    if isinstance(request, ListRequest):
        return _COMMON.pack(VERSION, _REQ_DEVLIST, 0)
    return _COMMON.pack(VERSION, _REQ_IMPORT, 0) + _BUS_ID.pack(request.busId.encode("ascii"))


def decodeImport(received: bytes) -> Exported | None:
    """
    Decode C{OP_REP_IMPORT}.

    @param received: all bytes that were received.
    @return: C{None} if the reply is not complete.
    @raise NotGiven: the server has refused the import.
    @raise NotUsbIp: the bytes are not such a reply, or data follows it.
    """
    if not _isAnswered(received, _REP_IMPORT):
        return None
    if len(received) > IMPORT_REPLY:
        raise NotUsbIp("unexpected data after the reply")
    return _exported(received, _COMMON.size) if len(received) == IMPORT_REPLY else None


def decodeList(received: bytes) -> tuple[Exported, ...] | None:
    """
    Decode C{OP_REP_DEVLIST}. Parameters and errors are those of L{decodeImport}.
    """
    if not _isAnswered(received, _REP_DEVLIST) or len(received) < _COMMON.size + _COUNT.size:
        return None
    (count,) = _COUNT.unpack_from(received, _COMMON.size)
    at = _COMMON.size + _COUNT.size
    devices = []
    for _ in range(count):
        if len(received) < at + _DEVICE.size:
            return None
        interfaces = received[at + _DEVICE.size - 1]
        end = at + _DEVICE.size + 4 * interfaces
        if len(received) < end:
            return None
        triples = (received[each : each + 3] for each in range(end - 4 * interfaces, end, 4))
        devices.append(
            msgspec.structs.replace(
                _exported(received, at), interfaces=tuple(triple.hex("/") for triple in triples)
            )
        )
        at = end
    if len(received) > at:
        raise NotUsbIp("unexpected data after the reply")
    return tuple(devices)


def _isAnswered(received: bytes, expected: int) -> bool:
    """
    Check the head of a reply.

    @return: whether it is complete.
    """
    version = int.from_bytes(received[:2], "big")
    if len(received) > 1 and version != VERSION and version >> 8 == VERSION >> 8:
        raise OtherVersion(f"the server has USB/IP {version:#06x}, and {VERSION:#06x} is needed")
    if not f"{VERSION:04x}{expected:04x}".startswith(received[:4].hex()):
        raise NotUsbIp("the reply is not that of a USB/IP server")
    if len(received) < _COMMON.size:
        return False
    status = _COMMON.unpack_from(received)[2]
    if status != OpStatus.OK:
        raise NotGiven(status)
    return True


def _exported(received: bytes, at: int) -> Exported:
    path, busId, bus, number, speed, vendor, product, release, *rest = _DEVICE.unpack_from(
        received, at
    )
    name = busId.partition(b"\0")[0].decode("latin-1")
    if not isBusId(name):
        raise NotUsbIp(f"the reply contains {name!r}, which is not a bus id")
    return Exported(
        path=path.partition(b"\0")[0].decode("utf-8", "replace"),
        busId=name,
        busNumber=bus,
        deviceNumber=number,
        speed=speed,
        vendorId=f"{vendor:04x}",
        productId=f"{product:04x}",
        release=release,
        deviceClass=f"{rest[0]:02x}",
        subclass=f"{rest[1]:02x}",
        protocol=f"{rest[2]:02x}",
        configurations=rest[4],
    )
