"""The USB devices that a guest is born with, on each kind of machine."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace


class PlugError(Exception):
    """A device could not be plugged in or unplugged. The message contains the reason."""


class Kind(enum.Enum):
    """Kinds of devices."""

    CARD_READER = "card reader"
    DISK = "disk"
    HUB = "hub"
    KEYBOARD = "keyboard"
    NETWORK = "network adapter"
    SERIAL = "serial port"
    TABLET = "tablet"


@dataclass(frozen=True, slots=True)
class Device:
    """A USB device that can be plugged in.

    @ivar name: unique among the devices of a machine. QEMU's id of it, or the name of the
        gadget.
    @ivar kind: what it is used for.
    @ivar busId: where it is plugged in. On both kinds of machine a bus with an odd number is
        high speed, and the next one is the same port at super speed.
    @ivar vidPid: its vendor and product id, C{0403:6001}.
    @ivar serial: its serial number, where the machine lets it be chosen.
    @ivar product: its product string, where the machine lets it be chosen."""

    name: str
    kind: Kind
    busId: str
    vidPid: str
    serial: str | None = None
    product: str | None = None

    @property
    def bus(self) -> int:
        """The number of its bus."""
        return int(self.busId.partition("-")[0])

    @property
    def port(self) -> str:
        """Where it is on its bus: C{2.4} is the fourth port of the hub at the second port."""
        return self.busId.partition("-")[2]

    @property
    def isSuper(self) -> bool:
        """Is it a super speed device?"""
        return self.bus % 2 == 0

    def withSerial(self, serial: str) -> Device:
        """The same device with another serial number."""
        return replace(self, serial=serial)


def _devices(places: dict[str, str]) -> dict[str, Device]:
    """@param places: the bus id of each device."""
    devices = (
        Device("serial", Kind.SERIAL, places["serial"], "0403:6001", "QSER1", "QEMU USB SERIAL"),
        Device("keyboard", Kind.KEYBOARD, places["keyboard"], "0627:0001", None, "QEMU Keyboard"),
        Device("disk", Kind.DISK, places["disk"], "46f4:0001", "DISK42", "QEMU USB HARDDRIVE"),
        Device("tablet", Kind.TABLET, places["tablet"], "0627:0001", None, "QEMU Tablet"),
        Device("ccid", Kind.CARD_READER, places["ccid"], "08e6:4433", None, "QEMU CCID"),
        Device("fast", Kind.DISK, places["fast"], "46f4:0001", "FAST7", "QEMU USB HARDDRIVE"),
    )
    return {device.name: device for device in devices}


EMULATED = _devices(
    {
        "serial": "1-1",
        "keyboard": "1-2.2",
        "disk": "1-2.4",
        "tablet": "1-3",
        "ccid": "1-4",
        "fast": "2-5",
    }
) | {"hub": Device("hub", Kind.HUB, "1-2", "0409:55aa")}
"""QEMU's devices: an xhci controller and a hub."""

CONTROLLERS = 20
"""The emulated host controllers (C{dummy_hcd}) of user-mode Linux. Each has one port for one
device and takes two of the kernel's 63 buses; C{vhci_hcd} takes 16."""

GADGETS = _devices(
    {
        "serial": "1-1",
        "keyboard": "3-1",
        "disk": "5-1",
        "tablet": "7-1",
        "ccid": "9-1",
        "fast": "12-1",
    }
)
"""Gadgets in user-mode Linux: one on each controller. Their descriptors have the ids and strings
of QEMU's devices, so that a scenario is the same on both."""

BORN_WITH: Sequence[str] = ("serial", "hub", "keyboard", "disk", "tablet", "ccid")
"""The names of those that are plugged in when a guest starts, in the order in which they are
plugged in: a device behind the hub comes after it."""


def controllerOf(device: Device) -> int:
    """The number of the controller that a gadget is plugged into: each has two buses."""
    return (device.bus - 1) // 2


def gadgetBusId(controller: int, isSuper: bool = False) -> str:
    """The bus id of what is plugged into a controller."""
    return f"{2 * controller + 1 + isSuper}-1"


_QEMU_DRIVERS = {
    Kind.CARD_READER: "usb-ccid",
    Kind.DISK: "usb-storage",
    Kind.HUB: "usb-hub",
    Kind.KEYBOARD: "usb-kbd",
    Kind.NETWORK: "usb-net",
    Kind.SERIAL: "usb-serial",
    Kind.TABLET: "usb-tablet",
}


def qemuProperties(device: Device) -> dict[str, object]:
    """The properties of a QEMU device, without its drive or its chardev."""
    properties: dict[str, object] = {
        "driver": _QEMU_DRIVERS[device.kind],
        "id": device.name,
        "bus": "xhci.0",
        "port": device.port,
    }
    if device.serial is not None and device.kind in (Kind.DISK, Kind.SERIAL):
        properties["serial"] = device.serial
    if device.kind is Kind.SERIAL:
        properties["always-plugged"] = True
    return properties


def qemuDrive(name: str) -> str:
    """The options of a QEMU drive. The image lies in the folder that QEMU runs in."""
    return f"if=none,id={name},file=disk.img,format=raw,snapshot=on"
