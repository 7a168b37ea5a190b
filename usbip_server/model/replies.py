"""
JSON replies and events: their structure, and encoding and decoding (docs/reference/protocol.md).

Old clients reject a reply that has any key besides C{status}, C{data} and C{message}, or any other
status. So nothing is added to a reply unless the request has C{detail}.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import msgspec

from usbip_server.model.device import Holder, Lease, Traffic, UsbDevice
from usbip_server.model.errors import (
    BackendUnavailable,
    ClientError,
    DeviceAwaited,
    DeviceInUse,
    DeviceLeased,
    DeviceMounted,
    DeviceNotFound,
    InvalidRequest,
    LocalTrouble,
    NoServerConnected,
    NotAllowed,
    NotDone,
    NotLeased,
    OperationFailed,
    OperationTimedOut,
    SeveralMatch,
    ShareError,
    SnapshotNeeded,
    StillWorking,
)
from usbip_server.model.timestamps import timestamp

Devices = UsbDevice | tuple[UsbDevice, ...]

Measure = Callable[[UsbDevice], Traffic | None]
"""Returns the bytes of the session of a device's holder; C{None}: not known."""

ReceivedNotice = dict[str, Any]
"""A line from a server that is not a reply: an event or a notice of progress."""

LONGEST_LINE = 16 * 1024 * 1024
"""The longest line that a client reads, in bytes: room for a detailed list of all devices of a
large installation."""

LONGEST_EVENT = 128 * 1024
"""The longest event that a client reads, in bytes: it describes one device."""

NO_ANSWER = "the server has closed the connection without a reply"

MAYBE_TLS = ": if it requires TLS, set `tls` in client.yaml"
"""Appended to L{NO_ANSWER} if nothing was received at all."""

_encode = msgspec.json.Encoder().encode


class Status(enum.Enum):
    """
    The status of a reply.
    """

    SUCCESS = "success"
    FAILURE = "failure"
    ERROR = "error"
    NOT_FOUND = "not_found"
    MULTIPLE_MATCHES = "multiple_matches"

    __hash__ = object.__hash__  # C{Enum} computes the hash of the name for each look-up


STATUS_OF: dict[type[ShareError], Status] = {
    InvalidRequest: Status.ERROR,
    NotAllowed: Status.ERROR,
    BackendUnavailable: Status.ERROR,
    NotDone: Status.ERROR,
    SnapshotNeeded: Status.ERROR,
    LocalTrouble: Status.ERROR,
    DeviceNotFound: Status.NOT_FOUND,
    SeveralMatch: Status.MULTIPLE_MATCHES,
    OperationFailed: Status.FAILURE,
}
"""The status for each error. A subclass has that of its base."""


class Code(enum.Enum):
    """
    Why a request was not carried out, for programs: C{code} in the reply to a request with
    C{detail}. Other replies have none.
    """

    INVALID_REQUEST = "invalid_request"
    NOT_ALLOWED = "not_allowed"
    UNAVAILABLE = "unavailable"
    NO_SERVER_CONNECTED = "no_server_connected"
    BUSY = "busy"
    SNAPSHOT_NEEDED = "snapshot_needed"
    LOCAL_TROUBLE = "local_trouble"
    NOT_FOUND = "not_found"
    MULTIPLE_MATCHES = "multiple_matches"
    FAILED = "failed"
    IN_USE = "in_use"
    LEASED = "leased"
    NOT_LEASED = "not_leased"
    AWAITED = "awaited"
    MOUNTED = "mounted"
    PENDING = "pending"
    TIMED_OUT = "timed_out"


CODE_OF: dict[type[ShareError], Code] = {
    InvalidRequest: Code.INVALID_REQUEST,
    NotAllowed: Code.NOT_ALLOWED,
    BackendUnavailable: Code.UNAVAILABLE,
    NoServerConnected: Code.NO_SERVER_CONNECTED,
    NotDone: Code.BUSY,
    SnapshotNeeded: Code.SNAPSHOT_NEEDED,
    LocalTrouble: Code.LOCAL_TROUBLE,
    DeviceNotFound: Code.NOT_FOUND,
    SeveralMatch: Code.MULTIPLE_MATCHES,
    OperationFailed: Code.FAILED,
    DeviceInUse: Code.IN_USE,
    DeviceLeased: Code.LEASED,
    NotLeased: Code.NOT_LEASED,
    DeviceAwaited: Code.AWAITED,
    DeviceMounted: Code.MOUNTED,
    StillWorking: Code.PENDING,
    OperationTimedOut: Code.TIMED_OUT,
}
"""The code for each error. A subclass has that of its base."""


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    A reply to a request.

    @ivar seq: in the reply to a watch: the number of the last event before C{data}.
    @ivar data: the device or devices, encoded.
    @ivar message: what is wrong and what to do, for the user.
    @ivar code: what is wrong, for programs; only if the request has C{detail}.
    """

    status: Status
    seq: int | None = None
    data: msgspec.Raw | None = None
    message: str | None = None
    code: Code | None = None

    def encode(self) -> bytes:
        """The reply as one line of compact JSON."""
        return _encode(self) + b"\n"


class Notice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    A line that is not a reply: an event, or a notice of the progress of a request.

    @ivar event: the name of the event.
    @ivar seq: the number of the event, if it is one that watchers receive.
    @ivar time: when it happened, as in RFC 3339.
    @ivar data: the device, encoded.
    @ivar holder: the client that has imported or released the device.
    @ivar lease: the lease on the device.
    @ivar place: the position in the queue.
    @ivar message: a text for the user.
    """

    event: str
    seq: int | None = None
    time: str
    data: msgspec.Raw | None = None
    holder: dict[str, Any] | None = None
    lease: dict[str, Any] | None = None
    place: int | None = None
    message: str | None = None

    def encode(self) -> bytes:
        """The notice as one line of compact JSON."""
        return _encode(self) + b"\n"


