"""
The criteria that select devices in requests, rules and C{access}, and their notation.

A criterion is understood in each notation that has one meaning: C{0x1050:0x0407} is
C{1050:0407}. Where a rule has one that no device can match it is refused, as the rule would be
ignored; in a request it matches nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from usbip_server.model.device import isBusId
from usbip_server.model.escapes import normalize
from usbip_server.model.glob import isGlob

CRITERIA = ("id", "bus", "serial", "desc", "path")

LONGEST_CRITERION = 256
"""Characters of a criterion: a USB string has at most 126 (USB 2.0, 9.6.7), a glob a few more."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)
"""The form of a name: no character is special in a glob, in C{vid:pid} or in a path."""

_NUMBER = "(?:0x)?([0-9a-f]{1,4})"

_VENDOR_AND_PRODUCT = re.compile(
    rf"(?:vid=)?{_NUMBER}(?: *[:/] *| +)(?:pid=)?{_NUMBER}", re.ASCII | re.IGNORECASE
)
"""Also C{vid=0x1050 pid=0x0407}, as in the C{device_id} of a reply."""

_GLOB_OF_IDS = re.compile(r"[0-9a-f*?[\]!-]+:[0-9a-f*?[\]!-]+", re.ASCII)

_INTERFACE = re.compile(r"([1-9][0-9]*-[0-9.]+):[0-9]+\.[0-9]+", re.ASCII)
"""The name of an interface in sysfs: C{8-1:1.0}."""

_BUS = re.compile(r"(?:usb|bus ?)?0*([1-9][0-9]{0,4})", re.ASCII | re.IGNORECASE)
"""A number of a bus: also C{usb8}, the name of its root hub, and C{Bus 008}, as in C{lsusb}."""

LARGEST_BUS = 65535
"""USB/IP has 16 bits for the number of a bus."""

_REVISION = re.compile(r"\busbv[0-9]+-0:", re.ASCII)
"""The form of C{ID_PATH_WITH_USB_REVISION}, for C{usb-0:}."""

_UDEV = re.compile(r"(?<=usb-0:)([^:]+):[0-9]+\.[0-9]+(-port[0-9]+)?\Z", re.ASCII)
"""What the C{ID_PATH} of an interface, and the name of its device node in C{by-path}, have in
addition: C{":1.0-port0"}."""

_BY_PATH = re.compile(r"/dev/[a-z0-9]+/by-path/", re.ASCII)


class Unmatchable(ValueError):
    """
    A criterion that no device can match.
    """


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


def parseId(text: str) -> str:
    """
    Normalize the criterion C{id}: a bus id, a name, or a glob of one; or, with a colon, C{vid:pid}
    or a glob of that.

    @raise Unmatchable: no device can match it.
    @raise ValueError: it is the name of an interface.
    """
    text = text.strip()
    if isBusId(text):
        return text
    ids = _VENDOR_AND_PRODUCT.fullmatch(text)
    if ids is not None:
        return f"{ids[1]:0>4}:{ids[2]:0>4}".lower()
    _requireNoInterface("id", text)
    if ":" in text:
        globbed = text.lower().replace("0x", "")
        if isGlob(text) and _GLOB_OF_IDS.fullmatch(globbed):
            return globbed
        raise Unmatchable(
            f"`id`: {text!r} is not `vid:pid`, two hexadecimal numbers such as 2341:0043, or a "
            "glob of it such as 2341:*"
        )
    if isGlob(text) or NAME.fullmatch(text):
        return text
    raise Unmatchable(f"`id`: {text!r} is not a bus id such as 1-1.4, a name, `vid:pid`, or a glob")


def isName(text: str) -> bool:
    """Whether the criterion C{id} can match names only."""
    return ":" not in (wanted := parseId(text)) and not isGlob(wanted) and not isBusId(wanted)


def parseBus(value: str | int) -> str | int:
    """
    Normalize the criterion C{bus}.

    @return: a bus number, a bus id, or a glob of a bus id.
    @raise Unmatchable: no device can match it.
    @raise ValueError: it is the name of an interface, or is no sensible number.
    """
    if isinstance(value, int):
        if value.bit_length() > 64:
            raise ValueError("`bus` is not the number of a bus")
        if not 1 <= value <= LARGEST_BUS:
            raise Unmatchable(f"`bus`: the number of a bus is at least 1 and at most {LARGEST_BUS}")
        return value
    text = value.strip()
    number = _BUS.fullmatch(text)
    if number is not None:
        return parseBus(int(number[1]))
    _requireNoInterface("bus", text)
    if isBusId(text) or isGlob(text):
        return text
    raise Unmatchable(
        f"`bus`: {text!r} is not a bus number such as 1, a bus id such as 1-1.4, or a glob of one"
    )


def parsePath(text: str) -> str:
    """
    Normalize the criterion C{path}.

    @raise Unmatchable: no device can match it.
    """
    path = _REVISION.sub("usb-0:", _BY_PATH.sub("", normalize(text.strip())))
    path = _UDEV.sub(r"\1", path)
    if isGlob(path) or "usb-0:" in path:
        return path
    raise Unmatchable(
        f"`path`: {text!r} is not the path of a port, such as pci-0000:00:14.0-usb-0:1.4; the "
        "details of a device contain it"
    )


def _requireNoInterface(key: str, text: str) -> None:
    interface = _INTERFACE.fullmatch(text)
    if interface is not None:
        raise ValueError(f"`{key}`: {text!r} is an interface; its device is {interface[1]!r}")
