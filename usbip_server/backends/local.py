"""
What the backends for this machine's devices share: the inventory, export and release.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from zope.interface import implementer

from usbip_server.interfaces import IHasSlots
from usbip_server.kernel.importers import connectionOf
from usbip_server.kernel.monitor import DeviceMonitor
from usbip_server.kernel.scan import Scanner
from usbip_server.kernel.system import ISystem
from usbip_server.kernel.usbids import UsbIds
from usbip_server.kernel.usbip_host import SLOTS, UsbipHost, taken
from usbip_server.kernel.usbip_sockfd import UsbipSockfd
from usbip_server.model.device import Holder, Traffic, UsbDevice
from usbip_server.model.errors import OperationFailed, OperationTimedOut
from usbip_server.model.inventory import Change, ChangeKind, Inventory
from usbip_server.runtime.threads import (
    BlockingCalls,
    CallPending,
    CallTimedOut,
    Spawn,
    startThread,
)

T = TypeVar("T")

RECLAIM_SECONDS = 2.0
"""How long to wait for a device whose entry in usbip-host's table may be removed."""


SLOTS_SECONDS = 2.0
"""How long to wait for the number of devices in usbip-host's table."""


@implementer(IHasSlots)
class LocalBackend:
    """
    Everything of L{usbip_server.interfaces.IUsbBackend} but C{bind} and C{unbind}, for the
    devices of this machine.

    @ivar inventory: the devices.
    @ivar monitor: keeps the inventory current.
    @ivar host: the C{usbip-host} driver. Its methods block: use C{call}.
    """

    def __init__(
        self,
        system: ISystem,
        reactor: Any,
        rescan: float,
        names: UsbIds | None = None,
        spawn: Spawn = startThread,
    ) -> None:
        """
        @param reactor: provides C{IReactorTime}, C{IReactorFromThreads} and C{IReactorFDSet}.
        @param rescan: seconds between scans of all devices.
        """
        self.inventory = Inventory()
        self._system = system
        self.host = UsbipHost(system)
        self._sockfd = UsbipSockfd(system, self.host)
        self._calls = BlockingCalls(reactor, spawn)
        scanner = Scanner(system, names or UsbIds())
        self._importers = scanner.importers
        self.monitor = DeviceMonitor(system, scanner, self.inventory, self._calls, reactor, rescan)
        self.inventory.subscribe(self._changed)

    async def start(self) -> None:
        await self.monitor.start()

    async def stop(self) -> None:
        self.monitor.stop()
        self._calls.stop()

    @property
    def slots(self) -> int:
        """See L{usbip_server.interfaces.IHasSlots}."""
        return SLOTS

    async def usedSlots(self) -> int | None:
        """See L{usbip_server.interfaces.IHasSlots}."""
        try:
            return await self._calls.call("slots", SLOTS_SECONDS, partial(taken, self._system))
        except (CallTimedOut, CallPending):
            return None

    async def release(self, device: UsbDevice, deadline: float) -> UsbDevice:
        abandoned = threading.Event()
        work = partial(self._sockfd.release, device, abandoned)
        return await self.perform("kick", device, deadline, work, abandoned)

    async def export(
        self, device: UsbDevice, connection: socket.socket, holder: Holder, deadline: float
    ) -> UsbDevice:
        try:
            duplicate = connection.dup()
        except OSError as error:
            raise OperationFailed(device, f"cannot export {device}: {error}") from error
        untaken = [duplicate]  # closed by the one that takes it out of the list
        abandoned = threading.Event()
        work = partial(self._export, device, untaken, holder, abandoned)
        try:
            return await self.perform("export", device, deadline, work, abandoned)
        finally:
            with contextlib.suppress(IndexError):
                untaken.pop().close()

    async def refresh(self, device: UsbDevice) -> None:
        await self.monitor.refresh({device.busId})

    def traffic(self, device: UsbDevice) -> Traffic | None:
        return None  # the kernel does not count it

    async def perform(
        self,
        verb: str,
        device: UsbDevice,
        deadline: float,
        work: Callable[[], object],
        abandoned: threading.Event | None = None,
    ) -> UsbDevice:
        """
        As L{call}; the inventory is updated afterwards, also if the function fails.

        @return: the device after it.
        @raise OperationFailed: as L{call}, or the device was unplugged.
        """
        try:
            await self.call(verb, device, deadline, work, abandoned)
        finally:
            await self.refresh(device)
        return self.current(device)

    async def call(
        self,
        verb: str,
        device: UsbDevice,
        deadline: float,
        work: Callable[[], T],
        abandoned: threading.Event | None = None,
    ) -> T:
        """
        Call a function for a device in a thread. At most one such call is in progress for each
        bus id.

        @param verb: the operation, for messages.
        @param abandoned: set when the deadline has passed.
        @return: what C{work} returns.
        @raise OperationTimedOut: the deadline has passed, or an earlier call has not
            returned. The device is shown as C{error} until it returns.
        """
        late = partial(self._clearTrouble, device.busId)
        try:
            return await self._calls.call(device.busId, deadline, work, late)
        except CallTimedOut:
            if abandoned is not None:
                abandoned.set()
            raise await self.stuck(
                device,
                f"the kernel has not finished the {verb} within {deadline:g} s: the device's "
                "driver waits for it",
            ) from None
        except CallPending:
            raise OperationTimedOut(
                self.inventory.same(device) or device,
                f"{device}: an earlier attach, detach, kick or export is still stuck in the "
                "kernel. Unplug the device, or wait until it answers",
            ) from None

    async def stuck(self, device: UsbDevice, trouble: str) -> OperationTimedOut:
        """
        Show a device as C{error}, until the call that hangs returns.

        @param trouble: the reason, for clients.
        @return: the error to raise.
        """
        trouble += ". Unplug the device, or wait until it answers"
        await self.monitor.setTrouble(device.busId, trouble)
        return OperationTimedOut(self.inventory.same(device) or device, f"{device}: {trouble}")

    async def recovered(self, busId: str) -> None:
        """
        Show a device in the state it is in again: the call that was stuck has returned.
        """
        await self.monitor.setTrouble(busId, None)

    async def makeRoom(self) -> bool:
        """
        Remove one entry from usbip-host's table, if there is one that can be removed safely.

        @return: whether one was removed.
        """
        for busId in self.host.reclaimable():
            work = partial(self.host.reclaim, busId)
            try:
                if await self._calls.call(busId, RECLAIM_SECONDS, work):
                    return True
            except (CallTimedOut, CallPending):
                continue
        return False

    def current(self, device: UsbDevice) -> UsbDevice:
        """
        The device as it is now.

        @raise OperationFailed: it was unplugged.
        """
        now = self.inventory.same(device)
        if now is None:
            raise OperationFailed(device, f"{device} was unplugged in the meantime")
        return now

    def _export(
        self,
        device: UsbDevice,
        untaken: list[socket.socket],
        holder: Holder,
        abandoned: threading.Event,
    ) -> None:
        """
        Called in a thread. The kernel looks the descriptor up when it is written, which may be
        long after the caller has closed the connection: so the thread has a duplicate.
        """
        try:
            duplicate = untaken.pop()
        except IndexError:
            return  # the deadline passed before the thread began
        with duplicate, self._importers.handingOver(device.plugId, holder, connectionOf(duplicate)):
            self._sockfd.export(device, duplicate.fileno(), abandoned)

    def _clearTrouble(self, busId: str) -> None:
        Deferred.fromCoroutine(self.recovered(busId))

    def _changed(self, changes: tuple[Change, ...]) -> None:
        for change in changes:
            if change.kind in (ChangeKind.ADDED, ChangeKind.REMOVED):
                self.host.forget(change.device.busId)