def failed(error: ShareError, detail: bool = False) -> Reply:
    """
    The reply for an error.
    """
    kinds = type(error).__mro__
    status = next(STATUS_OF[kind] for kind in kinds if kind in STATUS_OF)
    code = next(CODE_OF[kind] for kind in kinds if kind in CODE_OF) if detail else None
    data = encodeDevices(error.device, detail) if isinstance(error, OperationFailed) else None
    # A file name or a device string in a message may contain a lone surrogate.
    message = str(error).encode("utf-8", "backslashreplace").decode()
    return Reply(status=status, data=data, message=message, code=code)


def encodeDevices(
    devices: Devices, detail: bool, traffic: Measure = lambda device: None
) -> msgspec.Raw:
    """
    Encode a device, or a list of devices.

    @param detail: with all fields; else with those that old clients know.
    @param traffic: returns the bytes of the session of a device's holder.
    """
    if isinstance(devices, tuple):
        return msgspec.Raw(_encode([_fields(device, detail, traffic) for device in devices]))
    return msgspec.Raw(_encode(_fields(devices, detail, traffic)))


def _fields(device: UsbDevice, detail: bool, traffic: Measure) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "bus_id": device.busId,
        "device_id": f"vid=0x{device.vendorId} pid=0x{device.productId}",
        "description": device.description,
        "vendor_id": device.vendorId,
        "product_id": device.productId,
        "serial": device.serial,
    }
    if detail:
        bus, *ports = device.busNumber, *device.portNumbers
        fields |= {
            "bus": bus,
            "port_numbers": ports,
            "path": device.path,
            "device_name": f"/dev/bus/usb/{bus:03d}/{device.deviceNumber:03d}",
            "manufacturer": device.manufacturer,
            "product": device.product,
            "speed": device.speed,
            "device_class": device.deviceClass,
            "interfaces": device.interfaces,
            "driver": device.driver,
            "state": device.state,
            "holder": device.holder and holderFields(device.holder, traffic(device)),
            "trouble": device.trouble,
            "name": device.name,
            "lease": device.lease and leaseFields(device.lease),
        }
        if not {*device.classes} <= {*device.interfaces}:
            fields["classes"] = device.classes
        if device.unknown:
            fields["unknown"] = device.unknown
    return fields


def holderFields(holder: Holder, traffic: Traffic | None = None) -> dict[str, Any]:
    """
    The fields of a holder in JSON.
    """
    return {
        "address": holder.address,
        "since": None if holder.since is None else timestamp(holder.since),
        "bytes_in": None if traffic is None else traffic.bytesIn,
        "bytes_out": None if traffic is None else traffic.bytesOut,
        "encryption": holder.encryption,
    }


def leaseFields(lease: Lease) -> dict[str, Any]:
    """
    The fields of a lease in JSON.
    """
    return {
        "owner": lease.owner,
        "address": lease.address,
        "ttl": "connection" if lease.ttl is None else lease.ttl,
        "until": None if lease.until is None else timestamp(lease.until),
    }


class ReceivedReply(msgspec.Struct, frozen=True, kw_only=True):
    """
    A reply from a server, decoded. The fields are those of L{Reply}.

    @ivar data: the device or devices, with the keys that the protocol has.
    """

    status: Status
    data: Any = None
    message: str = ""
    seq: int | None = None
    code: str | None = None

    @property
    def isPending(self) -> bool:
        """Whether the operation continues: the same request, sent again, returns its result."""
        return self.code == Code.PENDING.value


class _ReceivedNotice(msgspec.Struct, frozen=True, kw_only=True):
    """
    The types of the values in a L{ReceivedNotice}, as in L{Notice}.
    """

    event: str
    seq: int | None = None
    time: str | None = None
    data: dict[str, Any] | None = None
    holder: dict[str, Any] | None = None
    lease: dict[str, Any] | None = None
    place: int | None = None
    message: str | None = None


def decodeReply(line: bytes) -> ReceivedReply | ReceivedNotice:
    """
    Decode a line from a server.

    @raise ValueError: it is neither a reply nor an event of this protocol.
    """
    try:
        value = msgspec.json.decode(line)
        if isinstance(value, dict) and "event" in value:
            return _notice(value)
        return msgspec.convert(value, ReceivedReply)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("the reply is not that of a usbipshare server") from None


def _notice(value: dict[str, Any]) -> ReceivedNotice:
    try:
        msgspec.convert(value, _ReceivedNotice)
    except msgspec.ValidationError as error:
        raise ValueError(f"its answer is not understood: {error}") from None
    return value


class Refused(ClientError):
    """
    The server has answered a request with an error or a failure.

    @ivar status: the status of its answer.
    @ivar code: the code of its answer, if it has one (L{Code}).
    """

    def __init__(self, status: Status, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
