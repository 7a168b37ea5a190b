"""
A desired device, and the state file: its format must not change, except for additions.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from usbip_server.model.device import Lease, UsbDevice
from usbip_server.model.identity import Identity, Text


class DesiredDevice(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={
        "vendorId": "vendor_id",
        "productId": "product_id",
        "busId": "bus_id",
        "atPort": "at_port",
    },
):
    """
    A device that is to be bound. See L{usbip_server.model.identity} for how it is recognized. The
    fields that may be C{UNSET} were added to the file later.

    @ivar busId: where it was last seen.
    @ivar path: the path of that port, if known.
    @ivar description: its description then.
    @ivar kept: it was attached without a lease, and stays bound until it is detached.
    @ivar lease: its lease.
    @ivar manufacturer: the device's own manufacturer string.
    @ivar product: the device's own product string.
    @ivar classes: the classes of the device and of its interfaces.
    @ivar atPort: it is recognized at its port only, as two devices have its serial number.
    """

    vendorId: str
    productId: str
    serial: str | None
    busId: str
    description: str = "a device that is not plugged in"
    kept: bool = False
    lease: Lease | None = None
    path: str | UnsetType = UNSET
    manufacturer: Text = UNSET
    product: Text = UNSET
    classes: tuple[str, ...] | UnsetType = UNSET
    atPort: bool | UnsetType = UNSET

    @property
    def identity(self) -> Identity:
        """Recognizes the device."""
        return Identity(
            vendorId=self.vendorId,
            productId=self.productId,
            serial=self.serial,
            manufacturer=self.manufacturer,
            product=self.product,
        )

    @property
    def place(self) -> str:
        """Its port, as far as known: the path, or else the bus id."""
        return self.path or self.busId

    def isFor(self, device: UsbDevice) -> bool:
        """Can this be the device, if it is at its port? One that has not answered yet cannot."""
        return "serial" not in device.unknown and self.identity.matches(Identity.of(device))

    def isAt(self, device: UsbDevice) -> bool:
        """Is the device at the port where this one was last seen?"""
        if self.path is UNSET or device.path is None:
            return self.busId == device.busId
        return self.path == device.path

    def asSeen(self, device: UsbDevice) -> DesiredDevice:
        """The same, with what is known of the device now."""
        return msgspec.structs.replace(
            self,
            busId=device.busId,
            path=device.path or UNSET,
            description=device.description,
            manufacturer=device.manufacturer,
            product=device.product,
            classes=_classes(device),
        )

    def device(self) -> UsbDevice:
        """The device as far as it is remembered."""
        return UsbDevice(
            vendorId=self.vendorId,
            productId=self.productId,
            serial=self.serial,
            busId=self.busId,
            path=self.path or None,
            description=self.description,
            manufacturer=self.manufacturer or None,
            product=self.product or None,
            classes=self.classes or (),
            lease=self.lease,
            unknown=tuple(
                name
                for name in ("path", "manufacturer", "product", "classes")
                if getattr(self, name) is UNSET
            ),
        )


class State(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={"devices": "wishes"},
):
    """
    The content of the state file.
    """

    version: int = 1
    devices: tuple[DesiredDevice, ...] = ()


def _classes(device: UsbDevice) -> tuple[str, ...]:
    codes = (device.deviceClass, *device.interfaces, *device.classes)
    return tuple(dict.fromkeys(codes))
