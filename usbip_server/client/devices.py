"""
Devices of other machines, as their servers describe them. Each value that a server sends is checked
here, before any part of this package uses it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from usbip_server.client.servers import Server
from usbip_server.model.device import (
    LONGEST_LEASE,
    DeviceState,
    Encryption,
    Holder,
    Lease,
    UsbDevice,
    busOrder,
    isBusId,
)
from usbip_server.model.errors import Unreachable
from usbip_server.model.escapes import normalize, visible
from usbip_server.model.timestamps import moment

Text = Annotated[str, msgspec.Meta(max_length=4096)]
"""A text to display. The strings of a USB device have 126 UTF-16 units at most (USB 2.0, 9.6.7)."""

Id = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{4}\Z")]

Class = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{2}\Z")]

Interface = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{2}(/[0-9a-f]{2}){2}\Z")]

Node = Annotated[str, msgspec.Meta(pattern=r"\A(/dev/bus/usb/[0-9]{3,9}/[0-9]{3,9})?\Z")]

MOST_INTERFACES = 7281
"""A configuration has 65,535 bytes at most, and an interface descriptor 9 (USB 2.0, 9.6)."""

MOST_UNKNOWN = 100
"""Names of keys whose value is not known."""

LONGEST_MESSAGE = 1000
"""Characters of a server's message that are shown."""

LARGEST_NUMBER = 65535
"""The largest number in a bus id: USB/IP has 16 bits for the bus."""


class _Holder(msgspec.Struct, frozen=True, kw_only=True):
    address: Text | None = None
    since: Text | None = None
    encryption: Encryption | None = None


class _Lease(msgspec.Struct, frozen=True, kw_only=True):
    owner: Text
    address: Text
    ttl: Annotated[float, msgspec.Meta(ge=0, le=LONGEST_LEASE)] | Literal["connection"] | None = (
        None
    )
    until: Text | None = None


class _Device(msgspec.Struct, frozen=True, kw_only=True):
    """
    A device in a reply. Keys that only replies with C{detail} have default to those of a free
    device.
    """

    bus_id: Annotated[str, msgspec.Meta(max_length=31)]
    vendor_id: Id
    product_id: Id
    description: Text
    serial: Text | None = None
    device_name: Node = ""
    manufacturer: Text | None = None
    product: Text | None = None
    path: Text | None = None
    speed: Annotated[str, msgspec.Meta(max_length=16)] | None = None
    device_class: Class = "00"
    interfaces: Annotated[tuple[Interface, ...], msgspec.Meta(max_length=MOST_INTERFACES)] = ()
    classes: Annotated[tuple[Interface, ...], msgspec.Meta(max_length=MOST_INTERFACES)] = ()
    unknown: Annotated[tuple[Text, ...], msgspec.Meta(max_length=MOST_UNKNOWN)] = ()
    driver: Text | None = None
    state: DeviceState = DeviceState.FREE
    holder: _Holder | None = None
    trouble: Text | None = None
    name: Text | None = None
    lease: _Lease | None = None


class RemoteDevice(msgspec.Struct, frozen=True, kw_only=True):
    """
    A device of a server.

    @ivar raw: the JSON object that the server describes it with.
    """

    server: Server
    device: UsbDevice
    raw: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.device} at {self.server}"


def foundIn(server: Server, data: Any) -> tuple[RemoteDevice, ...]:
    """
    The devices in the C{data} of the reply to a C{list}.

    @raise Unreachable: the data is not understood.
    """
    if not isinstance(data, list):
        raise notUnderstood(server, "its data is not a list")
    return tuple(remoteIn(server, each) for each in data)


def remoteIn(server: Server, data: Any) -> RemoteDevice:
    """
    One device in the C{data} of a reply.

    @raise Unreachable: the data is not understood.
    """
    return RemoteDevice(server=server, device=deviceIn(server, data), raw=data)


def notUnderstood(server: Server, why: str) -> Unreachable:
    """
    The error of a server whose reply is not one of this protocol.
    """
    called = server.called(server.address)
    return Unreachable(f"{called}: its answer is not understood: {messageIn(why)}")


def messageIn(text: str) -> str:
    """
    A message of a server as it may be logged and passed on: with escapes
    (L{usbip_server.model.escapes}), and truncated.
    """
    shown = normalize(text[: LONGEST_MESSAGE + 1])
    return shown if len(shown) <= LONGEST_MESSAGE else f"{shown[:LONGEST_MESSAGE]}..."


def deviceIn(server: Server, data: Any) -> UsbDevice:
    """
    One device in the C{data} of a reply.

    @raise Unreachable: the data is not understood.
    """
    try:
        fields = msgspec.convert(data, _Device)
        if not isBusId(fields.bus_id) or max(busOrder(fields.bus_id)) > LARGEST_NUMBER:
            raise ValueError(f"{fields.bus_id!r} is not a bus id")
        number = fields.device_name.rpartition("/")[2]
        return UsbDevice(
            busId=fields.bus_id,
            vendorId=fields.vendor_id,
            productId=fields.product_id,
            description=visible(fields.description),
            serial=fields.serial and normalize(fields.serial),
            deviceNumber=int(number or 0),
            path=fields.path and normalize(fields.path),
            manufacturer=fields.manufacturer and normalize(fields.manufacturer),
            product=fields.product and normalize(fields.product),
            speed=fields.speed,
            deviceClass=fields.device_class,
            interfaces=fields.interfaces,
            classes=fields.classes,
            unknown=tuple(name for name in fields.unknown if name in UsbDevice.__struct_fields__),
            driver=fields.driver and normalize(fields.driver),
            state=fields.state,
            holder=_holder(fields.holder),
            trouble=fields.trouble and normalize(fields.trouble),
            name=fields.name and normalize(fields.name),
            lease=_lease(fields.lease),
        )
    except (msgspec.ValidationError, ValueError) as error:
        raise notUnderstood(server, str(error)) from error


def _holder(fields: _Holder | None) -> Holder | None:
    if fields is None:
        return None
    return Holder(
        address=fields.address and normalize(fields.address),
        since=_moment(fields.since),
        encryption=fields.encryption,
    )


def _lease(fields: _Lease | None) -> Lease | None:
    if fields is None:
        return None
    return Lease(
        owner=normalize(fields.owner),
        address=normalize(fields.address),
        ttl=fields.ttl if isinstance(fields.ttl, float) else None,  # or the word "connection"
        until=_moment(fields.until),
    )


def _moment(text: str | None) -> float | None:
    return None if text is None else moment(text)
