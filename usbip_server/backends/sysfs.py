"""
This machine's devices, bound by writing to the C{usbip-host} driver's attributes: no
C{usbip} program is needed.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import msgspec
from zope.interface import implementer

from usbip_server.backends.local import Machine
from usbip_server.interfaces import IUsbBackend
from usbip_server.kernel.errors import TableFull
from usbip_server.kernel.system import System
from usbip_server.model.device import DeviceState, Holder, Traffic, UsbDevice
from usbip_server.model.errors import OperationFailed
from usbip_server.model.options import convert


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    @ivar root: where sysfs is mounted.
    @ivar rescan: seconds between looks at everything, in case something went unannounced.
    """

    root: str = "/sys"
    rescan: Annotated[float, msgspec.Meta(ge=1, le=86400)] = 30.0


def makeBackend(options: Mapping[str, Any], reactor: Any) -> SysfsBackend:
    """
    See L{usbip_server.interfaces.IUsbBackendMaker}.
    """
    chosen = convert(options, Options)
    return SysfsBackend(Machine(System(chosen.root), reactor, chosen.rescan))


@implementer(IUsbBackend)
class SysfsBackend:
    """
    Binds and unbinds with L{usbip_server.kernel.usbip_host.UsbipHost}, each device in a
    thread of its own.
    """

    def __init__(self, machine: Machine) -> None:
        self.inventory = machine.inventory
        self._machine = machine

    async def start(self) -> None:
        await self._machine.start()

    async def stop(self) -> None:
        self._machine.stop()

    async def bind(
        self, device: UsbDevice, deadline: float, evenMounted: bool = False
    ) -> UsbDevice:
        try:
            return await self._bind(device, deadline, evenMounted)
        except TableFull:
            if not await self._machine.makeRoom():
                raise
            return await self._bind(device, deadline, evenMounted)

    async def _bind(self, device: UsbDevice, deadline: float, evenMounted: bool) -> UsbDevice:
        abandoned = threading.Event()
        work = partial(self._machine.host.bind, device, abandoned, evenMounted)
        try:
            await self._machine.call("attach", device, deadline, work, abandoned)
        finally:
            await self._machine.look({device.busId})
        return self._machine.here(device)

    async def unbind(self, device: UsbDevice, deadline: float) -> UsbDevice:
        now = self._machine.inventory.same(device)
        if now is not None and now.state is DeviceState.IN_USE:
            # An unbind that had to end a session as well was seen to leave its connection open
            # (Linux 6.1): first the one, then the other.
            with contextlib.suppress(OperationFailed):
                await self._machine.release(device, deadline)
        work = partial(self._machine.host.unbind, device)
        try:
            await self._machine.call("detach", device, deadline, work)
        finally:
            await self._machine.look({device.busId})
        return self._machine.here(device)

    async def release(self, device: UsbDevice, deadline: float) -> UsbDevice:
        return await self._machine.release(device, deadline)

    async def export(
        self, device: UsbDevice, connection: socket.socket, holder: Holder, deadline: float
    ) -> UsbDevice:
        return await self._machine.export(device, connection, holder, deadline)

    async def look(self, device: UsbDevice) -> None:
        await self._machine.look({device.busId})

    def traffic(self, device: UsbDevice) -> Traffic | None:
        return None  # the kernel does not say
