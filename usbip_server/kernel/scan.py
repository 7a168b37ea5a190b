"""
Reads devices from sysfs.

A device is read in two steps. L{Scanner.read} reads only attributes that the kernel returns
without taking the device's lock, so that a device that hangs in a driver delays no other. The
strings (C{serial}, C{manufacturer}, C{product}) need the lock; L{Scanner.readStrings} reads them
once for each time a device is plugged in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Set
from typing import NamedTuple

import msgspec
from twisted.logger import Logger

from usbip_server.kernel.attributes import (
    DEVICES,
    GONE,
    NOT_AUTHORIZED,
    STATE_OF,
    USBIP_HOST,
    driverOf,
    isAuthorized,
    isImported,
    pathOf,
    statusOf,
)
from usbip_server.kernel.importers import Importers
from usbip_server.kernel.portpath import portPath
from usbip_server.kernel.system import ISystem
from usbip_server.kernel.usbdescriptors import DEVICE, Interfaces, interfacesOf
from usbip_server.kernel.usbids import UsbIds
from usbip_server.model.device import (
    HUB_CLASS,
    OWN_STRINGS,
    DeviceState,
    Holder,
    PlugId,
    UsbDevice,
    isBusId,
)
from usbip_server.model.escapes import escape, readable

IS_HUB = "is a hub, and hubs are not shared"

IS_IMPORTED = "was imported from another server: import it from there"


class Strings(msgspec.Struct, frozen=True):
    """
    The string descriptors of a device, escaped (L{usbip_server.model.escapes}); C{None} for one
    that it does not have.

    @ivar areRead: C{False}: they could not be read, and may have any value.
    """

    serial: str | None = None
    manufacturer: str | None = None
    product: str | None = None
    areRead: bool = True


UNREAD = Strings(areRead=False)


class Attributes(msgspec.Struct, frozen=True, kw_only=True):
    """
    The attributes of a device that can be read without its lock. The fields are those of
    L{UsbDevice}, and these:

    @ivar status: C{usbip_status}; C{None} unless the device is bound.
    @ivar isAuthorized: whether the kernel lets drivers and programs use the device.
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
    path: str | None
    sysfsPath: str
    interfaces: tuple[str, ...]
    classes: tuple[str, ...]
    speed: str
    driver: str | None = None
    status: int | None = None
    isAuthorized: bool = True

    @property
    def plugId(self) -> PlugId:
        """Identifies the device until it is unplugged."""
        return PlugId(self.busId, self.deviceNumber)


