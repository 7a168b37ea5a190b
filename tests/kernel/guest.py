"""
The guest, for a scenario: everything that a test needs of it comes from here.

All functions block. Each ends by a deadline of its own and raises L{DeadlineMissed} if what
it waits for has not happened. Any thread may call them: a test with a reactor says
C{await deferToThread(guest.unplug, "disk")}.

Trial runs a test in a folder of its own: a program that imports this project is run with
C{cwd=guest.PROJECT}.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tests.kernel.cache import PROJECT
from tests.kernel.devices import CARD_READER, DEVICES, DISK, HUB, KEYBOARD, SERIAL, TABLET
from tests.kernel.inside.command import CommandResult, check, run
from tests.kernel.inside.diskreader import DiskReader
from tests.kernel.inside.elsewhere import Elsewhere
from tests.kernel.inside.gadget import SerialGadget
from tests.kernel.inside.hotplug import (
    HotplugError,
    plug,
    plugDisk,
    plugSerial,
    replug,
    unplug,
)
from tests.kernel.inside.rawgadget import models
from tests.kernel.inside.rawgadget.device import RawDevice
from tests.kernel.inside.rawgadget.plugged import PluggedIn, busIdAt
from tests.kernel.inside.stockusbipd import StockUsbipd, isListening
from tests.kernel.inside.uevents import Binding, Uevents
from tests.kernel.inside.usb import (
    DEVICES_FOLDER,
    DRIVERS_FOLDER,
    VHCI_FOLDER,
    attribute,
    blockDevice,
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
    waitPresent,
)
from tests.kernel.inside.usbfs import Locked, UsbNode, isStuck
from tests.kernel.inside.waiting import DEADLINE, DeadlineMissed, waitUntil

__all__ = [
    "CARD_READER",
    "DEADLINE",
    "DEVICES",
    "DEVICES_FOLDER",
    "DISK",
    "DRIVERS_FOLDER",
    "HUB",
    "KEYBOARD",
    "PROJECT",
    "SERIAL",
    "TABLET",
    "Binding",
    "CommandResult",
    "DeadlineMissed",
    "DiskReader",
    "Elsewhere",
    "HotplugError",
    "Locked",
    "PluggedIn",
    "RawDevice",
    "SerialGadget",
    "StockUsbipd",
    "Uevents",
    "UsbNode",
    "attribute",
    "awaitDevices",
    "blockDevice",
    "busIdAt",
    "check",
    "diskBytes",
    "dmesg",
    "driverOf",
    "forget",
    "imports",
    "isListening",
    "isStuck",
    "matchBusIds",
    "models",
    "modprobe",
    "mountConfigfs",
    "plug",
    "plugDisk",
    "plugSerial",
    "readBlockDevice",
    "replug",
    "reset",
    "resetUsb",
    "rmmod",
    "run",
    "ttyDevice",
    "unplug",
    "usbipStatus",
    "vidPid",
    "waitBlockDevice",
    "waitGone",
    "waitImport",
    "waitPresent",
    "waitUntil",
]

# Of the host controller and of the devices. There is no udev to load them.
_USB_MODULES = ("xhci-pci", "usb-storage", "sd_mod", "ftdi_sio", "usbhid")


def modprobe(name: str, *parameters: str) -> None:
    """
    Load a module, and those that it needs. All of the kernel's are there.

    @param parameters: C{num=4}
    """
    check("modprobe", name, *parameters)


def rmmod(name: str) -> None:
    """
    Unload a module.
    """
    check("modprobe", "-r", name)


def mountConfigfs() -> Path:
    """
    Have configfs mounted, for gadgets.
    """
    folder = Path("/sys/kernel/config")
    modprobe("configfs")
    if not os.path.ismount(folder):
        check("mount", "-t", "configfs", "none", str(folder))
    return folder


def awaitDevices() -> None:
    """
    Load the drivers of the devices that the guest was born with, and wait until all of
    them are there, with the disk and the serial converter ready for use.

    The modules of USB/IP are the test's own business: C{modprobe("usbip-host")}.
    """
    for module in _USB_MODULES:
        modprobe(module)
    for device in DEVICES:
        waitPresent(device.busId)
    waitBlockDevice(DISK.busId)
    waitUntil(lambda: ttyDevice(SERIAL.busId), "the serial converter has a tty")


def diskBytes() -> bytes:
    """
    What is on the disk, read from the host.
    """
    return Path(os.environ["USBIPSHARE_GUEST_DISK"]).read_bytes()


def dmesg() -> str:
    """
    The kernel's messages so far.
    """
    return check("dmesg")


def resetUsb() -> None:
    """
    Make all as it was: nothing imported, nothing bound, every device plugged in.

    For C{tearDown}. Leaves the modules loaded, and the names in usbip-host's table.
    """
    waitUntil(lambda: not importsPending(), "vhci has settled")
    for port, busId in imports().items():
        (VHCI_FOLDER / "detach").write_text(str(port))
        waitGone(busId)
    for device in DEVICES:
        if vidPid(device.busId) is not None and driverOf(device.busId) != "usb":
            _giveBack(device.busId)
    for device in DEVICES:
        if vidPid(device.busId) != device.vidPid or (
            device.serial is not None and attribute(device.busId, "serial") != device.serial
        ):
            with contextlib.suppress(HotplugError):
                unplug(device.deviceId)
            waitGone(device.busId)
            replug(device.deviceId)
    awaitDevices()


def _giveBack(busId: str) -> None:
    """
    The order that is safe whatever happens meanwhile: no C{rebind}, no C{del}.
    """
    if driverOf(busId) == "usbip-host":
        (DRIVERS_FOLDER / "usbip-host" / "unbind").write_text(busId)
    (DRIVERS_FOLDER / "usb" / "bind").write_text(busId)
