"""Makes a C{/sys} with many devices."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

HUBS = 10
"""Number of hubs on each bus, each with L{PORTS} devices. A bus has at most 127 addresses."""

PORTS = 10

_KNOWN = ((0x2341, 0x0043), (0x0403, 0x6001), (0x10C4, 0xEA60), (0x0483, 0x374B), (0x0BDA, 0x8153))
"""Ids that C{usb.ids} has names for."""


class Plugged(msgspec.Struct, frozen=True, kw_only=True):
    """A device in the tree that is not a hub."""

    busId: str
    vendorId: int
    productId: int
    serial: str
    product: str
    number: int

    @property
    def ids(self) -> str:
        """C{vid:pid}."""
        return f"{self.vendorId:04x}:{self.productId:04x}"


def plugged(count: int) -> Iterator[Plugged]:
    """Describe devices with different serial numbers and product strings. Every second one has
    different ids, too."""
    for index in range(count):
        place, port = divmod(index, PORTS)
        bus, hub = divmod(place, HUBS)
        vendor, product = _KNOWN[index % len(_KNOWN)] if index % 2 else (0x1209, index)
        yield Plugged(
            busId=f"{bus + 1}-{hub + 1}.{port + 1}",
            vendorId=vendor,
            productId=product,
            serial=f"5573932313935{index:06X}",
            product=f"Serial Probe No. {index:05d}",
            number=2 + HUBS + hub * PORTS + port,
        )


def makeTree(root: Path, devices: list[Plugged]) -> None:
    """Make what the kernel shows of devices, hubs and interfaces: folders below C{devices}, and
    links to them in C{bus/usb/devices}."""
    (root / "bus/usb/devices").mkdir(parents=True)
    (root / "bus/usb/drivers/usb").mkdir(parents=True)
    for device in devices:
        bus, _, ports = device.busId.partition("-")
        hub = f"{bus}-{ports.partition('.')[0]}"
        if not (place := root / f"devices/pci0000:00/usb{bus}").exists():
            _plug(root, place, 1, (0x1D6B, 0x0002), 9, ("0000:00:14.0", "Linux", "xHCI"))
        if not (place := place / hub).exists():
            number = 1 + int(hub.partition("-")[2])
            _plug(root, place, number, (0x05E3, 0x0608), 9, ("", "GenesysLogic", "USB2.0 Hub"))
        strings = device.serial, "Example Instruments", device.product
        place /= device.busId
        ids = device.vendorId, device.productId
        _plug(root, place, device.number, ids, 0, strings)
        _interface(root, place)


def _plug(
    root: Path,
    place: Path,
    number: int,
    ids: tuple[int, int],
    deviceClass: int,
    strings: tuple[str, str, str],
) -> None:
    place.mkdir(parents=True)
    bus = place.name.removeprefix("usb").partition("-")[0]
    _write(place, "descriptors", _descriptors(*ids, deviceClass))
    for name, text in (
        ("devnum", str(number)),
        ("busnum", bus),
        ("speed", "480"),
        *zip(("serial", "manufacturer", "product"), strings, strict=True),
    ):
        if text:
            _write(place, name, f"{text}\n".encode())
    os.symlink(os.path.relpath(root / "bus/usb/drivers/usb", place), place / "driver")
    _link(root, place)


def _interface(root: Path, device: Path) -> None:
    place = device / f"{device.name}:1.0"
    place.mkdir()
    _link(root, place)


def _link(root: Path, place: Path) -> None:
    where = root / "bus/usb/devices"
    os.symlink(os.path.relpath(place, where), where / place.name)


def _write(place: Path, name: str, content: bytes) -> None:
    with open(place / name, "wb", buffering=0) as file:
        file.write(content)


def _descriptors(vendorId: int, productId: int, deviceClass: int) -> bytes:
    """The descriptors of a device with one configuration, one interface and two bulk endpoints (USB
    2.0, 9.6)."""
    ids = vendorId.to_bytes(2, "little") + productId.to_bytes(2, "little")
    device = bytes((18, 1, 0, 2, deviceClass, 0, 0, 64)) + ids + bytes((0, 1, 1, 2, 3, 1))
    interface = bytes((9, 4, 0, 0, 2, deviceClass or 0xFF, 0, 0, 0))
    endpoints = bytes((7, 5, 0x81, 2, 0, 2, 0)) + bytes((7, 5, 0x02, 2, 0, 2, 0))
    configuration = bytes((9, 2, 32, 0, 1, 1, 0, 0x80, 50))
    return device + configuration + interface + endpoints
