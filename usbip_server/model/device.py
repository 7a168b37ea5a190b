"""
A USB device at one moment, as a value, with its state, holder and lease.
"""

from __future__ import annotations

import enum
import re
from typing import Annotated, NamedTuple

import msgspec

_BUS_ID = re.compile(r"[1-9][0-9]*-[1-9][0-9]*(?:\.[1-9][0-9]*)*", re.ASCII)

LONGEST_LEASE = 30 * 86400
"""The longest lease, in seconds."""

LATEST_TIME = 253402300799
"""The last second of the year 9999, in seconds since the epoch: RFC 3339 has no later time."""

OWN_STRINGS = ("serial", "manufacturer", "product")
"""The fields of an L{UsbDevice} that are unknown until the device has answered."""

HUB_CLASS = "09"
"""C{bDeviceClass} of a hub (USB 2.0, 11.23.1)."""


class DeviceState(enum.Enum):
    """
    Which driver has the device, and whether a client uses it.
    """

    FREE = "free"
    """It is not bound to C{usbip-host}: the machine's own drivers have it."""

    BOUND = "bound"
    """It is bound to C{usbip-host}, and can be imported."""

    IN_USE = "in_use"
    """A client has imported it."""

    ERROR = "error"
    """It hangs, or C{usbip-host} could not reset it; see L{UsbDevice.trouble}."""


class Encryption(enum.Enum):
    """
    How the USB traffic between a client and this machine is encrypted.
    """

    NONE = "none"
    """Not at all."""

    KTLS = "ktls"
    """With TLS, by the kernel (kTLS)."""

    RELAY = "relay"
    """With TLS, by this daemon, which relays the traffic."""


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """
    The client that has imported a device.

    @ivar address: the IP address of the client; C{None}: not known.
    @ivar since: when the client imported the device, in seconds since the epoch; C{None}: before
        the daemon was started.
    @ivar encryption: how the session's traffic is encrypted; C{None}: not known.
    """

    address: str | None = None
    since: float | None = None
    encryption: Encryption | None = None


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """
    The bytes of a holder's session so far.

    @ivar bytesIn: from the client.
    @ivar bytesOut: to the client.
    """

    bytesIn: int
    bytesOut: int


class Lease(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """
    A reservation of a device for one owner, until it expires. Two leases are never equal.

    @ivar owner: the name of the owner, as given in the request.
    @ivar address: the IP address of the client that requested the lease.
    @ivar proof: the authentication of that client, if any (L{usbip_server.model.policy.Principal}):
        only a client with the same one is the owner.
    @ivar ttl: the duration, in seconds, from when the lease was granted or renewed; C{None}: the
        lease lasts as long as the connection that requested it.
    @ivar until: when the lease expires, in seconds since the epoch; C{None} if C{ttl} is C{None}.
    """

    owner: str
    address: str
    proof: str | None = None
    ttl: Annotated[float, msgspec.Meta(ge=0, le=LONGEST_LEASE)] | None = None
    until: Annotated[float, msgspec.Meta(ge=0, le=LATEST_TIME)] | None = None


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
    A USB device at one moment.

    @ivar busId: the port that the device is plugged into, C{"1-1.4"}: bus 1, port path 1.4.
    @ivar vendorId: C{idVendor}, four lower case hexadecimal digits.
    @ivar productId: C{idProduct}, four lower case hexadecimal digits.
    @ivar description: the name that C{lsusb} prints; never empty.
    @ivar serial: the serial number; C{None}: the device has none.
    @ivar deviceNumber: the kernel's C{devnum}, a new one each time a device is plugged in.
    @ivar manufacturer: the device's own manufacturer string.
    @ivar product: the device's own product string.
    @ivar speed: in Mbit/s, in the spelling of sysfs: C{"1.5"}, C{"12"}, C{"480"}, C{"5000"}, ...
    @ivar deviceClass: C{bDeviceClass}, two hexadecimal digits.
    @ivar subclass: C{bDeviceSubClass}, two hexadecimal digits.
    @ivar protocol: C{bDeviceProtocol}, two hexadecimal digits.
    @ivar release: C{bcdDevice}.
    @ivar configurations: C{bNumConfigurations}.
    @ivar path: the physical port, in the form of udev's C{ID_PATH}:
        C{"pci-0000:00:14.0-usb-0:1.4"}. It is the same for all speeds of a port, and, unlike
        C{busId}, after a reboot. C{None}: not known.
    @ivar sysfsPath: the path in sysfs, for display.
    @ivar interfaces: class, subclass and protocol of each interface of the active
        configuration, C{"08/06/50"}; of the one that was active last if there is none, as while
        the device is bound; of the first if none is known.
    @ivar classes: the same of all configurations and alternate settings, without duplicates, as
        far as known: a client can select another configuration.
    @ivar driver: the kernel driver of the device as a whole: C{"usb"}, C{"usbip-host"}, or
        C{None}. The interfaces have drivers of their own.
    @ivar holder: the client that has imported the device, if C{state} is L{DeviceState.IN_USE}.
    @ivar trouble: the reason, if C{state} is L{DeviceState.ERROR}.
    @ivar name: the name in the configuration. Not set by backends.
    @ivar lease: the lease on the device. Not set by backends.
    @ivar unknown: the names of fields whose value is not known: the device has not answered yet,
        or it is away and they were not remembered. C{"classes"} stands for all that has to do with
        classes. What is not known counts as a match where a match forbids something.
    @ivar numbers: the bus and device number in the device's USB traffic, if they differ from
        those here because the device is plugged into another server.
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
    sysfsPath: str | None = None
    interfaces: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    driver: str | None = None
    state: DeviceState = DeviceState.FREE
    holder: Holder | None = None
    trouble: str | None = None
    name: str | None = None
    lease: Lease | None = None
    unknown: tuple[str, ...] = ()
    numbers: tuple[int, int] | None = None

    @property
    def plugId(self) -> PlugId:
        """Identifies the device until it is unplugged."""
        return PlugId(self.busId, self.deviceNumber)

    @property
    def place(self) -> str:
        """The physical port, as far as known: its path, or else the bus id."""
        return self.path or self.busId

    @property
    def names(self) -> tuple[str, ...]:
        """
        The description, and the device's own product string if the description does not contain
        it: boards of different makers have the name of the same chip in C{usb.ids}.
        """
        own = self.product
        if own is None or own.lower() in self.description.lower():
            return (self.description,)
        return self.description, own

    @property
    def busNumber(self) -> int:
        """The bus number: 1 for C{"1-1.4"}."""
        return busOrder(self.busId)[0]

    @property
    def portNumbers(self) -> tuple[int, ...]:
        """The port path: C{(1, 4)} for C{"1-1.4"}."""
        return busOrder(self.busId)[1:]

    def __str__(self) -> str:
        return f"{self.busId} ({self.description})"


def isBusId(text: str) -> bool:
    """
    Whether a text is the bus id of a device, such as C{1-1.4}. A root hub (C{usb1}) and an
    interface (C{1-1:1.0}) have names of other forms.
    """
    return _BUS_ID.fullmatch(text) is not None


def busOrder(busId: str) -> tuple[int, ...]:
    """
    A sort key for bus ids that compares their numbers: C{1-2} comes before C{1-10}.
    """
    bus, _, ports = busId.partition("-")
    return (int(bus), *map(int, ports.split(".")))
