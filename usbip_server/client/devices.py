"""
Devices of other machines, as their servers describe them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from usbip_server.client.servers import Server
from usbip_server.model.device import (
    DeviceState,
    Encryption,
    Holder,
    Lease,
    UsbDevice,
    isBusId,
)
from usbip_server.model.errors import Unreachable
from usbip_server.model.timestamps import moment


class _Holder(msgspec.Struct, frozen=True, kw_only=True):
    address: str | None = None
    since: str | None = None
    encryption: Encryption | None = None


class _Lease(msgspec.Struct, frozen=True, kw_only=True):
    owner: str
    address: str
    ttl: float | str | None = None
    until: str | None = None


class _Device(msgspec.Struct, frozen=True, kw_only=True):
    """
    A device in a reply. Keys that only replies with C{detail} have default to those of a free
    device.
    """

    bus_id: str
    vendor_id: str
    product_id: str
    description: str
    serial: str | None = None
    device_name: str = ""
    manufacturer: str | None = None
    product: str | None = None
    speed: str | None = None
    device_class: str = "00"
    interfaces: tuple[str, ...] = ()
    driver: str | None = None
    state: DeviceState = DeviceState.FREE
    holder: _Holder | None = None
    trouble: str | None = None
    name: str | None = None
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
    The devices in the C{data} of a reply.

    @raise Unreachable: the data is not understood.
    """
    several = data if isinstance(data, list) else [data]
    return tuple(
        RemoteDevice(server=server, device=deviceIn(server, each), raw=each) for each in several
    )


def deviceIn(server: Server, data: Any) -> UsbDevice:
    """
    One device in the C{data} of a reply.

    @raise Unreachable: the data is not understood.
    """
    try:
        fields = msgspec.convert(data, _Device)
        if not isBusId(fields.bus_id):
            raise ValueError(f"{fields.bus_id!r} is not a bus id")
        number = fields.device_name.rpartition("/")[2]
        return UsbDevice(
            busId=fields.bus_id,
            vendorId=fields.vendor_id,
            productId=fields.product_id,
            description=fields.description,
            serial=fields.serial,
            deviceNumber=int(number) if number.isdigit() else 0,
            manufacturer=fields.manufacturer,
            product=fields.product,
            speed=fields.speed,
            deviceClass=fields.device_class,
            interfaces=fields.interfaces,
            driver=fields.driver,
            state=fields.state,
            holder=_holder(fields.holder),
            trouble=fields.trouble,
            name=fields.name,
            lease=_lease(fields.lease),
        )
    except (msgspec.ValidationError, ValueError) as error:
        raise Unreachable(
            f"{server.called(server.address)}: its answer is not understood: {error}"
        ) from error


def _holder(fields: _Holder | None) -> Holder | None:
    if fields is None:
        return None
    return Holder(address=fields.address, since=_moment(fields.since), encryption=fields.encryption)


def _lease(fields: _Lease | None) -> Lease | None:
    if fields is None:
        return None
    return Lease(
        owner=fields.owner,
        address=fields.address,
        ttl=fields.ttl if isinstance(fields.ttl, float) else None,  # or the word "connection"
        until=_moment(fields.until),
    )


def _moment(text: str | None) -> float | None:
    return None if text is None else moment(text)
