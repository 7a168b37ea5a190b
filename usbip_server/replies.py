"""
The answers of the JSON contract (docs/protocol.md).

The shapes are closed: old clients reject any other key beside C{status}, C{data} and
C{message}, and any other status.
"""

from __future__ import annotations

import datetime
import enum
from typing import Any

import msgspec

from usbip_server.device import Holder, Lease, Traffic, UsbDevice
from usbip_server.errors import (
    BackendUnavailable,
    DeviceNotFound,
    InvalidRequest,
    NotAllowed,
    NotDone,
    OperationFailed,
    SeveralMatch,
    ShareError,
)

Devices = UsbDevice | tuple[UsbDevice, ...]


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
    DeviceNotFound: Status.NOT_FOUND,
    SeveralMatch: Status.MULTIPLE_MATCHES,
    OperationFailed: Status.FAILURE,
}
"""Which status tells of which error; a subclass has its base's."""


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    One answer.

    @ivar status: how it went.
    @ivar data: the device or devices, already in the contract's JSON.
    @ivar message: what is wrong and what to do, for a person.
    """

    status: Status
    data: msgspec.Raw | None = None
    message: str | None = None

    def encode(self) -> bytes:
        """The answer as it goes over the wire: compact JSON and a line feed."""
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


def encodeDevices(devices: Devices, detail: bool) -> msgspec.Raw:
    """
    The contract's JSON for a device or for several.
    """
    if isinstance(devices, tuple):
        return msgspec.Raw(_encode([_fields(device, detail) for device in devices]))
    return msgspec.Raw(_encode(_fields(devices, detail)))


def _fields(device: UsbDevice, detail: bool) -> dict[str, Any]:
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
            "holder": device.holder and holderFields(device.holder),
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
        "since": holder.since and timestamp(holder.since),
        "bytes_in": traffic and traffic.bytesIn,
        "bytes_out": traffic and traffic.bytesOut,
    }


def leaseFields(lease: Lease) -> dict[str, Any]:
    """
    The contract's JSON for whose a device is for a time.
    """
    return {
        "owner": lease.owner,
        "address": lease.address,
        "ttl": "connection" if lease.ttl is None else lease.ttl,
        "until": lease.until and timestamp(lease.until),
    }


def timestamp(seconds: float) -> str:
    """
    A time as RFC 3339 has it, in UTC and milliseconds.

    @param seconds: since the epoch.
    """
    moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


_encode = msgspec.json.Encoder().encode
