"""
A backend of emulated devices that are declared in the configuration. It needs no root, no hardware
and no kernel module.

Devices of kind C{serial} and C{disk} can be imported, and are real USB devices to the client;
devices of kind C{inert} can only be listed and bound.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from zope.interface import implementer

from usbip_server.backends import softdevice
from usbip_server.interfaces import IUsbBackend
from usbip_server.model.device import DeviceState, Holder, Traffic, UsbDevice, isBusId
from usbip_server.model.errors import DeviceInUse, OperationFailed, OperationTimedOut
from usbip_server.model.escapes import escape, readable
from usbip_server.model.inventory import Inventory
from usbip_server.model.options import InvalidOption, convert
from usbip_server.runtime.threads import BlockingCalls, CallPending, CallTimedOut

Hex = Annotated[str, msgspec.Meta(pattern="^[0-9a-fA-F]{4}$")]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=126)]


class VirtualDevice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    The declaration of a device.

    @ivar bus_id: its bus id.
    @ivar kind: C{serial}, a serial port that echoes; C{disk}; or C{inert}.
    @ivar size: the size of a disk, in KiB.
    @ivar plugged: whether it is plugged in at the start.
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
"""The devices if none are declared."""


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    @ivar devices: the declared devices.
    """

    devices: tuple[VirtualDevice, ...] = SAMPLES


def makeBackend(options: Mapping[str, Any], reactor: Any) -> VirtualBackend:
    """
    See L{usbip_server.interfaces.IUsbBackendMaker}.
    """
    chosen = convert(options, Options)
    seen = set()
    for index, device in enumerate(chosen.devices):
        if not isBusId(device.bus_id):
            raise InvalidOption(
                ("devices", index, "bus_id"), f"{device.bus_id!r} is not a bus id, such as 1-1.4"
            )
        if device.bus_id in seen:
            raise InvalidOption(("devices", index, "bus_id"), "occurs twice")
        seen.add(device.bus_id)
        for key in ("manufacturer", "product", "serial"):
            _checkText(("devices", index, key), getattr(device, key) or "")
        if device.kind != "inert" and not softdevice.installed:
            raise InvalidOption(
                ("devices", index, "kind"),
                f"{device.kind!r} needs an extra: pip install 'usbipshare[virtual]'",
            )
    return VirtualBackend(chosen, reactor)


