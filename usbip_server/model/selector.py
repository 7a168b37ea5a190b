"""
Selects the devices that match the criteria of a request.

A device has to match all criteria that are given. A serial number is compared literally first and
then as a glob (C{fnmatch}: C{*}, C{?}, C{[...]}), as serial numbers may contain a C{[}. Characters
that cannot be displayed may be given as they are or as escapes (L{usbip_server.model.escapes}).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import DeviceNotFound, SeveralMatch
from usbip_server.model.escapes import normalize
from usbip_server.model.glob import Glob

Devices = tuple[UsbDevice, ...]
Test = Callable[[UsbDevice], bool]

CRITERIA = ("id", "bus", "serial", "desc", "path")

SERIAL = frozenset({"serial"})
STRINGS = frozenset({"description", "manufacturer", "product"})
PATH = frozenset({"path"})
"""The fields of a device that C{serial}, C{desc} and C{path} are about."""

LONGEST_CRITERION = 256
"""Characters of a criterion: a USB string has at most 126 (USB 2.0, 9.6.7), a glob a few more."""


_REVISION = re.compile(r"\busbv[0-9]+-0:", re.ASCII)
"""The form of C{ID_PATH_WITH_USB_REVISION}, for C{usb-0:}."""

_UDEV = re.compile(r"(?<=usb-0:)([^:]+):[0-9]+\.[0-9]+(-port[0-9]+)?\Z", re.ASCII)
"""What the C{ID_PATH} of an interface, and the name of its device node in C{by-path}, have in
addition: C{":1.0-port0"}."""


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

    @property
    def path(self) -> str | None:
        """The path of a physical port, or a glob of it."""


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


class Selector:
    """
    The criteria of a request or of a rule, compiled once, for many devices.
    """

    def __init__(self, criteria: Criteria) -> None:
        self._serial = None if criteria.serial is None else normalize(criteria.serial.strip())
        self._tests = [
            (test(str(value)), fields)
            for test, fields, value in (
                (_byId, frozenset(), criteria.id),
                (_byBus, frozenset(), criteria.bus),
                (_bySerial, SERIAL, criteria.serial),
                (_byDescription, STRINGS, criteria.desc),
                (_byPath, PATH, criteria.path),
            )
            if value is not None
        ]

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
        found = tuple(filter(self.matches, devices))
        if self._serial is None or len(found) < 2:
            return found
        return tuple(device for device in found if device.serial == self._serial) or found


def matching(criteria: Criteria, devices: Iterable[UsbDevice]) -> Devices:
    """The devices that match criteria that are used once: L{Selector.among}."""
    return Selector(criteria).among(devices)


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


def _byId(wanted: str) -> Test:
    if ":" in wanted:
        ids = Glob(wanted.lower())
        return lambda device: ids.matches(f"{device.vendorId}:{device.productId}")
    glob = Glob(wanted)
    return lambda device: (
        glob.matches(device.busId) or (device.name is not None and glob.matches(device.name))
    )


def _byBus(wanted: str) -> Test:
    if wanted.isascii() and wanted.isdigit():
        number = int(wanted)
        return lambda device: device.busNumber == number
    busIds = Glob(wanted)
    return lambda device: busIds.matches(device.busId)


def _bySerial(wanted: str) -> Test:
    wanted = normalize(wanted.strip())
    glob = Glob(wanted)
    return lambda device: (
        device.serial is not None and (device.serial == wanted or glob.matches(device.serial))
    )


def _byDescription(wanted: str) -> Test:
    part = normalize(wanted.strip()).lower()
    glob = Glob(part)
    return lambda device: any(part in text or glob.matches(text) for text in _texts(device))


def _byPath(wanted: str) -> Test:
    glob = Glob(_UDEV.sub(r"\1", _REVISION.sub("usb-0:", normalize(wanted.strip()))))
    return lambda device: device.path is not None and glob.matches(device.path)


def _texts(device: UsbDevice) -> tuple[str, str]:
    """
    The description of a device, and its own strings, in lower case.
    """
    strings = f"{device.manufacturer or ''} {device.product or ''}".strip()
    return device.description.lower(), strings.lower()
