"""The decoder of USB/IP answers."""

from __future__ import annotations

import msgspec

from tests.support.fixtures import UNO, changed
from usbip_server.model.device import UsbDevice
from usbip_server.model.usbip import (
    SPEED_OF,
    Exported,
    NotGiven,
    NotUsbIp,
    OpStatus,
    decodeImport,
    decodeList,
    encodeImport,
    encodeList,
    encodeRefusal,
)

BARE = changed(UNO, busId="3-7.2", path="/sys/devices/usb3/3-7/3-7.2", interfaces=())

SEEDS = (
    *(b"i" + encodeImport(device) for device in (UNO, BARE)),
    *(b"i" + encodeRefusal(status) for status in OpStatus),
    *(b"l" + encodeList(devices) for devices in ([], [UNO], [BARE, UNO])),
)

WORDS = (b"1-", b".1", b"usb1", encodeImport(UNO)[:4], encodeList([])[:4], b"\0\0\0\2")

PREFIXES = 30

SPEEDS: dict[int, str] = {number: speed for speed, number in reversed(SPEED_OF.items())}

Answer = tuple[Exported, ...] | NotUsbIp | NotGiven | None


def check(data: bytes) -> None:
    """An input is an answer, the beginning of one, or refused, in any segmentation. Its first byte
    tells whether it is decoded as a list."""
    isList, received = data[:1] == b"l", data[1:]
    answer = outcome(isList, received)
    lengths = range(0, len(received), len(received) // PREFIXES + 1)
    before = [outcome(isList, received[:length]) for length in lengths]
    if isinstance(answer, NotUsbIp | NotGiven):
        refused = [isinstance(found, NotUsbIp | NotGiven) for found in before]
        assert sorted(refused) == refused
    else:
        assert before == [None] * len(before)
    if isinstance(answer, tuple):
        assert isinstance(outcome(isList, received + b"\0"), NotUsbIp)
        checkDevices(isList, answer)


def outcome(isList: bool, received: bytes) -> Answer:
    """The devices, the error, or C{None} for the beginning of an answer."""
    try:
        if isList:
            return decodeList(received)
        device = decodeImport(received)
        return None if device is None else (device,)
    except (NotUsbIp, NotGiven) as error:
        assert str(error).isprintable()
        return error


def checkDevices(isList: bool, devices: tuple[Exported, ...]) -> None:
    """Assert that devices are the same after encoding and decoding, except the path, which is text
    for people, unknown speeds, and a bus number other than that of the bus id."""
    again = [described(device) for device in devices]
    encoded = encodeList(again) if isList else encodeImport(again[0])
    found = outcome(isList, encoded)
    assert isinstance(found, tuple)
    for device, other in zip(devices, found, strict=True):
        speed = device.speed if device.speed in SPEEDS else 0
        assert other == msgspec.structs.replace(
            device, path=other.path, speed=speed, busNumber=other.busNumber
        )


def described(device: Exported) -> UsbDevice:
    """A device of this server with the same properties."""
    return changed(
        UNO,
        busId=device.busId,
        vendorId=device.vendorId,
        productId=device.productId,
        deviceNumber=device.deviceNumber,
        speed=SPEEDS.get(device.speed),
        deviceClass=device.deviceClass,
        subclass=device.subclass,
        protocol=device.protocol,
        release=device.release,
        configurations=device.configurations,
        path=device.path or None,
        interfaces=device.interfaces,
    )
