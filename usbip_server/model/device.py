"""
What is known of a USB device: a value, taken at one moment.
"""

from __future__ import annotations

import enum
import re
from typing import Annotated, NamedTuple

import msgspec

_BUS_ID = re.compile(r"[1-9][0-9]*-[1-9][0-9]*(?:\.[1-9][0-9]*)*", re.ASCII)

LONGEST_LEASE = 30 * 86400
"""Seconds."""

LAST_MOMENT = 253402300799
"""The end of the year 9999, in seconds since the epoch."""

HUB_CLASS = "09"
"""C{bDeviceClass} of a hub (USB 2.0, 11.23.1)."""


class DeviceState(enum.Enum):
    """
    What becomes of a device at this moment.
    """

    FREE = "free"
    """This machine's own drivers have it."""

    BOUND = "bound"
    """C{usbip-host} has it, and a client may import it."""

    IN_USE = "in_use"
    """A client has imported it."""

    ERROR = "error"
    """It does not answer, or C{usbip-host} gave it up; C{trouble} says more."""


class Encryption(enum.Enum):
    """
    Whether USB traffic is encrypted on its way between a client and this machine.
    """

    NONE = "none"
    """It is not."""

    KTLS = "ktls"
    """TLS, by the kernel."""

    RELAY = "relay"
    """TLS, by this daemon, through which the traffic passes."""


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """
    The client that has a device imported.

    @ivar address: its host's address; C{None} where it is not known.
    @ivar since: when it was first seen to have the device, in seconds since the epoch;
        C{None} if that was before the daemon began to look.
    @ivar encryption: of its traffic; C{None} where it is not known.
    """

    address: str | None = None
    since: float | None = None
    encryption: Encryption | None = None


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a holder's session has moved so far, in bytes.

    @ivar bytesIn: from the client.
    @ivar bytesOut: to the client.
    """

    bytesIn: int
    bytesOut: int


class Lease(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """
    A device is one owner's for a time. Two are never equal: each has its own end.

    @ivar owner: what the owner calls itself.
    @ivar address: the address that asked for it.
    @ivar proof: by what else the owner is known: only who can show that is this owner.
    @ivar ttl: seconds that it lasts, from when it was granted or renewed; C{None}: as long
        as the connection that asked for it.
    @ivar until: when it ends, in seconds since the epoch; C{None} with C{ttl}.
    """

    owner: str
    address: str
    proof: str | None = None
    ttl: Annotated[float, msgspec.Meta(ge=0, le=LONGEST_LEASE)] | None = None
    until: Annotated[float, msgspec.Meta(ge=0, le=LAST_MOMENT)] | None = None


class PlugId(NamedTuple):
    """
    Identifies a device for as long as it stays plugged in: the next device at the same port, or
    the same device plugged in again, has another device number.

    @ivar busId: the bus id.
    @ivar deviceNumber: the kernel's C{devnum}.
    """

    busId: str
    deviceNumber: int


class UsbDevice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    One USB device, as it was when somebody looked.

    @ivar busId: where it is plugged in, C{"1-1.4"}: bus 1, port path 1.4.
    @ivar vendorId: C{idVendor}, four lower case hexadecimal digits.
    @ivar productId: C{idProduct}, likewise.
    @ivar description: what C{lsusb} prints for it; never empty.
    @ivar serial: its serial number, or C{None} where it has none.
    @ivar deviceNumber: the kernel's C{devnum}, a new one each time a device is plugged in.
    @ivar manufacturer: the device's own manufacturer string.
    @ivar product: the device's own product string.
    @ivar speed: in Mbit/s, as sysfs has it: C{"1.5"}, C{"12"}, C{"480"}, C{"5000"}, ...
    @ivar deviceClass: C{bDeviceClass}, two hexadecimal digits.
    @ivar subclass: C{bDeviceSubClass}, likewise.
    @ivar protocol: C{bDeviceProtocol}, likewise.
    @ivar release: C{bcdDevice}.
    @ivar configurations: C{bNumConfigurations}.
    @ivar path: where the system has it, for people.
    @ivar interfaces: class, subclass and protocol of each interface of the first
        configuration, C{"08/06/50"}.
    @ivar classes: the same of all configurations and settings, each once, as far as that is
        known: a client can choose.
    @ivar driver: the kernel driver that has the device (not its interfaces): C{"usb"},
        C{"usbip-host"}, or C{None}.
    @ivar holder: who has imported it, when C{state} is L{DeviceState.IN_USE}.
    @ivar trouble: what is the matter, when C{state} is L{DeviceState.ERROR}.
    @ivar name: what the configuration calls it. Backends leave it alone, and C{lease} too.
    @ivar lease: whose it is for a time.
    @ivar numbers: bus and device number by which USB traffic calls it, if these are not those
        here: it is on another machine.
    """

    busId: str
    vendorId: str
    productId: str
    description: str
    serial: str | None = None
    deviceNumber: int = 0
    manufacturer: str | None = None
    product: str | None = None
    speed: str | None = None
    deviceClass: str = "00"
    subclass: str = "00"
    protocol: str = "00"
    release: int = 0
    configurations: int = 1
    path: str | None = None
    interfaces: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    driver: str | None = None
    state: DeviceState = DeviceState.FREE
    holder: Holder | None = None
    trouble: str | None = None
    name: str | None = None
    lease: Lease | None = None
    numbers: tuple[int, int] | None = None

    @property
    def plugId(self) -> PlugId:
        """Identifies the device until it is unplugged."""
        return PlugId(self.busId, self.deviceNumber)

    @property
    def busNumber(self) -> int:
        """The bus it is on: 1 for C{"1-1.4"}."""
        return busOrder(self.busId)[0]

    @property
    def portNumbers(self) -> tuple[int, ...]:
        """The ports on the way to it: C{(1, 4)} for C{"1-1.4"}."""
        return busOrder(self.busId)[1:]

    def __str__(self) -> str:
        return f"{self.busId} ({self.description})"


def isBusId(text: str) -> bool:
    """
    Is this the bus id of a device, and not of a root hub (C{usb1}), of an interface
    (C{1-1:1.0}) or no bus id at all?
    """
    return _BUS_ID.fullmatch(text) is not None


def busOrder(busId: str) -> tuple[int, ...]:
    """
    The key that sorts bus ids as their numbers count: C{1-2} before C{1-10}.
    """
    bus, _, ports = busId.partition("-")
    return (int(bus), *map(int, ports.split(".")))
