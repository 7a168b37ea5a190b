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
    The contract's device object; what is not there in an answer without C{detail} has the
    values it would have for a device that nobody has.
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
    A device, and where it is.

    @ivar raw: as its server has described it.
    """

    server: Server
    device: UsbDevice
    raw: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.device} at {self.server}"


def foundIn(server: Server, data: Any) -> tuple[RemoteDevice, ...]:
    """
    The devices in an answer.

    @raise Unreachable: it makes no sense.
    """
    several = data if isinstance(data, list) else [data]
    return tuple(
        RemoteDevice(server=server, device=deviceIn(server, each), raw=each) for each in several
    )


def deviceIn(server: Server, data: Any) -> UsbDevice:
    """
    One device.

    @raise Unreachable: it makes no sense.
    """
    try:
        told = msgspec.convert(data, _Device)
        if not isBusId(told.bus_id):
            raise ValueError(f"{told.bus_id!r} is no bus id")
        number = told.device_name.rpartition("/")[2]
        return UsbDevice(
            busId=told.bus_id,
            vendorId=told.vendor_id,
            productId=told.product_id,
            description=told.description,
            serial=told.serial,
            deviceNumber=int(number) if number.isdigit() else 0,
            manufacturer=told.manufacturer,
            product=told.product,
            speed=told.speed,
            deviceClass=told.device_class,
            interfaces=told.interfaces,
            driver=told.driver,
            state=told.state,
            holder=_holder(told.holder),
            trouble=told.trouble,
            name=told.name,
            lease=_lease(told.lease),
        )
    except (msgspec.ValidationError, ValueError) as error:
        raise Unreachable(
            f"{server.called(server.address)}: its answer is not understood: {error}"
        ) from error


def _holder(told: _Holder | None) -> Holder | None:
    if told is None:
        return None
    return Holder(address=told.address, since=_moment(told.since), encryption=told.encryption)


def _lease(told: _Lease | None) -> Lease | None:
    if told is None:
        return None
    return Lease(
        owner=told.owner,
        address=told.address,
        ttl=told.ttl if isinstance(told.ttl, float) else None,  # or for as long as a connection
        until=_moment(told.until),
    )


def _moment(told: str | None) -> float | None:
    return None if told is None else moment(told)
