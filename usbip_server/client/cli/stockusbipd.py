"""
Advice for devices of a stock C{usbipd}, which can only be bound on its own machine.

That of Linux is C{tools/usb/usbip}; for the meaning of a status of Windows' C{usbipd-win} see its
C{Usbipd/ConnectedClient.cs}.
"""

from __future__ import annotations

from collections.abc import Sequence

from usbip_server.client.servers import Server
from usbip_server.model.device import UsbDevice
from usbip_server.model.usbip import NotGiven, OpStatus

LINUX = "/"
"""The paths of devices begin so where the server runs Linux: they are those of sysfs."""

WINDOWS = "USB\\"
"""The same for Windows: they are instance ids."""


def remedy(error: NotGiven, device: UsbDevice) -> str:
    """
    The end of a message about a refused import: what to do on the server; empty if that is not
    known.

    @param device: as it was listed.
    """
    path = device.sysfsPath or ""
    if error.status == OpStatus.NODEV:
        return f"; on the server: {binding(device.busId, path)}"
    if not path.startswith(WINDOWS):
        return ""
    force = f"usbipd bind --force --busid {device.busId}"
    if error.status == OpStatus.DEV_BUSY:
        return (
            "; `usbipd list` on the server shows whether a client uses it; otherwise a program of "
            f"Windows does, and this takes it away, as administrator: {force}"
        )
    if error.status in (OpStatus.NA, OpStatus.DEV_ERR):
        return f"; a driver of Windows may keep it: on the server, as administrator: {force}"
    return "; on the server: usbipd list"


def unlisted(servers: Sequence[Server], busId: str | None) -> str:
    """
    The end of a message about a device that was not found: that these servers list only bound
    devices; empty if there are none.

    @param busId: of the device, if it is known.
    """
    if not servers:
        return ""
    names = ", ".join(map(str, servers))
    return (
        f"; a stock usbipd ({names}) lists only devices that are bound: on the server, "
        f"{binding(busId)}"
    )


def binding(busId: str | None, path: str = "") -> str:
    """
    The command that binds a device on its server.

    @param path: of the device, as far as it is known: Linux and Windows have different ones.
    """
    name = busId or "BUSID"
    linux = f"sudo usbip bind -b {name}"
    windows = f"as administrator, usbipd bind --busid {name}"
    if path.startswith(LINUX):
        return linux
    if path.startswith(WINDOWS):
        return windows
    return f"{linux}; on Windows, {windows}"
