"""
The answers of the JSON contract (docs/reference/protocol.md).

The shapes are closed: old clients reject any other key beside C{status}, C{data} and
C{message}, and any other status.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import msgspec

from usbip_server.model.device import Holder, Lease, Traffic, UsbDevice
from usbip_server.model.errors import (
    ASK_AGAIN,
    BackendUnavailable,
    DeviceNotFound,
    InvalidRequest,
    LocalTrouble,
    NotAllowed,
    NotDone,
    OperationFailed,
    SeveralMatch,
    ShareError,
    SnapshotNeeded,
)
from usbip_server.model.timestamps import timestamp

Devices = UsbDevice | tuple[UsbDevice, ...]

Measure = Callable[[UsbDevice], Traffic | None]


class Status(enum.Enum):
    """
    The statuses there are.
    """

    SUCCESS = "success"
    FAILURE = "failure"
    ERROR = "error"
    NOT_FOUND = "not_found"
    MULTIPLE_MATCHES = "multiple_matches"


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
"""Which status tells of which error; a subclass has its base's."""


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    One answer.

    @ivar status: how it went.
    @ivar seq: of a watch: the number of the last event that C{data} knows of.
    @ivar data: the device or devices, already in the contract's JSON.
    @ivar message: what is wrong and what to do, for a person.
    """

    status: Status
    seq: int | None = None
    data: msgspec.Raw | None = None
    message: str | None = None

    def encode(self) -> bytes:
        """The answer as it goes over the wire: compact JSON and a line feed."""
        return _encode(self) + b"\n"


class Notice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    A line that answers nothing: an event, or word of how it goes.

    @ivar event: what happened.
    @ivar seq: the event's number, where it has one.
    @ivar time: when.
    @ivar data: the device, already in the contract's JSON.
    @ivar holder: who has imported it, or has given it back.
    @ivar lease: whose it is for a time.
    @ivar place: in the queue.
    @ivar message: for a person.
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
        """The notice as it goes over the wire."""
        return _encode(self) + b"\n"


def failed(error: ShareError, detail: bool = False) -> Reply:
    """
    The answer that tells of an error.
    """
    status = next(STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF)
    data = encodeDevices(error.device, detail) if isinstance(error, OperationFailed) else None
    # A file name or a device's string in a message can hold half a surrogate pair.
    message = str(error).encode("utf-8", "backslashreplace").decode()
    return Reply(status=status, data=data, message=message)


def encodeDevices(
    devices: Devices, detail: bool, traffic: Measure = lambda device: None
) -> msgspec.Raw:
    """
    The contract's JSON for a device or for several.

    @param traffic: what the session of a device's holder has moved.
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
    return fields


def holderFields(holder: Holder, traffic: Traffic | None = None) -> dict[str, Any]:
    """
    The contract's JSON for who has a device.
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
    The contract's JSON for whose a device is for a time.
    """
    return {
        "owner": lease.owner,
        "address": lease.address,
        "ttl": "connection" if lease.ttl is None else lease.ttl,
        "until": None if lease.until is None else timestamp(lease.until),
    }


_encode = msgspec.json.Encoder().encode


ReceivedNotice = dict[str, Any]
"""A line that answers nothing, but says how it goes, or what has happened."""

LONGEST_LINE = 16 * 1024 * 1024
"""Bytes: a list of all devices of a large room, with everything known of each."""

NO_ANSWER = "it closes without an answer"

MAYBE_TLS = ": if it speaks TLS only, give it `tls` in client.yaml"
"""What there is to add to that if it has not said anything."""


class ReceivedReply(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a server answers.

    @ivar status: how it went.
    @ivar data: the device, or the devices, with the contract's keys.
    @ivar message: for people.
    @ivar seq: of a watch.
    """

    status: Status
    data: Any = None
    message: str = ""
    seq: int | None = None

    @property
    def isPending(self) -> bool:
        """Does it only say that it takes longer, and that it can be asked again?"""
        return self.status is Status.FAILURE and self.message.endswith(ASK_AGAIN)


def decodeReply(line: bytes) -> ReceivedReply | ReceivedNotice:
    """
    What a line says.

    @raise ValueError: nothing that a server of ours would say; the text says so.
    """
    try:
        value = msgspec.json.decode(line)
        if isinstance(value, dict) and "event" in value:
            return value
        return msgspec.convert(value, ReceivedReply)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("what answers there is no usbipshare") from None


class Refused(ShareError):
    """
    A server has answered, but not that it is done.

    @ivar status: what it has answered.
    """

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status
