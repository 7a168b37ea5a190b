"""
What is said on a USB/IP connection before USB traffic begins: C{OP_REQ_DEVLIST},
C{OP_REQ_IMPORT} and their answers.

All numbers are big-endian, structures packed (Linux, C{Documentation/usb/usbip_protocol.rst};
C{tools/usb/usbip/src/usbip_network.h}, C{libsrc/usbip_common.h})::

    op_common       8   version 0x0111, code, status; a request's status is 0
    OP_REQ_DEVLIST      op_common
    OP_REP_DEVLIST      op_common, how many devices, each with its interfaces
    OP_REQ_IMPORT       op_common, busid[32]
    OP_REP_IMPORT       op_common, and the device if the status is 0
    usb_device    312   path[256], busid[32], and numbers
    usb_interface   4   class, subclass, protocol, 0
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable

import msgspec

from usbip_server.device import UsbDevice, isBusId

VERSION = 0x0111

_COMMON = struct.Struct(">HHI")
_BUS_ID = struct.Struct("32s")
_DEVICE = struct.Struct(">256s32sIIIHHHBBBBBB")
_COUNT = struct.Struct(">I")

_PATH_AT_MOST = 255
"""Bytes, and a NUL."""

LONGEST_REQUEST = _COMMON.size + _BUS_ID.size

_REQ_DEVLIST, _REP_DEVLIST = 0x8005, 0x0005
_REQ_IMPORT, _REP_IMPORT = 0x8003, 0x0003

SPEED_OF = {"1.5": 1, "12": 2, "480": 3, "53.3-480": 4, "5000": 5, "10000": 6, "20000": 6}
"""C{enum usb_device_speed} (C{include/uapi/linux/usb/ch9.h}), by what sysfs says."""


class OpStatus(enum.IntEnum):
    """
    How a request went (C{ST_OK} and so on, C{libsrc/usbip_common.h}).
    """

    OK = 0
    NA = 1
    DEV_BUSY = 2
    DEV_ERR = 3
    NODEV = 4
    ERROR = 5


class NotUsbIp(Exception):
    """
    What has come is no request. The text says why.
    """


class ListRequest(msgspec.Struct, frozen=True):
    """
    Which devices can be imported?
    """


class ImportRequest(msgspec.Struct, frozen=True):
    """
    To import a device.

    @ivar busId: which.
    """

    busId: str


def decode(received: bytes) -> ListRequest | ImportRequest | None:
    """
    Make a request of what has come.

    @return: C{None} if there is more to come.
    @raise NotUsbIp: it is none, or there is something behind it: a client says nothing more
        until it is answered.
    """
    if not f"{VERSION:04x}".startswith(received[:2].hex()):
        raise NotUsbIp(f"it does not begin with version {VERSION:#06x}")
    if len(received) < _COMMON.size:
        return None
    _, code, status = _COMMON.unpack_from(received)
    if code not in (_REQ_DEVLIST, _REQ_IMPORT):
        raise NotUsbIp(f"there is no request {code:#06x}")
    if status != 0:
        raise NotUsbIp(f"a request with status {status}")
    length = _COMMON.size if code == _REQ_DEVLIST else LONGEST_REQUEST
    if len(received) > length:
        raise NotUsbIp("there is something behind the request")
    if len(received) < length:
        return None
    return ListRequest() if code == _REQ_DEVLIST else ImportRequest(_busId(received))


def _busId(received: bytes) -> str:
    raw = received[_COMMON.size :].partition(b"\0")[0]
    text = raw.decode("latin-1")
    if not isBusId(text) or len(raw) == _BUS_ID.size:
        raise NotUsbIp(f"{text!r} is no bus id")
    return text


def encodeList(devices: Iterable[UsbDevice]) -> bytes:
    """
    The answer to L{ListRequest}.
    """
    parts = [_described(device) + _interfaces(device) for device in devices]
    head = _COMMON.pack(VERSION, _REP_DEVLIST, OpStatus.OK) + _COUNT.pack(len(parts))
    return head + b"".join(parts)


def encodeImport(device: UsbDevice) -> bytes:
    """
    The answer to L{ImportRequest}: the device is the client's.
    """
    return _COMMON.pack(VERSION, _REP_IMPORT, OpStatus.OK) + _described(device)


def encodeRefusal(status: OpStatus) -> bytes:
    """
    The answer to L{ImportRequest}: it is not to be had.
    """
    return _COMMON.pack(VERSION, _REP_IMPORT, status)


def _described(device: UsbDevice) -> bytes:
    """
    C{struct usbip_usb_device}. C{bConfigurationValue} is 0: a bound device has none until
    its client sets one. The path is for people, a client only shows it.
    """
    path = (device.path or device.busId).encode("utf-8", "replace")
    return _DEVICE.pack(
        path[:_PATH_AT_MOST],
        device.busId.encode("ascii"),
        device.busNumber,
        device.deviceNumber,
        SPEED_OF.get(device.speed or "", 0),
        int(device.vendorId, 16),
        int(device.productId, 16),
        device.release,
        int(device.deviceClass, 16),
        int(device.subclass, 16),
        int(device.protocol, 16),
        0,
        device.configurations,
        len(device.interfaces),
    )


def _interfaces(device: UsbDevice) -> bytes:
    return b"".join(bytes.fromhex(triple.replace("/", "")) + b"\0" for triple in device.interfaces)
