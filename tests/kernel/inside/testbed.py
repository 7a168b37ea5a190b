"""
The USB devices of the machine that this guest is, and plugging them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Protocol

from tests.kernel.devices import Device

MACHINE = os.environ.get("USBIPSHARE_GUEST_MACHINE", "uml")
"""The kind of machine: C{uml} or C{qemu}."""


class PlugError(Exception):
    """A device could not be plugged in or unplugged. The message contains the reason."""


class ITestbed(Protocol):
    """
    Where devices can be plugged in. Any thread may call this, and any process.

    @ivar devices: those that can be plugged in, by name.
    """

    @property
    def devices(self) -> Mapping[str, Device]: ...

    def begin(self) -> None:
        """
        Load host controllers and drivers, and plug in the devices that a guest has at first, unless
        that has been done.
        """

    def plug(self, device: Device, seconds: float) -> None:
        """
        Plug in a device. The kernel notices a moment later. A disk has the content of the
        image, whatever was written to an earlier one.

        @raise PlugError: its name or its place is in use.
        """

    def unplug(self, name: str, seconds: float) -> None:
        """
        Unplug a device. The kernel notices a moment later.

        @raise PlugError: no device of that name is plugged in.
        """
