"""
Devices declared in the configuration, in this process: no root, no hardware, no kernel
module.

Those of kind C{serial} and C{disk} are real USB devices to whoever imports them, over
USB/IP on a port of their own; those of kind C{inert} only stand in the list.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from twisted.logger import Logger
from zope.interface import implementer

from usbip_server.backends import virtualusb
from usbip_server.backends.options import convert
from usbip_server.device import DeviceState, Traffic, UsbDevice, isBusId
from usbip_server.errors import DeviceInUse, InvalidOption, OperationFailed, OperationTimedOut
from usbip_server.interfaces import IUsbBackend
from usbip_server.inventory import Inventory
from usbip_server.threads import BlockingCalls, StillOut, TookTooLong

Hex = Annotated[str, msgspec.Meta(pattern="^[0-9a-fA-F]{4}$")]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=126)]


class VirtualDevice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    One declared device.

    @ivar bus_id: where it is plugged in.
    @ivar kind: C{serial}, a serial port that echoes; C{disk}; or C{inert}.
    @ivar size: of a disk, in KiB.
    @ivar plugged: is it there from the start?
    """

    bus_id: str
    kind: Literal["serial", "disk", "inert"] = "inert"
    vendor_id: Hex = "1209"
    product_id: Hex = "0001"
    manufacturer: Text | None = None
    product: Text | None = None
    serial: Text | None = None
    size: Annotated[int, msgspec.Meta(ge=64, le=1024 * 1024)] = 1024
    plugged: bool = True


SAMPLES = (
    VirtualDevice(
        bus_id="1-1",
        kind="serial",
        product_id="2303",
        manufacturer="usbipshare",
        product="Echoing Serial Port",
        serial="ECHO1",
    ),
    VirtualDevice(
        bus_id="1-2",
        kind="disk",
        product_id="d15c",
        manufacturer="usbipshare",
        product="Small Disk",
        serial="DISK1",
    ),
)
"""What there is when none are declared."""


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    @ivar devices: the devices there are.
    @ivar interface: the address that they can be imported from.
    @ivar port: the TCP port for that; 0 for any that is free.
    """

    devices: tuple[VirtualDevice, ...] = SAMPLES
    interface: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 3240


def makeBackend(options: Mapping[str, Any], reactor: Any) -> VirtualBackend:
    """
    See L{usbip_server.interfaces.IUsbBackendMaker}.
    """
    chosen = convert(options, Options)
    _checkText(("interface",), chosen.interface)
    seen = set()
    for index, device in enumerate(chosen.devices):
        if not isBusId(device.bus_id):
            raise InvalidOption(
                ("devices", index, "bus_id"), f"{device.bus_id!r} is not a bus id, such as 1-1.4"
            )
        if device.bus_id in seen:
            raise InvalidOption(("devices", index, "bus_id"), "stands here twice")
        seen.add(device.bus_id)
        for key in ("manufacturer", "product", "serial"):
            _checkText(("devices", index, key), getattr(device, key) or "")
        if device.kind != "inert" and not virtualusb.installed:
            raise InvalidOption(
                ("devices", index, "kind"),
                f"{device.kind!r} needs an extra: pip install 'usbipshare[virtual]'",
            )
    return VirtualBackend(chosen, reactor)


def _checkText(path: Sequence[str | int], text: str) -> None:
    """
    @raise InvalidOption: YAML's escapes can make half of a surrogate pair, and no answer
        could ever contain that.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidOption(path, f"{text!r} is not text: {error.reason}") from None


