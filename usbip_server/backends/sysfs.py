"""
This machine's devices, bound by writing to the C{usbip-host} driver's attributes: no
C{usbip} program is needed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import msgspec
from twisted.internet.defer import Deferred
from zope.interface import implementer

from usbip_server.backends.options import convert
from usbip_server.device import UsbDevice
from usbip_server.errors import OperationFailed, OperationTimedOut
from usbip_server.interfaces import IUsbBackend
from usbip_server.inventory import Change, ChangeKind, Inventory
from usbip_server.kernel.scan import Scanner
from usbip_server.kernel.system import ISystem, System
from usbip_server.kernel.threads import BlockingCalls, Spawn, StillOut, TookTooLong, startThread
from usbip_server.kernel.usbids import UsbIds
from usbip_server.kernel.usbip_host import UsbipHost
from usbip_server.kernel.watch import KernelWatch


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
    return SysfsBackend(System(chosen.root), reactor, chosen.rescan)


@implementer(IUsbBackend)
class SysfsBackend:
    """
    Binds and unbinds with L{UsbipHost}, each device in a thread of its own.
    """

    def __init__(
        self,
        system: ISystem,
        reactor: Any,
        rescan: float = 30.0,
        names: UsbIds | None = None,
        spawn: Spawn = startThread,
    ) -> None:
        self.inventory = Inventory()
        self._calls = BlockingCalls(reactor, spawn)
        self._host = UsbipHost(system)
        scanner = Scanner(system, names or UsbIds())
        self._watch = KernelWatch(system, scanner, self.inventory, self._calls, reactor, rescan)
        self.inventory.subscribe(self._changed)

    async def start(self) -> None:
        await self._watch.start()

    async def stop(self) -> None:
        self._watch.stop()

    async def bind(self, device: UsbDevice, deadline: float) -> UsbDevice:
        abandoned = threading.Event()
        work = partial(self._host.bind, device, abandoned)
        return await self._operate("attach", device, deadline, work, abandoned)

    async def unbind(self, device: UsbDevice, deadline: float) -> UsbDevice:
        work = partial(self._host.unbind, device)
        return await self._operate("detach", device, deadline, work, threading.Event())

    async def _operate(
        self,
        verb: str,
        device: UsbDevice,
        deadline: float,
        work: Callable[[], None],
        abandoned: threading.Event,
    ) -> UsbDevice:
        try:
            await self._calls.call(
                device.busId, deadline, work, late=partial(self._cameBack, device.busId)
            )
        except TookTooLong:
            abandoned.set()
            trouble = (
                f"the kernel has not ended the {verb} within {deadline:g} s: its driver waits "
                "for the device. Unplug the device, or wait until it answers"
            )
            await self._watch.setTrouble(device.busId, trouble)
            raise OperationTimedOut(self._now(device), f"{device}: {trouble}") from None
        except StillOut:
            raise OperationTimedOut(
                self._now(device),
                f"{device}: an earlier attach or detach is still stuck in the kernel. Unplug "
                "the device, or wait until it answers",
            ) from None
        finally:
            if not abandoned.is_set():
                await self._watch.look({device.busId})
        return self._here(device)

    def _cameBack(self, busId: str) -> None:
        Deferred.fromCoroutine(self._watch.setTrouble(busId, None))

    def _now(self, device: UsbDevice) -> UsbDevice:
        return self.inventory.get(device.busId) or device

    def _here(self, device: UsbDevice) -> UsbDevice:
        now = self.inventory.get(device.busId)
        if now is None or now.deviceNumber != device.deviceNumber:
            raise OperationFailed(device, f"{device} was unplugged in the meantime")
        return now

    def _changed(self, change: Change) -> None:
        if change.kind in (ChangeKind.ADDED, ChangeKind.REMOVED):
            self._host.forget(change.device.busId)
