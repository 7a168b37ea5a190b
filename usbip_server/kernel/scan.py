"""
Reading devices from sysfs.

The first look takes only attributes that the kernel reads without the device's lock, so
that a device that hangs in a driver holds nobody up. The strings (C{serial},
C{manufacturer}, C{product}) need the lock: they are read apart, once for each stay of a
device.
"""

from __future__ import annotations

import errno
import posixpath
import time
from collections.abc import Callable, Hashable, Iterable, Set

import msgspec
from twisted.logger import Logger

from usbip_server.kernel.importers import Sessions
from usbip_server.kernel.system import ISystem
from usbip_server.kernel.usbdescriptors import DEVICE, interfacesOf
from usbip_server.kernel.usbids import UsbIds
from usbip_server.model.device import HUB_CLASS, DeviceState, Holder, UsbDevice, isBusId

DEVICES = "bus/usb/devices"

USBIP_HOST = "usbip-host"

STATE_OF = {1: DeviceState.BOUND, 2: DeviceState.IN_USE, 3: DeviceState.ERROR}
"""C{usbip_status}: C{SDEV_ST_AVAILABLE}, C{_USED}, C{_ERROR}
(C{include/uapi/linux/usbip.h})."""

GONE = {errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTDIR}
"""What reading an attribute fails with when the device is not there any more."""


class Strings(msgspec.Struct, frozen=True):
    """
    What a device says of itself.
    """

    serial: str | None = None
    manufacturer: str | None = None
    product: str | None = None


class Glance(msgspec.Struct, frozen=True, kw_only=True):
    """
    What the first look shows. Fields as in L{UsbDevice}.
    """

    busId: str
    deviceNumber: int
    vendorId: str
    productId: str
    deviceClass: str
    subclass: str
    protocol: str
    release: int
    configurations: int
    path: str
    interfaces: tuple[str, ...]
    classes: tuple[str, ...]
    speed: str
    driver: str | None
    status: int | None

    @property
    def stay(self) -> tuple[str, int]:
        """Names this device while it stays plugged in."""
        return self.busId, self.deviceNumber


_Known = tuple[Glance, Strings, str | None, Holder | None]
"""What a device is put together from; the third is what is the matter with it."""


