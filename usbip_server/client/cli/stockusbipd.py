"""
What somebody has to do at a stock C{usbipd}, as nothing can be done about its devices from here.

That of Linux is C{tools/usb/usbip}; for what Windows' C{usbipd-win} means with a status see its
C{Usbipd/ConnectedClient.cs}.
"""

from __future__ import annotations

from collections.abc import Sequence

from usbip_server.client.servers import Server
from usbip_server.model.device import UsbDevice
from usbip_server.model.usbip import NotGiven, OpStatus

LINUX = "/"
"""How the paths of its devices begin, which are those of sysfs."""

WINDOWS = "USB\\"
"""Likewise: they are what Windows calls instance ids."""


def remedy(error: NotGiven, device: UsbDevice) -> str:
    """
    What can be done against a refusal, C{""} if nothing is known: it goes behind the error.

    @param device: as it was listed.
    """
    path = device.path or ""
    if error.status == OpStatus.NODEV:
        return f"; there: {binding(device.busId, path)}"
    if not path.startswith(WINDOWS):
        return ""
    force = f"usbipd bind --force --busid {device.busId}"
    if error.status == OpStatus.DEV_BUSY:
        return (
            "; usbipd list there says whether a client does; else it is a program of Windows, "
            f"and this takes it away from it, as administrator: {force}"
        )
    if error.status in (OpStatus.NA, OpStatus.DEV_ERR):
        return f"; Windows may not let go of it: there, as administrator: {force}"
    return "; there: usbipd list"


def unlisted(servers: Sequence[Server], busId: str | None) -> str:
    """
    Why a device may be missing in the lists of some, C{""} if there are none: it goes behind
    the error.

    @param busId: of that device, where it is known.
    """
    if not servers:
        return ""
    names = ", ".join(map(str, servers))
    return f"; a stock usbipd ({names}) lists only what is bound: there, {binding(busId)}"


def binding(busId: str | None, path: str = "") -> str:
    """
    How a device is bound at its server.

    @param path: of it, as far as it is known: that of Linux and that of Windows are told apart.
    """
    name = busId or "BUSID"
    linux = f"sudo usbip bind -b {name}"
    windows = f"as administrator, usbipd bind --busid {name}"
    if path.startswith(LINUX):
        return linux
    if path.startswith(WINDOWS):
        return windows
    return f"{linux}; on Windows, {windows}"
