"""
Reads devices from sysfs.

A device is read in two steps. L{Scanner.read} reads only attributes that the kernel returns
without taking the device's lock, so that a device that hangs in a driver delays no other. The
strings (C{serial}, C{manufacturer}, C{product}) need the lock; L{Scanner.readStrings} reads them
once for each time a device is plugged in.
"""

from __future__ import annotations

import errno
import posixpath
import time
from collections.abc import Callable, Iterable, Set

import msgspec
from twisted.logger import Logger

from usbip_server.kernel.importers import Importers
from usbip_server.kernel.system import ISystem
from usbip_server.kernel.usbdescriptors import DEVICE, interfacesOf
from usbip_server.kernel.usbids import UsbIds
from usbip_server.model.device import HUB_CLASS, DeviceState, Holder, PlugId, UsbDevice, isBusId
from usbip_server.model.escapes import escape, readable

DEVICES = "bus/usb/devices"

USBIP_HOST = "usbip-host"

STATE_OF = {1: DeviceState.BOUND, 2: DeviceState.IN_USE, 3: DeviceState.ERROR}
"""C{usbip_status}: C{SDEV_ST_AVAILABLE}, C{_USED}, C{_ERROR}
(C{include/uapi/linux/usbip.h})."""

GONE = {errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTDIR}
"""The errno values of reading an attribute of a device that was unplugged."""


class Strings(msgspec.Struct, frozen=True):
    """
    The string descriptors of a device, escaped (L{usbip_server.model.escapes}); C{None} for one
    that it does not have.
    """

    serial: str | None = None
    manufacturer: str | None = None
    product: str | None = None


