"""
Single attributes of a device in sysfs, which are read without the device's lock.
"""

from __future__ import annotations

import errno
import posixpath

from usbip_server.kernel.system import ISystem
from usbip_server.model.device import DeviceState

DEVICES = "bus/usb/devices"

USBIP_HOST = "usbip-host"

STATE_OF = {1: DeviceState.BOUND, 2: DeviceState.IN_USE, 3: DeviceState.ERROR}
"""C{usbip_status}: C{SDEV_ST_AVAILABLE}, C{_USED}, C{_ERROR}
(C{include/uapi/linux/usbip.h})."""

GONE = {errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTDIR}
"""The errno values of reading an attribute of a device that was unplugged."""

NOT_AUTHORIZED = (
    "the kernel has not authorized it: USBGuard or another program blocks it. To allow it: "
    "usbguard allow-device, or as root: echo 1 > /sys/bus/usb/devices/{busId}/authorized"
)


def isImported(system: ISystem, busId: str) -> bool:
    """
    Whether this machine has imported the device from another server. Nothing in the kernel
    prevents such a device from being exported again.
    """
    return "vhci_hcd" in pathOf(system, busId)


def isAuthorized(system: ISystem, busId: str) -> bool:
    """
    Whether the kernel has authorized a device (C{Documentation/usb/authorization.rst}): any other
    can be bound and imported, but has no interfaces.
    """
    try:
        return system.read(f"{DEVICES}/{busId}/authorized").strip() != b"0"
    except OSError:
        return True


def pathOf(system: ISystem, busId: str) -> str:
    """
    The path of a device in sysfs: C{"/sys/devices/pci0000:00/0000:00:14.0/usb1/1-1"}.
    """
    path = f"/sys/{DEVICES}"
    try:
        return posixpath.normpath(f"{path}/{system.readlink(f'{DEVICES}/{busId}')}")
    except OSError as error:
        if error.errno == errno.EINVAL:  # a directory, in a tree made for a test
            return f"{path}/{busId}"
        raise


def driverOf(system: ISystem, busId: str) -> str | None:
    """
    The name of the driver that is bound to a device; C{None} if there is none.
    """
    try:
        return system.readlink(f"{DEVICES}/{busId}/driver").rpartition("/")[2]
    except FileNotFoundError:
        return None


def statusOf(system: ISystem, busId: str) -> int | None:
    """
    The C{usbip_status} of a device; C{None} if the device is not bound.
    """
    try:
        return int(system.read(f"{DEVICES}/{busId}/usbip_status"))
    except (OSError, ValueError):
        return None