@implementer(IUsbBackend)
class VirtualBackend:
    """
    Devices made of software.

    @ivar port: where they can be imported from, once started.
    """

    _log = Logger()

    def __init__(
        self, options: Options, reactor: Any, clock: Callable[[], float] = time.time
    ) -> None:
        """
        @param clock: tells the time, in seconds since the epoch.
        """
        self.inventory = Inventory()
        self.port: int | None = None
        self._options = options
        self._declared = {device.bus_id: device for device in options.devices}
        self._numbers = itertools.count(2)
        self._usb: dict[str, Any] = {}
        self._noDoor: str | None = None
        self._calls = BlockingCalls(reactor)
        self._door = virtualusb.Door(
            lambda busId: reactor.callFromThread(self._follow, busId), clock, self._mayImport
        )

    async def start(self) -> None:
        interface, port = self._options.interface, self._options.port
        if any(device.kind != "inert" for device in self._options.devices):
            try:
                self.port = self._door.open(interface, port)
            except OSError as error:
                self._noDoor = f"cannot serve USB/IP on {interface}:{port}: {error.strerror}"
                self._log.error("{reason}: devices cannot be attached", reason=self._noDoor)
            else:
                self._log.info(
                    "virtual devices can be imported from {interface}:{port}",
                    interface=interface,
                    port=self.port,
                )
        for device in self._options.devices:
            if device.plugged:
                self.plug(device.bus_id)

    async def stop(self) -> None:
        self._calls.stop()
        self._door.close()

    def plug(self, busId: str) -> None:
        """
        Plug a declared device in.
        """
        declared = self._declared[busId]
        number = next(self._numbers)
        device = UsbDevice(
            busId=busId,
            vendorId=declared.vendor_id.lower(),
            productId=declared.product_id.lower(),
            description=_describe(declared),
            serial=declared.serial,
            deviceNumber=number,
            manufacturer=declared.manufacturer,
            product=declared.product,
            speed="12",
            driver="usb",
        )
        if declared.kind != "inert":
            usb = self._usb[busId] = self._make(declared, device)
            device = msgspec.structs.replace(
                device,
                deviceClass=f"{usb.device_class:02x}",
                interfaces=tuple(bytes(three).hex("/") for three in usb.interface_triples()),
            )
        self._put(device)

    def unplug(self, busId: str) -> None:
        """
        Pull it out.
        """
        self._door.withdraw(busId)
        self._usb.pop(busId, None)
        self.inventory.replace([], {busId})

    async def bind(
        self, device: UsbDevice, deadline: float, evenMounted: bool = False
    ) -> UsbDevice:
        now = self._here(device)
        holder = self._door.holder(now.busId)
        if holder is not None:
            raise DeviceInUse(msgspec.structs.replace(now, state=DeviceState.IN_USE, holder=holder))
        if now.state is DeviceState.BOUND:
            return now
        if self._noDoor is not None:
            raise OperationFailed(now, f"cannot attach {now}: {self._noDoor}")
        if now.busId in self._usb:
            self._door.offer(now.busId, self._usb[now.busId])
        return self._put(msgspec.structs.replace(now, state=DeviceState.BOUND, driver="usbip-host"))

    async def unbind(self, device: UsbDevice, deadline: float) -> UsbDevice:
        now = self._here(device)
        self._door.withdraw(now.busId)
        return self._put(
            msgspec.structs.replace(
                now, state=DeviceState.FREE, driver="usb", holder=None, trouble=None
            )
        )

    async def release(self, device: UsbDevice, deadline: float) -> UsbDevice:
        now = self._here(device)
        if self._door.holder(now.busId) is None:
            return now
        work = partial(self._door.release, now.busId)
        try:
            await self._calls.call(now.busId, deadline, work)
        except (TookTooLong, StillOut):
            trouble = f"the session of its client has not ended within {deadline:g} s"
            current = self.inventory.same(now)
            if current is not None and self._door.holder(now.busId) is not None:
                # Until it does: see _follow.
                self._put(
                    msgspec.structs.replace(current, state=DeviceState.ERROR, trouble=trouble)
                )
            raise OperationTimedOut(self.inventory.same(now) or now, f"{now}: {trouble}") from None
        self._follow(now.busId)
        return self._here(device)

    def traffic(self, device: UsbDevice) -> Traffic | None:
        if device.holder is None:
            return None
        return self._door.traffic(device.busId, device.holder)

    def _mayImport(self, busId: str, address: str) -> bool:
        now = self.inventory.get(busId)
        return now is not None and self.inventory.gate(now, address)

    def _follow(self, busId: str) -> None:
        """
        Show who has a device now.
        """
        now = self.inventory.get(busId)
        if now is not None and now.state is not DeviceState.FREE:
            holder = self._door.holder(busId)
            state = DeviceState.BOUND if holder is None else DeviceState.IN_USE
            self._put(msgspec.structs.replace(now, state=state, holder=holder, trouble=None))

    def _make(self, declared: VirtualDevice, device: UsbDevice) -> Any:
        usb = virtualusb.makeDevice(
            declared.vendor_id,
            declared.product_id,
            manufacturer=declared.manufacturer,
            product=declared.product,
            serial=declared.serial,
        )
        usb.busid, usb.busnum, usb.devnum = device.busId, device.busNumber, device.deviceNumber
        if declared.kind == "serial":
            virtualusb.addSerialPort(usb)
        else:
            virtualusb.addDisk(usb, declared.size * 1024)
        return usb

    def _put(self, device: UsbDevice) -> UsbDevice:
        self.inventory.replace([device], {device.busId})
        return device

    def _here(self, device: UsbDevice) -> UsbDevice:
        now = self.inventory.same(device)
        if now is None:
            raise OperationFailed(device, f"{device} is gone: it was unplugged")
        return now


def _describe(declared: VirtualDevice) -> str:
    strings = f"{declared.manufacturer or ''} {declared.product or ''}".strip()
    return strings or f"USB device {declared.vendor_id}:{declared.product_id}".lower()