class Attributes(msgspec.Struct, frozen=True, kw_only=True):
    """
    The attributes of a device that can be read without its lock. The fields are those of
    L{UsbDevice}, and C{status}: C{usbip_status}, C{None} unless the device is bound.
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
    def plugId(self) -> PlugId:
        """Identifies the device until it is unplugged."""
        return PlugId(self.busId, self.deviceNumber)


_Known = tuple[Attributes, Strings, str | None, Holder | None]
"""What an L{UsbDevice} is made from; the third item is C{UsbDevice.trouble}."""


class Scanner:
    """
    Reads devices. Its methods block: call them in a thread, one at a time.

    @ivar importers: which client has imported which device.
    """

    _log = Logger()

    def __init__(
        self,
        system: ISystem,
        names: UsbIds,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        @param now: returns the time, in seconds since the epoch.
        @param monotonic: returns a time for measuring durations, in seconds.
        """
        self._system = system
        self._names = names
        self.importers = Importers(system, now, monotonic)
        self._seen: dict[str, tuple[int, Attributes | None]] = {}
        self._made: dict[str, tuple[_Known, UsbDevice]] = {}

    def busIds(self) -> list[str]:
        """
        The bus ids of all devices, including hubs.

        @raise OSError: the kernel has no USB.
        """
        return [name for name in self._system.list(DEVICES) if isBusId(name)]

    def read(self, busIds: Iterable[str]) -> list[Attributes]:
        """
        Read the attributes of devices, and update C{importers}.

        @return: one entry for each device; none for hubs, for devices imported from another
            server, and for bus ids without a device.
        """
        attributes = [each for busId in busIds if (each := self._attributesOf(busId)) is not None]
        self.importers.refresh(self._inUse)
        return attributes

    def readStrings(
        self, devices: Iterable[Attributes], onRead: Callable[[PlugId, Strings], None]
    ) -> None:
        """
        Read the strings of several devices, one device after the other.

        @param onRead: called, in this thread, after each device.
        """
        for device in devices:
            serial, manufacturer, product = (
                self._text(device.busId, name) for name in ("serial", "manufacturer", "product")
            )
            strings = Strings(
                escape(serial) or None, readable(manufacturer) or None, readable(product) or None
            )
            onRead(device.plugId, strings)

    def device(self, attributes: Attributes, strings: Strings, trouble: str | None) -> UsbDevice:
        """
        Make the L{UsbDevice}. Returns the same object as the last call if nothing has changed.

        @param trouble: the reason why the device is to be shown as C{error}; C{None}: there is
            none.
        """
        known = attributes, strings, trouble, self.importers.holder(attributes.plugId)
        made = self._made.get(attributes.busId)
        if made is None or made[0] != known:
            made = self._made[attributes.busId] = known, self._device(*known)
        return made[1]

    def _device(
        self, attributes: Attributes, strings: Strings, trouble: str | None, holder: Holder | None
    ) -> UsbDevice:
        state = DeviceState.FREE
        if attributes.driver == USBIP_HOST:
            state = STATE_OF.get(attributes.status or 0, DeviceState.BOUND)
        if state is DeviceState.IN_USE and holder is None:
            state = DeviceState.BOUND  # the session has ended in the meantime
        if state is DeviceState.ERROR and trouble is None:
            trouble = "usbip-host could not reset the device: attach it again"
        if trouble is not None:
            state = DeviceState.ERROR
        return UsbDevice(
            busId=attributes.busId,
            vendorId=attributes.vendorId,
            productId=attributes.productId,
            description=self._names.describe(
                attributes.vendorId, attributes.productId, strings.manufacturer, strings.product
            ),
            serial=strings.serial,
            deviceNumber=attributes.deviceNumber,
            manufacturer=strings.manufacturer,
            product=strings.product,
            speed=attributes.speed or None,
            deviceClass=attributes.deviceClass,
            subclass=attributes.subclass,
            protocol=attributes.protocol,
            release=attributes.release,
            configurations=attributes.configurations,
            path=attributes.path,
            interfaces=attributes.interfaces,
            classes=attributes.classes,
            driver=attributes.driver,
            state=state,
            holder=holder if state is DeviceState.IN_USE else None,
            trouble=trouble,
        )

    def _inUse(self) -> Set[PlugId]:
        """
        The devices in state C{in_use}, of all devices, whichever are being read now.
        """
        return {
            attributes.plugId
            for _, attributes in self._seen.values()
            if attributes is not None
            and attributes.driver == USBIP_HOST
            and STATE_OF.get(statusOf(self._system, attributes.busId) or 0) is DeviceState.IN_USE
        }

    def _attributesOf(self, busId: str) -> Attributes | None:
        """
        Only the device number, the driver and the status are read each time: everything else
        changes only with the device number. While a device is being reset, as at the end of a
        session, its number is 0 (C{hub_port_reset}, C{drivers/usb/core/hub.c}).
        """
        try:
            number = int(self._read(busId, "devnum"))
            if number == 0 and busId in self._seen:
                number = self._seen[busId][0]
            if busId not in self._seen or self._seen[busId][0] != number:
                self._seen[busId] = number, self._firstAttributes(busId, number)
            attributes = self._seen[busId][1]
            if attributes is None:
                return None
            driver = driverOf(self._system, busId)
            status = statusOf(self._system, busId) if driver == USBIP_HOST else None
            if (driver, status) != (attributes.driver, attributes.status):
                attributes = msgspec.structs.replace(attributes, driver=driver, status=status)
                self._seen[busId] = number, attributes
            return attributes
        except (OSError, ValueError) as error:
            self._seen.pop(busId, None)
            if getattr(error, "errno", None) not in GONE:
                self._log.warn("cannot read device {busId}: {error}", busId=busId, error=error)
            return None

    def _firstAttributes(self, busId: str, number: int) -> Attributes | None:
        """
        @return: C{None} for a hub and for a device imported from another server.
        """
        descriptors = self._read(busId, "descriptors")
        if len(descriptors) < 18 or descriptors[1] != DEVICE:
            return None
        deviceClass, subclass, protocol = (f"{byte:02x}" for byte in descriptors[4:7])
        if deviceClass == HUB_CLASS or isImported(self._system, busId):
            return None
        interfaces = interfacesOf(descriptors)
        return Attributes(
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

    def _text(self, busId: str, name: str) -> str:
        try:
            raw = self._read(busId, name)
        except OSError:
            return ""  # the device has no such string, or was unplugged
        return raw.decode("utf-8", "surrogateescape").removesuffix("\n").strip(" ")


def isImported(system: ISystem, busId: str) -> bool:
    """
    Whether this machine has imported the device from another server. Nothing in the kernel
    prevents such a device from being exported again.
    """
    return "vhci_hcd" in pathOf(system, busId)


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
