"""
What it means when C{usbip-host} and the driver core refuse, and what to do about it.
"""

from __future__ import annotations

import errno

EMPTY_TABLE = (
    "A reboot empties the table; so does `modprobe -r usbip-host && modprobe usbip-host`, but "
    "only if nothing was unplugged while it was attached, else the kernel may crash"
)
"""Unloading the module follows the same freed pointers as C{rebind} (see
L{usbip_server.kernel.usbip_host})."""


def meaning(error: OSError, busId: str) -> str:
    """
    What an errno of their attributes means for a device.
    """
    text = _MEANINGS.get(error.errno or 0, "the kernel refused: {error}")
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
        "ProtectKernelTunables= set ReadWritePaths=/sys/bus/usb/drivers"
    ),
    errno.ENODEV: (
        "the kernel says there is no such device. If {busId} is still plugged in, another "
        f"program has left usbip-host's table entry for it unusable. {EMPTY_TABLE}"
    ),
    errno.EBUSY: "another driver took the device in the same moment: ask again",
    errno.ENOENT: "the usbip-host driver was unloaded: modprobe usbip-host",
}