class Scanner:
    """
    Looks at devices. Its methods block: call them in a thread, one at a time.

    @ivar sessions: who has what.
    """

    _log = Logger()

    def __init__(
        self, system: ISystem, names: UsbIds, now: Callable[[], float] = time.time
    ) -> None:
        """
        @param now: the time, in seconds since the epoch.
        """
        self._system = system
        self._names = names
        self.sessions = Sessions(system, now)
        self._seen: dict[str, tuple[int, Glance | None]] = {}
        self._made: dict[str, tuple[_Known, UsbDevice]] = {}

    def busIds(self) -> list[str]:
        """
        What is plugged in, hubs too.

        @raise OSError: there is no USB on this machine.
        """
        return [name for name in self._system.list(DEVICES) if isBusId(name)]

    def glances(self, busIds: Iterable[str]) -> list[Glance]:
        """
        The first look. Hubs, what has been imported from another server, and what is gone
        are left out. Who has what is looked at too.
        """
        found = [glance for busId in busIds if (glance := self._glance(busId)) is not None]
        self.sessions.look(self._inUse)
        return found

    def readStrings(
        self, glances: Iterable[Glance], note: Callable[[Glance, Strings], None]
    ) -> None:
        """
        Read the strings of one device after the other.

        @param note: called, in this thread, with each that has been read.
        """
        for glance in glances:
            texts = (
                self._text(glance.busId, name) for name in ("serial", "manufacturer", "product")
            )
            note(glance, Strings(*texts))

    def device(self, glance: Glance, strings: Strings, trouble: str | None) -> UsbDevice:
        """
        Put together what is known. The same device as the last time, if nothing has
        changed.

        @param trouble: what is the matter with it, if something is.
        """
        known = glance, strings, trouble, self.sessions.holder(glance.stay)
        made = self._made.get(glance.busId)
        if made is None or made[0] != known:
            made = self._made[glance.busId] = known, self._device(*known)
        return made[1]

    def _device(
        self, glance: Glance, strings: Strings, trouble: str | None, holder: Holder | None
    ) -> UsbDevice:
        state = DeviceState.FREE
        if glance.driver == USBIP_HOST:
            state = STATE_OF.get(glance.status or 0, DeviceState.BOUND)
        if state is DeviceState.IN_USE and holder is None:
            state = DeviceState.BOUND  # not any more
        if state is DeviceState.ERROR and trouble is None:
            trouble = "usbip-host could not reset the device: attach it again"
        if trouble is not None:
            state = DeviceState.ERROR
        return UsbDevice(
            busId=glance.busId,
            vendorId=glance.vendorId,
            productId=glance.productId,
            description=self._names.describe(
                glance.vendorId, glance.productId, strings.manufacturer, strings.product
            ),
            serial=strings.serial,
            deviceNumber=glance.deviceNumber,
            manufacturer=strings.manufacturer,
            product=strings.product,
            speed=glance.speed or None,
            deviceClass=glance.deviceClass,
            subclass=glance.subclass,
            protocol=glance.protocol,
            release=glance.release,
            configurations=glance.configurations,
            path=glance.path,
            interfaces=glance.interfaces,
            classes=glance.classes,
            driver=glance.driver,
            state=state,
            holder=holder if state is DeviceState.IN_USE else None,
            trouble=trouble,
        )

    def _inUse(self) -> Set[Hashable]:
        """
        Of all devices, also of those that are not to be looked at now.
        """
        return {
            glance.stay
            for _, glance in self._seen.values()
            if glance is not None
            and glance.driver == USBIP_HOST
            and STATE_OF.get(statusOf(self._system, glance.busId) or 0) is DeviceState.IN_USE
        }

    def _glance(self, busId: str) -> Glance | None:
        """
        Most of it stays the same as long as the device does, and a device that is plugged
        in anew has another number. One that is being reset, as at the end of a session, has
        none for a moment (C{hub_port_reset}, C{drivers/usb/core/hub.c}).
        """
        try:
            number = int(self._read(busId, "devnum"))
            if number == 0 and busId in self._seen:
                number = self._seen[busId][0]
            if busId not in self._seen or self._seen[busId][0] != number:
                self._seen[busId] = number, self._firstGlance(busId, number)
            glance = self._seen[busId][1]
            if glance is None:
                return None
            driver = driverOf(self._system, busId)
            status = statusOf(self._system, busId) if driver == USBIP_HOST else None
            if (driver, status) != (glance.driver, glance.status):
                glance = msgspec.structs.replace(glance, driver=driver, status=status)
                self._seen[busId] = number, glance
            return glance
        except (OSError, ValueError) as error:
            self._seen.pop(busId, None)
            if getattr(error, "errno", None) not in GONE:
                self._log.warn("cannot read device {busId}: {error}", busId=busId, error=error)
            return None

    def _firstGlance(self, busId: str, number: int) -> Glance | None:
        """
        @return: C{None} for what is not to be listed: hubs, imported devices.
        """
        descriptors = self._read(busId, "descriptors")
        if len(descriptors) < 18 or descriptors[1] != DEVICE:
            return None
        deviceClass, subclass, protocol = (f"{byte:02x}" for byte in descriptors[4:7])
        if deviceClass == HUB_CLASS or isImported(self._system, busId):
            return None
        interfaces = interfacesOf(descriptors)
        return Glance(
            busId=busId,
            deviceNumber=number,
            vendorId=f"{int.from_bytes(descriptors[8:10], 'little'):04x}",
            productId=f"{int.from_bytes(descriptors[10:12], 'little'):04x}",
            deviceClass=deviceClass,
            subclass=subclass,
            protocol=protocol,
            release=int.from_bytes(descriptors[12:14], "little"),
            configurations=descriptors[17],
            path=pathOf(self._system, busId),
            interfaces=interfaces.first,
            classes=interfaces.classes,
            speed=self._read(busId, "speed").decode("ascii", "replace").strip(),
            driver=None,
            status=None,
        )

    def _read(self, busId: str, name: str) -> bytes:
        return self._system.read(f"{DEVICES}/{busId}/{name}")

    def _text(self, busId: str, name: str) -> str | None:
        try:
            raw = self._read(busId, name)
        except OSError:
            return None  # it has none, or is gone
        text = raw.decode("utf-8", "replace").strip()
        return "".join(char for char in text if char.isprintable()) or None


def isImported(system: ISystem, busId: str) -> bool:
    """
    Has this machine imported the device from another server? The kernel would let us
    export it again.
    """
    return "vhci_hcd" in pathOf(system, busId)


def pathOf(system: ISystem, busId: str) -> str:
    """
    Where a device is in sysfs: C{"/sys/devices/pci0000:00/0000:00:14.0/usb1/1-1"}.
    """
    path = f"/sys/{DEVICES}"
    try:
        return posixpath.normpath(f"{path}/{system.readlink(f'{DEVICES}/{busId}')}")
    except OSError as error:
        if error.errno == errno.EINVAL:  # a directory, in a made tree
            return f"{path}/{busId}"
        raise


def driverOf(system: ISystem, busId: str) -> str | None:
    """
    The name of the driver that has a device.
    """
    try:
        return system.readlink(f"{DEVICES}/{busId}/driver").rpartition("/")[2]
    except FileNotFoundError:
        return None


def statusOf(system: ISystem, busId: str) -> int | None:
    """
    A bound device's C{usbip_status}; C{None} where it has none (any more).
    """
    try:
        return int(system.read(f"{DEVICES}/{busId}/usbip_status"))
    except (OSError, ValueError):
        return None
