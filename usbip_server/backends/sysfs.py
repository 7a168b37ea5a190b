"""
The default backend: binds this machine's devices by writing to the attributes of the
C{usbip-host} driver, without the C{usbip} program.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import msgspec
from zope.interface import implementer

from usbip_server.backends.local import LocalBackend
from usbip_server.interfaces import IUsbBackend
from usbip_server.kernel.errors import TableFull
from usbip_server.kernel.system import System
from usbip_server.model.device import DeviceState, UsbDevice
from usbip_server.model.errors import OperationFailed
from usbip_server.model.options import convert


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    @ivar root: where sysfs is mounted.
    @ivar rescan: seconds between scans of all devices, in case a uevent was lost.
    """

    root: str = "/sys"
    rescan: Annotated[float, msgspec.Meta(ge=1, le=86400)] = 30.0


def makeBackend(options: Mapping[str, Any], reactor: Any) -> SysfsBackend:
    """
    See L{usbip_server.interfaces.IUsbBackendMaker}.
    """
    chosen = convert(options, Options)
    return SysfsBackend(System(chosen.root), reactor, chosen.rescan)


@implementer(IUsbBackend)
class SysfsBackend(LocalBackend):
    """
    Binds and unbinds with L{usbip_server.kernel.usbip_host.UsbipHost}, each device in a
    thread of its own.
    """

    async def bind(
        self, device: UsbDevice, deadline: float, allowMounted: bool = False
    ) -> UsbDevice:
        try:
            return await self._bind(device, deadline, allowMounted)
        except TableFull:
            if not await self.makeRoom():
                raise
            return await self._bind(device, deadline, allowMounted)

    async def _bind(self, device: UsbDevice, deadline: float, allowMounted: bool) -> UsbDevice:
        abandoned = threading.Event()
        work = partial(self.host.bind, device, abandoned, allowMounted)
        return await self.perform("attach", device, deadline, work, abandoned)

    async def unbind(self, device: UsbDevice, deadline: float) -> UsbDevice:
        now = self.inventory.same(device)
        if now is not None and now.state is DeviceState.IN_USE:
            # On Linux 6.1 an unbind of a device in use was seen to leave the client's connection
            # open: so the session is ended first.
            with contextlib.suppress(OperationFailed):
                await self.release(device, deadline)
        return await self.perform("detach", device, deadline, partial(self.host.unbind, device))