def _checkText(path: Sequence[str | int], text: str) -> None:
    """
    @raise InvalidOption: the text contains a lone surrogate, which YAML's escapes can produce and
        no reply can contain.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidOption(path, f"{text!r} is not text: {error.reason}") from None


@implementer(IUsbBackend)
class VirtualBackend:
    """
    Emulated devices.
    """

    def __init__(self, options: Options, reactor: Any) -> None:
        self.inventory = Inventory()
        self._declared = {device.bus_id: device for device in options.devices}
        self._numbers = itertools.count(2)
        self._soft: dict[str, softdevice.SoftDevice] = {}
        self._reactor = reactor
        self._calls = BlockingCalls(reactor)

    async def start(self) -> None:
        for device in self._declared.values():
            if device.plugged:
                self.plug(device.bus_id)

    async def stop(self) -> None:
        self._calls.stop()
        for soft in self._soft.values():
            soft.shutDown()

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
            serial=declared.serial and escape(declared.serial),
            deviceNumber=number,
            manufacturer=declared.manufacturer and readable(declared.manufacturer),
            product=declared.product and readable(declared.product),
            speed="12",
            path=f"platform-virtual.{busId.replace('-', '-usb-0:', 1)}",
            sysfsPath=f"virtual/{busId}",
            driver="usb",
        )
        if declared.kind != "inert":
            soft = softdevice.makeDevice(
                declared.vendor_id,
                declared.product_id,
                declared.size * 1024 if declared.kind == "disk" else None,
                manufacturer=declared.manufacturer,
                product=declared.product,
                serial=declared.serial,
            )
            descriptor = soft.usb.device_descriptor()
            device = msgspec.structs.replace(
                device,
                deviceClass=f"{descriptor.bDeviceClass:02x}",
                subclass=f"{descriptor.bDeviceSubClass:02x}",
                protocol=f"{descriptor.bDeviceProtocol:02x}",
                release=descriptor.bcdDevice,
                configurations=descriptor.bNumConfigurations,
                interfaces=tuple(bytes(three).hex("/") for three in soft.usb.interface_triples()),
            )
            self._soft[busId] = softdevice.SoftDevice(
                soft, self._reactor, lambda: self._follow(busId)
            )
        self._put(device)

    def unplug(self, busId: str) -> None:
        """
        Unplug a device.
        """
        self._withdraw(busId)
        self._soft.pop(busId, None)
        self.inventory.replace([], {busId})

    async def bind(
        self, device: UsbDevice, deadline: float, allowMounted: bool = False
    ) -> UsbDevice:
        now = self._here(device)
        self._refuseInUse(now)
        if now.state is DeviceState.BOUND:
            return now
        return self._put(msgspec.structs.replace(now, state=DeviceState.BOUND, driver="usbip-host"))

    async def unbind(self, device: UsbDevice, deadline: float) -> UsbDevice:
        now = self._here(device)
        self._withdraw(now.busId)
        return self._put(
            msgspec.structs.replace(
                now, state=DeviceState.FREE, driver="usb", holder=None, trouble=None
            )
        )

    async def release(self, device: UsbDevice, deadline: float) -> UsbDevice:
        now = self._here(device)
        soft = self._soft.get(now.busId)
        session = None if soft is None else soft.session
        if soft is None or session is None:
            return now
        soft.shutDown()
        try:
            await self._calls.call(session, deadline, session.ended.wait)
        except (CallTimedOut, CallPending):
            trouble = f"the session of its client has not ended within {deadline:g} s"
            current = self.inventory.same(now)
            if current is not None and soft.session is session:
                # Until it does: see _follow.
                self._put(
                    msgspec.structs.replace(current, state=DeviceState.ERROR, trouble=trouble)
                )
            raise OperationTimedOut(self.inventory.same(now) or now, f"{now}: {trouble}") from None
        return self._here(device)

    async def export(
        self, device: UsbDevice, connection: socket.socket, holder: Holder, deadline: float
    ) -> UsbDevice:
        soft = self._importable(device)
        try:
            if soft.former is not None:
                await self._untilEnded(device, soft.former, deadline)
                soft = self._importable(device)
            soft.begin(connection, holder)
        except (OSError, RuntimeError) as error:
            raise OperationFailed(device, f"cannot export {device}: {error}") from None
        self._follow(device.busId)
        return self._here(device)

    async def refresh(self, device: UsbDevice) -> None:
        pass  # all changes are noticed

    def traffic(self, device: UsbDevice) -> Traffic | None:
        return None  # the owner of the connection counts

    def _importable(self, device: UsbDevice) -> softdevice.SoftDevice:
        """
        @raise OperationFailed: it cannot be imported now.
        """
        now = self._here(device)
        soft = self._soft.get(now.busId)
        if soft is None:
            raise OperationFailed(now, f"{now} cannot be imported: it is of kind inert")
        self._refuseInUse(now)
        if now.state is not DeviceState.BOUND:
            raise OperationFailed(now, f"{now} cannot be imported: it is not bound")
        return soft

    async def _untilEnded(
        self, device: UsbDevice, former: softdevice.Session, deadline: float
    ) -> None:
        """
        @raise DeviceInUse: the session before, which was ended by an unbind, has not ended yet.
        """
        try:
            await self._calls.call(former, deadline, former.ended.wait)
        except (CallTimedOut, CallPending):
            raise DeviceInUse(_heldBy(self._here(device), former.holder)) from None

    def _refuseInUse(self, now: UsbDevice) -> None:
        """
        @raise DeviceInUse: a client has it.
        """
        holder = self._holder(now.busId)
        if holder is not None:
            raise DeviceInUse(_heldBy(now, holder))

    def _holder(self, busId: str) -> Holder | None:
        soft = self._soft.get(busId)
        return None if soft is None or soft.session is None else soft.session.holder

    def _withdraw(self, busId: str) -> None:
        if busId in self._soft:
            self._soft[busId].withdraw()

    def _follow(self, busId: str) -> None:
        """
        Update the state of a device from its session.
        """
        now = self.inventory.get(busId)
        if now is not None and now.state is not DeviceState.FREE:
            holder = self._holder(busId)
            state = DeviceState.BOUND if holder is None else DeviceState.IN_USE
            self._put(msgspec.structs.replace(now, state=state, holder=holder, trouble=None))

    def _put(self, device: UsbDevice) -> UsbDevice:
        self.inventory.replace([device], {device.busId})
        return device

    def _here(self, device: UsbDevice) -> UsbDevice:
        now = self.inventory.same(device)
        if now is None:
            raise OperationFailed(device, f"{device} is gone: it was unplugged")
        return now


def _heldBy(device: UsbDevice, holder: Holder) -> UsbDevice:
    return msgspec.structs.replace(device, state=DeviceState.IN_USE, holder=holder)


def _describe(declared: VirtualDevice) -> str:
    strings = f"{declared.manufacturer or ''} {declared.product or ''}".strip()
    return (
        readable(strings)
        or f"USB device {declared.vendor_id.lower()}:{declared.product_id.lower()}"
    )