class _Seen(NamedTuple):
    """
    A device, as it was read last.

    @ivar attributes: C{None} for a hub and for a device imported from another server.
    @ivar excluded: such a device.
    """

    number: int
    attributes: Attributes | None = None
    interfaces: Interfaces | None = None
    excluded: UsbDevice | None = None


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
        self._seen: dict[str, _Seen] = {}
        self._unreadable: dict[str, str] = {}  # the errors that were logged
        self._made: dict[str, tuple[_Known, UsbDevice]] = {}

    def busIds(self) -> list[str]:
        """
        The bus ids of all devices, including hubs.

        @raise OSError: the kernel has no USB.
        """
        busIds = [name for name in self._system.list(DEVICES) if isBusId(name)]
        for busId in self._unreadable.keys() - set(busIds):
            del self._unreadable[busId]
        return busIds

    @property
    def excluded(self) -> dict[str, UsbDevice]:
        """The hubs, and the devices imported from other servers, with the reason as C{trouble}."""
        seen = self._seen.items()
        return {busId: each.excluded for busId, each in seen if each.excluded is not None}

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
            try:
                serial, manufacturer, product = (
                    self._text(device.busId, name) for name in ("serial", "manufacturer", "product")
                )
            except OSError:
                onRead(device.plugId, UNREAD)
                continue
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
        if not attributes.isAuthorized and trouble is None:
            trouble = NOT_AUTHORIZED.format(busId=attributes.busId)
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
            unknown=(
                *(() if strings.areRead else OWN_STRINGS),
                *(("path",) if attributes.path is None else ()),
            ),
            manufacturer=strings.manufacturer,
            product=strings.product,
            speed=attributes.speed or None,
            deviceClass=attributes.deviceClass,
            subclass=attributes.subclass,
            protocol=attributes.protocol,
            release=attributes.release,
            configurations=attributes.configurations,
            path=attributes.path,
            sysfsPath=attributes.sysfsPath,
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
            for _, attributes, *_ in self._seen.values()
            if attributes is not None
            and attributes.driver == USBIP_HOST
            and STATE_OF.get(statusOf(self._system, attributes.busId) or 0) is DeviceState.IN_USE
        }

    def _attributesOf(self, busId: str) -> Attributes | None:
        """
        Only the device number, the driver, the status, the authorization and, if there are
        several, the active configuration are read each time: everything else changes only with
        the device number. While a device is being reset, as at the end of a session, its number
        is 0 (C{hub_port_reset}, C{drivers/usb/core/hub.c}).
        """
        try:
            number = int(self._read(busId, "devnum"))
            if number == 0 and busId in self._seen:
                number = self._seen[busId].number
            if busId not in self._seen or self._seen[busId].number != number:
                self._seen[busId] = self._first(busId, number)
            seen = self._seen[busId]
            if seen.attributes is None or seen.interfaces is None:
                return None
            driver = driverOf(self._system, busId)
            attributes = msgspec.structs.replace(
                seen.attributes,
                interfaces=self._active(busId, seen.attributes.interfaces, seen.interfaces),
                driver=driver,
                status=statusOf(self._system, busId) if driver == USBIP_HOST else None,
                isAuthorized=isAuthorized(self._system, busId),
            )
            if attributes != seen.attributes:
                self._seen[busId] = seen._replace(attributes=attributes)
            self._unreadable.pop(busId, None)
            return self._seen[busId].attributes
        except (OSError, ValueError) as error:
            self._seen.pop(busId, None)
            if getattr(error, "errno", None) in GONE:
                self._unreadable.pop(busId, None)
            elif self._unreadable.get(busId) != str(error):
                self._unreadable[busId] = str(error)
                self._log.warn(
                    "cannot read device {busId}, which is not shared: {error}",
                    busId=busId,
                    error=str(error),
                )
            return None

    def _active(
        self, busId: str, before: tuple[str, ...], interfaces: Interfaces
    ) -> tuple[str, ...]:
        """
        The interfaces of the active configuration, which is in the names of their directories:
        C{1-1:2.0} (C{bConfigurationValue} needs the device's lock).

        @param before: as they were read last. Returned if no configuration is active, as while the
            device is bound and no client has imported it.
        """
        if len(interfaces.of) < 2:
            return before
        for name in self._system.list(f"{DEVICES}/{busId}"):
            value = name.removeprefix(f"{busId}:").partition(".")[0]
            if value != name and value.isdecimal():
                return interfaces.of.get(int(value), before)
        return before

    def _first(self, busId: str, number: int) -> _Seen:
        descriptors = self._read(busId, "descriptors")
        if len(descriptors) < 18 or descriptors[1] != DEVICE:
            return _Seen(number)
        deviceClass, subclass, protocol = (f"{byte:02x}" for byte in descriptors[4:7])
        vendorId = f"{int.from_bytes(descriptors[8:10], 'little'):04x}"
        productId = f"{int.from_bytes(descriptors[10:12], 'little'):04x}"
        isHub = deviceClass == HUB_CLASS
        if isHub or isImported(self._system, busId):
            excluded = UsbDevice(
                busId=busId,
                vendorId=vendorId,
                productId=productId,
                description=self._names.describe(vendorId, productId, None, None),
                deviceNumber=number,
                deviceClass=deviceClass,
                trouble=IS_HUB if isHub else IS_IMPORTED,
                unknown=OWN_STRINGS,
            )
            return _Seen(number, excluded=excluded)
        interfaces = interfacesOf(descriptors)
        speed = self._read(busId, "speed").decode("ascii", "replace").strip()
        sysfsPath = pathOf(self._system, busId)
        attributes = Attributes(
            busId=busId,
            deviceNumber=number,
            vendorId=vendorId,
            productId=productId,
            deviceClass=deviceClass,
            subclass=subclass,
            protocol=protocol,
            release=int.from_bytes(descriptors[12:14], "little"),
            configurations=descriptors[17],
            path=portPath(self._system, busId, sysfsPath, speed),
            sysfsPath=sysfsPath,
            interfaces=next(iter(interfaces.of.values()), ()),
            classes=interfaces.classes,
            speed=speed,
        )
        return _Seen(number, attributes, interfaces)

    def _read(self, busId: str, name: str) -> bytes:
        return self._system.read(f"{DEVICES}/{busId}/{name}")

    def _text(self, busId: str, name: str) -> str:
        try:
            raw = self._read(busId, name)
        except OSError as error:
            if error.errno not in GONE:
                raise
            return ""  # the device has no such string, or was unplugged
        return raw.decode("utf-8", "surrogateescape").removesuffix("\n").strip(" ")
