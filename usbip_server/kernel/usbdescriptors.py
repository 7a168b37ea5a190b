"""
What sysfs shows in C{descriptors}: the device descriptor, then each configuration with all that
belongs to it (USB 2.0, section 9.6), as the device has sent them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

DEVICE, CONFIGURATION, INTERFACE = 1, 2, 4
"""C{bDescriptorType} (USB 2.0, table 9-5)."""

INTERFACES_AT_MOST = 32
"""C{USB_MAXINTERFACES} (C{include/linux/usb.h})."""

_DEVICE_SIZE = 18


class Interfaces(NamedTuple):
    """
    Class, subclass and protocol of interfaces, C{"08/06/50"}.

    @ivar of: by C{bConfigurationValue}, in the order of the descriptors: the interfaces that the
        kernel makes of the configuration, in their first setting. Of descriptors with the same
        number it takes the first, and no more than L{INTERFACES_AT_MOST} numbers
        (C{usb_parse_configuration}, C{drivers/usb/core/config.c}).
    @ivar classes: those of all configurations and settings, each once: a client that
        imports the device can choose another configuration.
    """

    of: dict[int, tuple[str, ...]]
    classes: tuple[str, ...]


def interfacesOf(descriptors: bytes) -> Interfaces:
    """
    The interfaces of a device. Descriptors that are truncated or have a wrong length are read as
    far as possible.
    """
    configurations: dict[int, dict[int, str]] = {}
    interfaces: dict[int, str] = {}
    classes: dict[str, None] = {}
    for kind, body in _walk(descriptors):
        if kind == CONFIGURATION and len(body) >= 9:
            interfaces = {}
            configurations.setdefault(body[5], interfaces)
        if kind != INTERFACE or len(body) < 9:
            continue
        triple = "/".join(f"{byte:02x}" for byte in body[5:8])
        classes[triple] = None
        number, setting = body[2:4]
        if setting == 0 and len(interfaces) < INTERFACES_AT_MOST:
            interfaces.setdefault(number, triple)
    return Interfaces(
        {value: tuple(each.values()) for value, each in configurations.items()}, tuple(classes)
    )


def _walk(descriptors: bytes) -> Iterator[tuple[int, bytes]]:
    """
    The type of each descriptor behind the device's, and its bytes.
    """
    at = _DEVICE_SIZE
    while at + 2 <= len(descriptors) and descriptors[at] >= 2:
        yield descriptors[at + 1], descriptors[at : at + descriptors[at]]
        at += descriptors[at]
