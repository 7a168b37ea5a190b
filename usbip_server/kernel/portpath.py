"""
The path of a physical USB port, in the form of udev's C{ID_PATH}
(systemd, C{src/udev/udev-builtin-path_id.c}): C{pci-0000:00:14.0-usb-0:2.1}.

The numbers of buses change from boot to boot, and a port has two bus ids, one on the bus of USB 2
and one on the bus of USB 3. The path consists of what does not change: the controller and the
numbers of the ports on the way. If these differ between the two buses, those of USB 2 count (udev
has two C{ID_PATH}s for such a port).
"""

from __future__ import annotations

import re

from usbip_server.kernel.system import ISystem

_ROOT_HUB = re.compile(r"usb[0-9]+", re.ASCII)

_PORT = re.compile(r"(?:usb[0-9]+|[0-9]+-(?P<hub>[0-9.]+))-port(?P<number>[0-9]+)", re.ASCII)
"""The name of a port in sysfs: C{usb4-port2}, C{4-2-port1}."""

SUPER_SPEEDS = ("5000", "10000", "20000")
"""The speeds of devices on buses of USB 3, in Mbit/s (C{drivers/usb/core/sysfs.c})."""

CONTROLLERS = ("pci", "platform")
"""The subsystems of controllers: udev's C{path_id} makes a path only below one of these."""


def portPath(system: ISystem, busId: str, sysfsPath: str, speed: str) -> str | None:
    """
    The path of the port that a device is plugged into; C{None} if it is not known.

    @param sysfsPath: C{"/sys/devices/pci0000:00/0000:00:14.0/usb1/1-2/1-2.1"}.
    @param speed: in Mbit/s.
    """
    names = sysfsPath.removeprefix("/sys/").split("/")
    rootHub = next((at for at, name in enumerate(names) if _ROOT_HUB.fullmatch(name)), None)
    if rootHub is None:
        return None
    controller = _controller(system, names[:rootHub])
    return controller and f"{controller}-usb-0:{_ports(system, busId, speed)}"


def _controller(system: ISystem, names: list[str]) -> str | None:
    """
    @param names: the directories that lead to the controller, from C{devices} on.
    """
    parts: list[str] = []
    while names:
        subsystem = _subsystem(system, names)
        if subsystem not in CONTROLLERS:
            names = names[:-1]
            continue
        parts.insert(0, f"{subsystem}-{names[-1]}")
        while names and _subsystem(system, names) == subsystem:
            names = names[:-1]
    return "-".join(parts) or None


def _subsystem(system: ISystem, names: list[str]) -> str | None:
    try:
        return system.readlink("/".join((*names, "subsystem"))).rpartition("/")[2]
    except OSError:
        return None


def _ports(system: ISystem, busId: str, speed: str) -> str:
    """
    The numbers of the ports that lead to a device: C{"2.1"}; those of USB 2 for a device on a bus
    of USB 3, if the kernel has the ports as peers (C{drivers/usb/core/port.c}).
    """
    own = busId.partition("-")[2]
    if speed not in SUPER_SPEEDS:
        return own
    try:
        link = system.readlink(f"bus/usb/devices/{busId}/port/peer")
    except OSError:
        return own
    peer = _PORT.fullmatch(link.rpartition("/")[2])
    if peer is None:
        return own
    return f"{peer['hub']}.{peer['number']}" if peer["hub"] else peer["number"]
