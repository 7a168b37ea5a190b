"""
Selects the devices that match the criteria of a request.

A device has to match all criteria that are given. A serial number is compared literally first and
then as a glob (C{fnmatch}: C{*}, C{?}, C{[...]}), as serial numbers may contain a C{[}. Characters
that cannot be displayed may be given as they are or as escapes (L{usbip_server.model.escapes}).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from usbip_server.model.criteria import (
    Criteria,
    Unmatchable,
    describe,
    given,
    parseBus,
    parseId,
    parsePath,
)
from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import DeviceNotFound, SeveralMatch
from usbip_server.model.escapes import normalize
from usbip_server.model.glob import Glob, isGlob, matcher

Devices = tuple[UsbDevice, ...]
Test = Callable[[UsbDevice], object]

NOTHING: frozenset[str] = frozenset()
SERIAL = frozenset({"serial"})
STRINGS = frozenset({"description", "manufacturer", "product"})
PATH = frozenset({"path"})
"""The fields of a device that C{serial}, C{desc} and C{path} are about."""


class Request(Criteria, Protocol):
    """
    Criteria that have to select one device.
    """

    @property
    def selector(self) -> Selector:
        """The criteria, compiled."""

    @property
    def first(self) -> bool | None:
        """If several devices match, select the first in bus order."""


class Selector:
    """
    The criteria of a request or of a rule, compiled once, for many devices.
    """

    def __init__(self, criteria: Criteria, isStrict: bool = False) -> None:
        """
        @param isStrict: refuse criteria that no device can match.
        @raise ValueError: a criterion is malformed.
        """
        self._serial = None if criteria.serial is None else normalize(criteria.serial.strip())
        self._tests: list[tuple[Test, frozenset[str]]] = []
        parts: tuple[tuple[Callable[[Any], Test], frozenset[str], Any], ...] = (
            (_byId, NOTHING, criteria.id),
            (_byBus, NOTHING, criteria.bus),
            (_bySerial, SERIAL, criteria.serial),
            (_byDescription, STRINGS, criteria.desc),
            (_byPath, PATH, criteria.path),
        )
        for compile_, fields, value in parts:
            try:
                if value is not None:
                    self._tests.append((compile_(value), fields))
            except Unmatchable:
                if isStrict:
                    raise
                self._tests.append((_never, NOTHING))

    def matches(self, device: UsbDevice) -> bool:
        """Whether a device matches all criteria."""
        return all(test(device) for test, _ in self._tests)

    def mayMatch(self, device: UsbDevice) -> bool:
        """Whether a device matches all criteria, or may do so: fields of it are not known."""
        return all(
            test(device) or not fields.isdisjoint(device.unknown) for test, fields in self._tests
        )

    def among(self, devices: Iterable[UsbDevice]) -> Devices:
        """
        The devices that match all criteria, in the order given. If the serial number of one of
        them is literally that of the criteria, only those with this serial number.
        """
        left: Iterable[UsbDevice] = devices
        for test, _ in self._tests:
            left = [device for device in left if test(device)]
        found = tuple(left)
        if self._serial is None or len(found) < 2:
            return found
        return tuple(device for device in found if device.serial == self._serial) or found


def select(request: Request, devices: Iterable[UsbDevice]) -> UsbDevice:
    """
    Select one device.

    @param devices: in bus order.
    @raise DeviceNotFound: no device matches.
    @raise SeveralMatch: several devices match, and C{first} is not set.
    """
    found = request.selector.among(devices)
    if not found:
        raise DeviceNotFound(f"no device matches {describe(given(request))}")
    if len(found) > 1 and not request.first:
        raise SeveralMatch(describe(given(request)), found)
    return found[0]


def _never(device: UsbDevice) -> bool:
    return False


def _byId(wanted: str) -> Test:
    text = parseId(wanted)
    matches = matcher(text)
    if ":" in text:
        return lambda device: matches(f"{device.vendorId}:{device.productId}")
    return lambda device: (
        matches(device.busId) or (device.name is not None and matches(device.name))
    )


def _byBus(wanted: str | int) -> Test:
    bus = parseBus(wanted)
    if isinstance(bus, int):
        return lambda device: device.busNumber == bus
    matches = matcher(bus)
    return lambda device: matches(device.busId)


def _bySerial(wanted: str) -> Test:
    wanted = normalize(wanted.strip())
    if not isGlob(wanted):
        return lambda device: device.serial == wanted
    matches = Glob(wanted).matches
    return lambda device: (
        device.serial is not None and (device.serial == wanted or matches(device.serial))
    )


def _byDescription(wanted: str) -> Test:
    part = normalize(wanted.strip()).lower()
    if not isGlob(part):
        return lambda device: any(part in text for text in _texts(device))
    matches = Glob(part).matches
    return lambda device: any(part in text or matches(text) for text in _texts(device))


def _byPath(wanted: str) -> Test:
    matches = matcher(parsePath(wanted))
    return lambda device: device.path is not None and matches(device.path)


def _texts(device: UsbDevice) -> tuple[str, str]:
    """
    The description of a device, and its own strings, in lower case.
    """
    strings = f"{device.manufacturer or ''} {device.product or ''}".strip()
    return normalize(device.description).lower(), strings.lower()
