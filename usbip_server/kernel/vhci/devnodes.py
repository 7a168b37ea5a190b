"""
The device nodes of an imported USB device: C{/dev/ttyUSB0}, C{/dev/sda}.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from usbip_server.kernel.system import ISystem

BY_ID = ("serial/by-id", "disk/by-id", "input/by-id", "v4l/by-id", "snd/by-id")
"""Folders below C{/dev} with udev's persistent names."""

UNUSED = "bsg/"
"""Nodes of each disk that hardly any program opens."""

DISK = b"08"
"""C{bInterfaceClass} (usb.org, Defined Class Codes)."""

UDEV_QUEUE = "/run/udev/queue"
"""Exists while udev handles events (udevadm(8), C{settle})."""

DEEPEST = 16
"""Levels of folders below a device that are searched; the partition of a disk is at level 7."""


class Nodes:
    """
    Finds device nodes. All calls may block: make them in a thread.
    """

    def __init__(self, system: ISystem, folder: str = "/dev", udevQueue: str = UDEV_QUEUE) -> None:
        """
        @param folder: the folder of device nodes.
        @param udevQueue: a file that exists while udev handles events.
        """
        self._udevQueue = udevQueue
        self._system = system
        self._folder = os.path.realpath(folder)

    def of(self, path: str) -> tuple[str, ...]:
        """
        The device nodes of a device, and udev's persistent names for them, which come first.

        @param path: that of the device, below C{/sys}. A device that was unplugged has no nodes.
        """
        names = {name for name in self._names(path, 0) if not name.startswith(UNUSED)}
        nodes = sorted(f"{self._folder}/{name}" for name in names)
        return (*self._lasting(nodes), *nodes)

    def isDisk(self, path: str) -> bool:
        """
        Whether a device has a mass storage interface: its nodes appear late.

        @param path: as in L{of}.
        """
        for name in self._list(path):
            if ":" in name:
                with contextlib.suppress(OSError):
                    if self._system.read(f"{path}/{name}/bInterfaceClass").strip() == DISK:
                        return True
        return False

    def isProbed(self, path: str) -> bool:
        """
        Has each interface of a device a driver that has finished its probe, and has udev handled
        all events? A probe creates the nodes, except those of a disk.

        @param path: as of L{of}.
        """
        try:
            # Blocks while a probe is in progress: usb_lock_device_interruptible() in
            # usb_actconfig_show (drivers/usb/core/sysfs.c).
            expected = int(self._system.read(f"{path}/bNumInterfaces"))
        except (OSError, ValueError):
            return False
        interfaces = [name for name in self._list(path) if ":" in name]
        return (
            len(interfaces) == expected
            and all("driver" in self._list(f"{path}/{name}") for name in interfaces)
            and not os.path.exists(self._udevQueue)
        )

    def _names(self, path: str, depth: int) -> Iterator[str]:
        # The device itself has a node too, /dev/bus/usb/..., which is for drivers in user space.
        if depth > 0 and "dev" in self._list(path):
            with contextlib.suppress(OSError):
                for line in self._system.read(f"{path}/uevent").splitlines():
                    if line.startswith(b"DEVNAME="):
                        yield os.fsdecode(line.removeprefix(b"DEVNAME="))
        if depth < DEEPEST:
            with contextlib.suppress(OSError):  # it is being unplugged
                for folder in self._system.directories(path):
                    yield from self._names(f"{path}/{folder}", depth + 1)

    def _lasting(self, nodes: list[str]) -> list[str]:
        found = []
        for folder in BY_ID if nodes else ():
            with contextlib.suppress(OSError):
                for name in os.listdir(f"{self._folder}/{folder}"):
                    link = f"{self._folder}/{folder}/{name}"
                    if os.path.realpath(link) in nodes:
                        found.append(link)
        return sorted(found)

    def _list(self, path: str) -> list[str]:
        try:
            return self._system.list(path)
        except OSError:
            return []
