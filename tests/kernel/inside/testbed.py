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
    """A device could not be plugged in or pulled out. The message says why."""


class ITestbed(Protocol):
    """
    Where devices can be plugged in. Any thread may call this, and any process.

    @ivar devices: those that this machine knows, by name.
    """

    @property
    def devices(self) -> Mapping[str, Device]: ...

    def begin(self) -> None:
        """
        Have host controllers and drivers, and plug in what a guest is born with, unless that has
        been done.
        """

    def plug(self, device: Device, seconds: float) -> None:
        """
        Put a device in. The kernel learns of it a moment later. A disk has the content of the
        image, whatever was written to an earlier one.

        @raise PlugError: its name or its place is in use.
        """

    def unplug(self, name: str, seconds: float) -> None:
        """
        Pull a device out. The kernel learns of it a moment later.

        @raise PlugError: there is none of that name.
        """
