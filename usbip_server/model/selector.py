"""
Selects the devices that match the criteria of a request.

A device has to match all criteria that are given. A serial number is compared literally first and
then as a glob (C{fnmatch}: C{*}, C{?}, C{[...]}), as serial numbers may contain a C{[}.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import translate
from typing import Any, Protocol

from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import DeviceNotFound, SeveralMatch

Devices = tuple[UsbDevice, ...]
Test = Callable[[str], object]

CRITERIA = ("id", "bus", "serial", "desc")

LONGEST_CRITERION = 256
"""Characters of a criterion: a USB string has at most 126 (USB 2.0, 9.6.7), a glob a few more."""


class Criteria(Protocol):
    """
    The criteria of a request. C{None}: not given.
    """

    @property
    def id(self) -> str | None:
        """A bus id, a name, or a glob of one; with a colon, C{vid:pid} or a glob of that."""

    @property
    def bus(self) -> str | int | None:
        """A bus number; anything else is a bus id or a glob of one."""

    @property
    def serial(self) -> str | None:
        """The serial number, or a glob of it."""

    @property
    def desc(self) -> str | None:
        """A part of the description, ignoring case, or a glob."""


class Request(Criteria, Protocol):
    """
    Criteria that have to select one device.
    """

    @property
    def first(self) -> bool | None:
        """If several devices match, select the first in bus order."""


def given(criteria: object, names: Iterable[str] = CRITERIA) -> dict[str, Any]:
    """
    The criteria that are given, by name.

    @raise ValueError: a criterion is empty or too long.
    """
    found = {name: value for name in names if (value := getattr(criteria, name)) is not None}
    for name, value in found.items():
        if isinstance(value, str) and not value.strip():
            raise ValueError(f"`{name}` is empty: remove it, or give a value")
        if isinstance(value, str) and len(value) > LONGEST_CRITERION:
            raise ValueError(f"`{name}` is longer than {LONGEST_CRITERION} characters")
    return found


def describe(criteria: Mapping[str, Any]) -> str:
    """Format criteria for a message: C{bus='1-1', desc='Uno'}."""
    return ", ".join(f"{name}={value!r}" for name, value in criteria.items())


def select(request: Request, devices: Iterable[UsbDevice]) -> UsbDevice:
    """
    Select one device.

    @param devices: in bus order.
    @raise DeviceNotFound: no device matches.
    @raise SeveralMatch: several devices match, and C{first} is not set.
    """
    found = matching(request, devices)
    if not found:
        raise DeviceNotFound(f"no device matches {describe(given(request))}")
    if len(found) > 1 and not request.first:
        raise SeveralMatch(describe(given(request)), found)
    return found[0]


def matching(request: Criteria, devices: Iterable[UsbDevice]) -> Devices:
    """
    All devices that match all criteria, in the order given.
    """
    found = tuple(devices)
    if request.id is not None:
        found = _byId(request.id, found)
    if request.bus is not None:
        found = _byBus(str(request.bus), found)
    if request.serial is not None:
        found = _bySerial(request.serial, found)
    if request.desc is not None:
        found = _byDescription(request.desc, found)
    return found


def _byId(wanted: str, devices: Devices) -> Devices:
    if ":" in wanted:
        matches = _glob(wanted.lower())
        return tuple(d for d in devices if matches(f"{d.vendorId}:{d.productId}"))
    matches = _glob(wanted)
    return tuple(d for d in devices if matches(d.busId) or (d.name and matches(d.name)))


def _byBus(wanted: str, devices: Devices) -> Devices:
    if wanted.isascii() and wanted.isdigit():
        return tuple(d for d in devices if d.busNumber == int(wanted))
    return _byBusId(wanted, devices)


def _byBusId(wanted: str, devices: Devices) -> Devices:
    matches = _glob(wanted)
    return tuple(d for d in devices if matches(d.busId))


def _bySerial(wanted: str, devices: Devices) -> Devices:
    exactly = tuple(d for d in devices if d.serial == wanted)
    if exactly:
        return exactly
    matches = _glob(wanted)
    return tuple(d for d in devices if d.serial is not None and matches(d.serial))


def _byDescription(wanted: str, devices: Devices) -> Devices:
    wanted = wanted.lower()
    if _isGlob(wanted):
        matches = _glob(wanted)
        return tuple(d for d in devices if any(wanted in t or matches(t) for t in _texts(d)))
    return tuple(d for d in devices if any(wanted in text for text in _texts(d)))


def _texts(device: UsbDevice) -> tuple[str, str]:
    """
    The description of a device, and its own strings, in lower case.
    """
    strings = f"{device.manufacturer or ''} {device.product or ''}".strip()
    return device.description.lower(), strings.lower()


def _glob(pattern: str) -> Test:
    if not _isGlob(pattern):
        return pattern.__eq__
    return re.compile(translate(pattern)).match


def _isGlob(text: str) -> bool:
    return any(special in text for special in "*?[")
