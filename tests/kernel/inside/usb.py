"""USB devices in the guest's sysfs."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path

from tests.kernel.inside.command import DEADLINE, waitUntil

DEVICES_FOLDER = Path("/sys/bus/usb/devices")
DRIVERS_FOLDER = Path("/sys/bus/usb/drivers")
VHCI_FOLDER = Path("/sys/devices/platform/vhci_hcd.0")

_USBDEVFS_RESET = 0x5514
"""C{_IO('U', 20)} (include/uapi/linux/usbdevice_fs.h)."""

_VHCI_FREE, _VHCI_NOT_ASSIGNED, _VHCI_USED = 4, 5, 6


def attribute(busId: str, name: str) -> str | None:
    """An attribute of a device, stripped; C{None} if there is no such file."""
    try:
        return (DEVICES_FOLDER / busId / name).read_text().strip()
    except OSError:
        return None


def vidPid(busId: str) -> str | None:
    """C{0403:6001}"""
    vendor, product = attribute(busId, "idVendor"), attribute(busId, "idProduct")
    return None if vendor is None or product is None else f"{vendor}:{product}"


def driverOf(busId: str) -> str | None:
    """C{usb}, C{usbip-host}, or none. Also for an interface, C{1-1:1.0}."""
    try:
        return (DEVICES_FOLDER / busId / "driver").readlink().name
    except OSError:
        return None


def _below(busId: str, pattern: str) -> list[Path]:
    """What a device's folder holds; nothing if it changes while we look: drivers come and go."""
    try:
        return list((DEVICES_FOLDER / busId).glob(pattern))
    except OSError:
        return []


def blockDevice(busId: str) -> str | None:
    """C{/dev/sda} of a disk that can be read, else none."""
    for size in _below(busId, "*:*/host*/target*/*/block/*/size"):
        node = Path("/dev", size.parent.name)
        try:
            ready = int(size.read_text()) > 0 and node.exists()
        except OSError:
            continue
        if ready:
            return str(node)
    return None


def ttyDevice(busId: str) -> str | None:
    """C{/dev/ttyUSB0} or C{/dev/ttyACM0} of a serial converter, else none."""
    for pattern in ("*:*/ttyUSB*", "*:*/tty/tty*"):
        for found in _below(busId, pattern):
            return f"/dev/{found.name}"
    return None


def waitPresent(busId: str, driver: str = "usb", seconds: float = DEADLINE) -> None:
    """Wait until a device is present and bound to a driver.

    @param driver: C{usb}, or C{usbip-host}."""
    waitUntil(lambda: driverOf(busId) == driver, f"{busId} has driver {driver}", seconds)


def waitGone(busId: str, seconds: float = DEADLINE) -> None:
    """Wait until a device is not there."""
    waitUntil(lambda: not (DEVICES_FOLDER / busId).exists(), f"{busId} is gone", seconds)


def waitBlockDevice(busId: str, seconds: float = DEADLINE) -> str:
    """Wait until a disk can be read.

    @return: C{/dev/sda}"""
    return waitUntil(lambda: blockDevice(busId), f"{busId} is a disk", seconds) or ""


def readBlockDevice(node: str) -> bytes:
    """All of a disk."""
    return Path(node).read_bytes()


def reset(busId: str) -> None:
    """Reset a device, as the program C{usbreset} does."""
    bus, device = (int(str(attribute(busId, name))) for name in ("busnum", "devnum"))
    with open(f"/dev/bus/usb/{bus:03}/{device:03}", "wb", buffering=0) as node:
        fcntl.ioctl(node, _USBDEVFS_RESET, 0)


def forget(busId: str) -> None:
    """Free the entry of a present device in usbip-host's table: unloading the driver would follow
    the entry's pointer after the device is gone."""
    if busId not in matchBusIds():
        return
    if driverOf(busId) == "usbip-host":
        (DRIVERS_FOLDER / "usbip-host" / "unbind").write_text(busId)
    if driverOf(busId) is None:
        (DRIVERS_FOLDER / "usb" / "bind").write_text(busId)
    (DRIVERS_FOLDER / "usbip-host" / "rebind").write_text(busId)


def imports() -> dict[int, str]:
    """Which port of vhci has which device, by the bus id it has here: C{{0: "3-1"}}."""
    return {port: busId for _, port, state, busId in _vhciPorts() if state == _VHCI_USED}


def importsPending() -> bool:
    """Is there an import that has no local bus id yet?"""
    return any(state == _VHCI_NOT_ASSIGNED for _, _, state, _ in _vhciPorts())


def _vhciPorts() -> Iterator[tuple[str, int, int, str]]:
    """Hub, number, state and bus id of every port of vhci; none if it is not loaded."""
    for status in sorted(VHCI_FOLDER.glob("status*")):
        # hub port sta spd dev sockfd local_busid
        for line in status.read_text().splitlines()[1:]:
            hub, port, state, _, _, _, busId = line.split()
            yield hub, int(port), int(state), busId


def freePort(hub: str) -> int:
    """A free port of vhci.

    @param hub: C{hs} or C{ss}."""
    return next(port for kind, port, state, _ in _vhciPorts() if (kind, state) == (hub, _VHCI_FREE))


def waitImport(seconds: float = DEADLINE) -> tuple[int, str]:
    """Wait until the only import of the moment has a bus id here.

    @return: vhci's port, and the bus id."""
    (found,) = waitUntil(imports, "there is an import", seconds).items()
    waitPresent(found[1], seconds=seconds)
    return found


def waitNothingImported(seconds: float = DEADLINE) -> None:
    """Wait until no imported device is there, which is later than its port is free. D12: a device
    that is attached to a port before that may block the kernel's hub worker for good."""
    pattern = "vhci_hcd.*/usb*/[0-9]*-[0-9]*/devnum"
    platform = VHCI_FOLDER.parent
    waitUntil(lambda: not [*platform.glob(pattern)], "no imported device is there", seconds)


def usbipStatus(busId: str) -> int | None:
    """1 available, 2 used, 3 error; none for a device that is not bound to usbip-host."""
    status = attribute(busId, "usbip_status")
    return None if status is None else int(status)


def matchBusIds() -> list[str]:
    """What usbip-host's table of at most 16 names has."""
    try:
        return (DRIVERS_FOLDER / "usbip-host" / "match_busid").read_text().split()
    except OSError:
        return []
