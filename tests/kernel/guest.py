"""What most scenarios use of the guest; L{tests.kernel.inside} has more.

All functions block. Those that wait raise C{DeadlineMissed} at a deadline. Any thread may call
them: a test with a reactor uses C{deferToThread}."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tests.kernel.devices import BORN_WITH, Device, PlugError
from tests.kernel.inside.command import DEADLINE, check, run, waitUntil
from tests.kernel.inside.comparingreader import checkDiskBytes, diskBytes, diskReader
from tests.kernel.inside.elsewhere import Elsewhere
from tests.kernel.inside.emulated import EmulatedTestbed
from tests.kernel.inside.gadgetline import checkEcho
from tests.kernel.inside.gadgets import GadgetTestbed
from tests.kernel.inside.stocktools import (
    attachDisk,
    isListening,
    stockAttach,
    stockDetach,
    stockUsbipd,
)
from tests.kernel.inside.usb import (
    DEVICES_FOLDER,
    DRIVERS_FOLDER,
    VHCI_FOLDER,
    attribute,
    driverOf,
    forget,
    imports,
    importsPending,
    matchBusIds,
    readBlockDevice,
    reset,
    ttyDevice,
    usbipStatus,
    vidPid,
    waitBlockDevice,
    waitGone,
    waitImport,
    waitNothingImported,
    waitPresent,
)

__all__ = [
    "CARD_READER", "DEADLINE", "DEVICES", "DEVICES_FOLDER", "DISK", "DRIVERS_FOLDER",
    "FAST_DISK", "KEYBOARD", "MACHINE", "SERIAL", "SERIAL_NODES", "TABLET", "Device",
    "Elsewhere", "PlugError", "attachDisk", "attribute", "awaitDevices", "check", "checkDiskBytes",
    "checkEcho", "diskBytes", "diskReader", "dmesg", "driverOf", "forget", "imports",
    "isListening", "matchBusIds", "modprobe", "plug", "readBlockDevice", "reset", "resetUsb",
    "rmmod", "run", "stockAttach", "stockDetach", "stockUsbipd", "ttyDevice", "unplug",
    "usbipStatus", "vidPid", "waitBlockDevice", "waitGone", "waitImport",
    "waitNothingImported", "waitPresent", "waitUntil",
]  # fmt: skip

MACHINE = os.environ.get("USBIPSHARE_GUEST_MACHINE", "uml")
"""The kind of machine: C{uml} or C{qemu}."""

_testbed = EmulatedTestbed() if MACHINE == "qemu" else GadgetTestbed()

CARD_READER = _testbed.devices["ccid"]
DISK = _testbed.devices["disk"]
FAST_DISK = _testbed.devices["fast"]
"""At super speed. It is not there at first."""
KEYBOARD = _testbed.devices["keyboard"]
SERIAL = _testbed.devices["serial"]
TABLET = _testbed.devices["tablet"]

SERIAL_NODES = "/dev/ttyUSB" if MACHINE == "qemu" else "/dev/ttyACM"
"""What the nodes of the serial port begin with: an FTDI converter in QEMU, CDC-ACM else."""

DEVICES = tuple(_testbed.devices[name] for name in BORN_WITH if name in _testbed.devices)
"""Those that are plugged in when a guest starts, with the hub."""


def modprobe(name: str, *parameters: str) -> None:
    """Load a module, and those that it needs, unless it is loaded. All of the kernel's are there.

    @param parameters: C{num=4}"""
    loaded = Path("/sys/module", name.replace("-", "_"), "initstate")
    with contextlib.suppress(FileNotFoundError):
        if not parameters and loaded.read_text() == "live\n":
            return
    check("modprobe", name, *parameters)


def rmmod(name: str) -> None:
    """Unload a module."""
    check("modprobe", "-r", name)


def plug(device: Device, seconds: float = DEADLINE) -> None:
    """Plug in a device: one of L{DEVICES}, or another. The kernel notices a moment later. A disk
    has the content of the image.

    @raise PlugError: its name or its place is in use."""
    _testbed.plug(device, seconds)


def unplug(device: Device, seconds: float = DEADLINE) -> None:
    """Unplug a device. The kernel notices a moment later.

    @raise PlugError: it is not plugged in."""
    _testbed.unplug(device.name, seconds)


def awaitDevices() -> None:
    """Load the drivers of L{DEVICES}, but no modules of USB/IP, and wait until all devices are
    present, with the disk and the serial port ready for use."""
    _testbed.begin()
    for device in DEVICES:
        waitPresent(device.busId)
    waitBlockDevice(DISK.busId)
    waitUntil(lambda: ttyDevice(SERIAL.busId), "the serial port has a tty")


def dmesg() -> str:
    """The kernel's messages so far."""
    return check("dmesg")


def resetUsb() -> None:
    """Detach what is imported, unbind what is bound, and plug in all of L{DEVICES}. Modules stay
    loaded, and names stay in usbip-host's table."""
    waitUntil(lambda: not importsPending(), "vhci has settled")
    for port, busId in imports().items():
        (VHCI_FOLDER / "detach").write_text(str(port))
        waitGone(busId)
    waitNothingImported()
    for device in DEVICES:
        if vidPid(device.busId) is not None and driverOf(device.busId) != "usb":
            _giveBack(device.busId)
    for device in DEVICES:
        if vidPid(device.busId) != device.vidPid or (
            device.serial is not None and attribute(device.busId, "serial") != device.serial
        ):
            with contextlib.suppress(PlugError):
                unplug(device)
            waitGone(device.busId)
            plug(device)
    awaitDevices()


def _giveBack(busId: str) -> None:
    """Unbind in the order that cannot crash the kernel: no C{rebind}, no C{del}."""
    if driverOf(busId) == "usbip-host":
        (DRIVERS_FOLDER / "usbip-host" / "unbind").write_text(busId)
    (DRIVERS_FOLDER / "usb" / "bind").write_text(busId)
