"""
What clients have asked for, as it is remembered across replug, restart and reboot.
"""

from __future__ import annotations

import msgspec

from usbip_server.device import Lease, UsbDevice


class Wish(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={"vendorId": "vendor_id", "productId": "product_id", "busId": "bus_id"},
):
    """
    A device that somebody wants to have bound.

    It is known again by its ids and its serial number, wherever it is plugged in; a device
    without a serial number only at the same place.

    @ivar busId: where it was when it was last seen.
    @ivar description: what it was called then.
    @ivar kept: it was attached without a lease, and stays bound until it is detached.
    @ivar lease: whose it is for a time.
    """

    vendorId: str
    productId: str
    serial: str | None
    busId: str
    description: str = "a device that is not there"
    kept: bool = False
    lease: Lease | None = None

    def isFor(self, device: UsbDevice) -> bool:
        """Is it for such a device, wherever that is plugged in?"""
        return (self.vendorId, self.productId, self.serial) == (
            device.vendorId,
            device.productId,
            device.serial,
        )

    def device(self) -> UsbDevice:
        """The device, as far as it is remembered."""
        return UsbDevice(
            vendorId=self.vendorId,
            productId=self.productId,
            serial=self.serial,
            busId=self.busId,
            description=self.description,
            lease=self.lease,
        )


class State(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    What the state file holds.
    """

    version: int = 1
    wishes: tuple[Wish, ...] = ()
