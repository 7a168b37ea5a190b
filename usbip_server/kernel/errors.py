"""
Translates errno values of writes to C{usbip-host} and the driver core into errors with advice.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from usbip_server import DOCUMENTS
from usbip_server.kernel.attributes import DEVICES, GONE
from usbip_server.kernel.system import ISystem
from usbip_server.model.device import UsbDevice, busOrder
from usbip_server.model.errors import OperationFailed

SLOTS = 16
"""C{MAX_BUSID} in C{drivers/usb/usbip/stub.h}; nothing can change it."""

EMPTY_TABLE = (
    "A reboot empties the table; so does `modprobe -r usbip-host && modprobe usbip-host`, but "
    "only if nothing was unplugged while it was attached, else the kernel may crash"
)
"""Unloading the module follows the same freed pointers as C{rebind} (see
L{usbip_server.kernel.usbip_host})."""

NOT_PERMITTED = {errno.EACCES, errno.EPERM, errno.EROFS}


class NotPermitted(OperationFailed):
    """
    This process has no permission to write to an attribute.
    """


class TableFull(OperationFailed):
    """
    The driver's table has no room for the device, which was not touched, or was given back.
    """

    def __init__(self, device: UsbDevice, names: list[str]) -> None:
        listed = ", ".join(sorted(names, key=_order))
        super().__init__(
            device,
            f"all {SLOTS} places of usbip-host are taken ({listed}), and the kernel has no "
            f"more. A place stays taken when its device is detached or unplugged. {EMPTY_TABLE}",
        )


def _order(name: str) -> tuple[int, ...]:
    try:
        return busOrder(name)
    except ValueError:
        return (0,)


def requireSame(system: ISystem, device: UsbDevice) -> None:
    """
    @raise OperationFailed: the device is gone, or another one is at its bus id.
    """
    try:
        number = int(system.read(f"{DEVICES}/{device.busId}/devnum"))
    except (OSError, ValueError):
        raise OperationFailed(device, f"{device} is gone: it was unplugged") from None
    if number not in (device.deviceNumber, 0):  # 0 while the kernel resets it
        raise OperationFailed(
            device, f"{device.busId} was plugged in again a moment ago: ask again"
        )


@contextlib.contextmanager
def explained(system: ISystem, verb: str, device: UsbDevice) -> Iterator[None]:
    """
    A context in which an C{OSError} becomes an L{OperationFailed}.

    @param verb: the operation: C{"attach"}, C{"detach"}, C{"kick"}, C{"export"}.
    """
    try:
        yield
    except OSError as error:
        if error.errno in GONE:
            requireSame(system, device)  # the device may have been unplugged
        kind = NotPermitted if error.errno in NOT_PERMITTED else OperationFailed
        because = meaning(error, device.busId, verb)
        raise kind(device, f"cannot {verb} {device}: {because}") from error


def meaning(error: OSError, busId: str, verb: str) -> str:
    """
    The meaning of an errno for a device, and what to do.

    @param verb: as in L{explained}.
    """
    number = error.errno or 0
    text = _MEANINGS.get(number, "the kernel refused: {error}")
    if number in (errno.EACCES, errno.EPERM):
        text = _NOT_ALLOWED_TO.get(verb, text)
    return text.format(error=error, busId=busId)


_NOT_ALLOWED = (
    "no permission to write below /sys/bus/usb/drivers ({error.filename}). The packaged systemd "
    f"unit permits its user what it needs there ({DOCUMENTS}/howto/server_setup.md), when it is "
    "started: "
    "systemctl restart usbipshare. Or run the daemon as root"
)

_MEANINGS = {
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EROFS: (
        "/sys is read-only here. In a container mount it writable; in a systemd unit with "
        "ProtectKernelTunables= set ReadWritePaths=/sys/bus/usb/drivers /sys/devices"
    ),
    errno.ENODEV: (
        "the kernel says there is no such device. If {busId} is still plugged in, another "
        f"program has left usbip-host's table entry for it unusable. {EMPTY_TABLE}"
    ),
    errno.EBUSY: "another driver took the device in the same moment: ask again",
    errno.ENOENT: "the usbip-host driver was unloaded: modprobe usbip-host",
}

_NOT_ALLOWED_HERE = (
    "no permission to write /sys/bus/usb/devices/{busId}/usbip_sockfd, which the kernel creates "
    "again with each attach. Install the udev rule that comes with the systemd unit "
    f"({DOCUMENTS}/howto/server_setup.md), or run the daemon as root. "
)

_NOT_ALLOWED_TO = {
    "kick": _NOT_ALLOWED_HERE + "A detach and an attach end the session too",
    "export": _NOT_ALLOWED_HERE + "Or say `export: off`, and run usbipd as root",
}
