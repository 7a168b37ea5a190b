"""
What it means when C{usbip-host} and the driver core refuse, and what to do about it.
"""

from __future__ import annotations

import errno

from usbip_server.device import UsbDevice, busOrder
from usbip_server.errors import OperationFailed

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
    This process may not write what would have to be written.
    """


class TableFull(OperationFailed):
    """
    There is no place in the driver's table; the device was not touched, or has been given
    back.
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


def meaning(error: OSError, busId: str, verb: str) -> str:
    """
    What an errno of their attributes means for a device.

    @param verb: what was to be done: C{"attach"}, C{"detach"}, C{"kick"}.
    """
    number = error.errno or 0
    text = _MEANINGS.get(number, "the kernel refused: {error}")
    if verb == "kick":
        text = _OF_A_KICK.get(number, text)
    return text.format(error=error, busId=busId)


_NOT_ALLOWED = (
    "no permission to write below /sys/bus/usb/drivers. Run the daemon as root, or let its "
    "user write usb/unbind, usb/bind and usbip-host/{{match_busid,bind,unbind,rebind}} there"
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

_NO_KICK = (
    "no permission to write /sys/bus/usb/devices/{busId}/usbip_sockfd. Run the daemon as root; "
    "to let another user do it is of no use, as the kernel makes that file anew with each "
    "attach. A detach and an attach end the session too"
)

_OF_A_KICK = {errno.EACCES: _NO_KICK, errno.EPERM: _NO_KICK}
