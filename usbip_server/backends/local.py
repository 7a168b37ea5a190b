"""
The devices of this machine: what every backend that shares them has in common.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

from usbip_server.kernel.importers import connectionOf
from usbip_server.kernel.monitor import KernelWatch
from usbip_server.kernel.scan import Scanner
from usbip_server.kernel.system import ISystem
from usbip_server.kernel.usbids import UsbIds
from usbip_server.kernel.usbip_host import UsbipHost
from usbip_server.kernel.usbip_sockfd import UsbipSockfd
from usbip_server.model.device import Holder, UsbDevice
from usbip_server.model.errors import OperationFailed, OperationTimedOut
from usbip_server.model.inventory import Change, ChangeKind, Inventory
from usbip_server.runtime.threads import BlockingCalls, Spawn, StillOut, TookTooLong, startThread

T = TypeVar("T")

RECLAIM_SECONDS = 2.0
"""How long to wait for a device whose place in usbip-host's table could be freed."""


class Machine:
    """
    An inventory that is kept current, the driver, and what may block for ever.

    @ivar inventory: the devices.
    @ivar host: the driver; its methods block, so use C{call}.
    @ivar start: see L{KernelWatch}, as C{look} and C{setTrouble}.
    """

    def __init__(
        self,
        system: ISystem,
        reactor: Any,
        rescan: float,
        names: UsbIds | None = None,
        spawn: Spawn = startThread,
    ) -> None:
        self.inventory = Inventory()
        self.host = UsbipHost(system)
        self._sockfd = UsbipSockfd(system, self.host)
        self._calls = BlockingCalls(reactor, spawn)
        scanner = Scanner(system, names or UsbIds())
        self._sessions = scanner.sessions
        watch = KernelWatch(system, scanner, self.inventory, self._calls, reactor, rescan)
        self._watch = watch
        self.start = watch.start
        self.look = watch.look
        self.setTrouble = watch.setTrouble
        self.inventory.subscribe(self._changed)

    def stop(self) -> None:
        """Look no more, and wait for nothing."""
        self._watch.stop()
        self._calls.stop()

    async def call(
        self,
        verb: str,
        device: UsbDevice,
        deadline: float,
        work: Callable[[], T],
        abandoned: threading.Event | None = None,
    ) -> T:
        """
        Do something to a device, in a thread; nothing else is done to it meanwhile.

        @param verb: what it is called.
        @param abandoned: set when the deadline has passed.
        @return: what C{work} returns.
        @raise OperationTimedOut: the deadline has passed, or an earlier call has not
            returned. The device is shown as C{error} until it returns.
        """
        late = partial(self._cameBack, device.busId)
        try:
            return await self._calls.call(device.busId, deadline, work, late)
        except TookTooLong:
            if abandoned is not None:
                abandoned.set()
            raise await self.stuck(
                device,
                f"the kernel has not ended the {verb} within {deadline:g} s: the device's driver "
                "waits for it",
            ) from None
        except StillOut:
            raise OperationTimedOut(
                self.inventory.same(device) or device,
                f"{device}: an earlier attach, detach, kick or export is still stuck in the "
                "kernel. Unplug the device, or wait until it answers",
            ) from None

    async def release(self, device: UsbDevice, deadline: float) -> UsbDevice:
        """
        End the session of the client that has a device.

        @return: the device after it.
        @raise OperationFailed: see L{UsbipSockfd.release} and L{call}.
        """
        abandoned = threading.Event()
        work = partial(self._sockfd.release, device, abandoned)
        try:
            await self.call("kick", device, deadline, work, abandoned)
        finally:
            await self.look({device.busId})
        return self.here(device)

    async def export(
        self, device: UsbDevice, connection: socket.socket, holder: Holder, deadline: float
    ) -> UsbDevice:
        """
        Give a bound device to a client.

        @param connection: the client's. It can be closed as soon as this has been called.
        @return: the device after it.
        @raise OperationFailed: see L{UsbipSockfd.export} and L{call}.
        """
        try:
            kept = connection.dup()
        except OSError as error:
            raise OperationFailed(device, f"cannot export {device}: {error}") from error
        untaken = [kept]  # whoever takes it out closes it
        abandoned = threading.Event()
        work = partial(self._handOver, device, untaken, holder, abandoned)
        try:
            await self.call("export", device, deadline, work, abandoned)
        finally:
            with contextlib.suppress(IndexError):
                untaken.pop().close()
            await self.look({device.busId})
        return self.here(device)

    def _handOver(
        self,
        device: UsbDevice,
        untaken: list[socket.socket],
        holder: Holder,
        abandoned: threading.Event,
    ) -> None:
        """
        In a thread. The kernel looks the descriptor up when it is written, and that may be
        long after everybody else has closed the connection.
        """
        try:
            kept = untaken.pop()
        except IndexError:
            return  # it was given up before the thread has begun
        stay = device.busId, device.deviceNumber
        with kept, self._sessions.handingOver(stay, holder, connectionOf(kept)):
            self._sockfd.export(device, kept.fileno(), abandoned)

    async def stuck(self, device: UsbDevice, trouble: str) -> OperationTimedOut:
        """
        Show a device as stuck, until C{setTrouble} says otherwise.

        @return: the error to raise.
        """
        trouble += ". Unplug the device, or wait until it answers"
        await self.setTrouble(device.busId, trouble)
        return OperationTimedOut(self.inventory.same(device) or device, f"{device}: {trouble}")

    async def makeRoom(self) -> bool:
        """
        Free a place in usbip-host's table, if that is safe and no device is in the way.
        """
        for busId in self.host.reclaimable():
            work = partial(self.host.reclaim, busId)
            try:
                if await self._calls.call(busId, RECLAIM_SECONDS, work):
                    return True
            except (TookTooLong, StillOut):
                continue
        return False

    def here(self, device: UsbDevice) -> UsbDevice:
        """
        What the device is now.

        @raise OperationFailed: it is gone.
        """
        now = self.inventory.same(device)
        if now is None:
            raise OperationFailed(device, f"{device} was unplugged in the meantime")
        return now

    def _cameBack(self, busId: str) -> None:
        Deferred.fromCoroutine(self.setTrouble(busId, None))

    def _changed(self, changes: tuple[Change, ...]) -> None:
        for change in changes:
            if change.kind in (ChangeKind.ADDED, ChangeKind.REMOVED):
                self.host.forget(change.device.busId)
