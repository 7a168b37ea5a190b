"""
Recognizing a device that is unplugged and plugged in again, perhaps at another port.

A serial number identifies a device among those with the same vendor, product and strings, but only
if the manufacturer has given each device another one. Where it is a known filler, or was seen on
two devices at the same time, the devices are recognized at their port only, as are those without
a serial number.
"""

from __future__ import annotations

import re
from typing import Union

import msgspec

from usbip_server.model.device import UsbDevice

REMEMBERED = 4096
"""Identities that are remembered as those of two devices."""

FILLERS = {
    *("", "none", "null", "n/a", "unknown", "undefined", "default", "empty", "invalid", "test"),
    *("serial", "serialnumber", "serial_number", "serial number", "serialno", "sn", "s/n"),
    *("deadbeef", "cafebabe"),
}
"""Serial numbers, in lower case, that stand for none."""

COUNTED = ("0123456789abcdef", "123456789abcdef", "12345678901234567890", "abcdefghijklmnop")
"""Each beginning of one of these, of three characters at least, is a filler: C{"1234"}."""

_REPEATED = re.compile(r"0*[01]|(.)\1{2,}")
"""Such as C{"0001"}, the default of CP210x bridges, and C{"FFFF"}."""

Text = Union[str, None, msgspec.UnsetType]  # noqa: UP007 - evaluated by msgspec
"""A string of a device; C{None}: it has none; C{UNSET}: not known."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """
    What identifies a device besides its port. The fields are those of L{UsbDevice}.
    """

    vendorId: str
    productId: str
    serial: str | None
    manufacturer: Text = msgspec.UNSET
    product: Text = msgspec.UNSET

    @classmethod
    def of(cls, device: UsbDevice) -> Identity:
        """The identity of a device."""
        return cls(
            vendorId=device.vendorId,
            productId=device.productId,
            serial=device.serial,
            manufacturer=device.manufacturer,
            product=device.product,
        )

    def matches(self, other: Identity) -> bool:
        """Whether both can be the identity of one device: strings that are not known can."""
        if (self.vendorId, self.productId, self.serial) != (
            other.vendorId,
            other.productId,
            other.serial,
        ):
            return False
        return _agree(self.manufacturer, other.manufacturer) and _agree(self.product, other.product)

    @property
    def isUnique(self) -> bool:
        """Whether the serial number distinguishes the device from others of its kind."""
        return self.serial is not None and not isFiller(self.serial)


def _agree(one: Text, other: Text) -> bool:
    return one == other or msgspec.UNSET in (one, other)


def isFiller(serial: str) -> bool:
    """
    Whether a serial number is one that many devices have.
    """
    text = serial.strip().lower()
    return (
        text in FILLERS
        or _REPEATED.fullmatch(text) is not None
        or (len(text.lstrip("0")) > 2 and any(it.startswith(text.lstrip("0")) for it in COUNTED))
        or (len(text) > 2 and COUNTED[0].startswith(text))
    )


class Twins:
    """
    Finds identities that several devices have at the same time.
    """

    def __init__(self) -> None:
        self._ports: dict[Identity, set[str]] = {}
        self._twins: dict[Identity, None] = {}

    def added(self, device: UsbDevice) -> bool:
        """
        A device was plugged in.

        @return: whether it is the first sign that there are two devices with its identity.
        """
        identity = Identity.of(device)
        ports = self._ports.setdefault(identity, set())
        ports.add(device.busId)
        if len(ports) < 2 or identity in self._twins:
            return False
        self._twins[identity] = None
        if len(self._twins) > REMEMBERED:
            del self._twins[next(iter(self._twins))]
        return True

    def removed(self, device: UsbDevice) -> None:
        """A device was unplugged."""
        identity = Identity.of(device)
        ports = self._ports.get(identity, set())
        ports.discard(device.busId)
        if not ports:
            self._ports.pop(identity, None)

    def __contains__(self, identity: Identity) -> bool:
        return identity in self._twins
