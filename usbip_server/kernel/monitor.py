"""
Keeps an inventory in step with the kernel.

A uevent contains only which device to read again. The monitor subscribes to uevents before it
reads the devices for the first time, and reads all of them again whenever uevents may have been
lost: after an overflow of the socket, and every C{rescan} seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from usbip_server.kernel.scan import Attributes, Scanner, Strings
from usbip_server.kernel.strings import StringReader
from usbip_server.kernel.system import ISystem
from usbip_server.kernel.uevents import Uevents
from usbip_server.model.device import DeviceState, UsbDevice
from usbip_server.model.inventory import Inventory
from usbip_server.runtime.threads import BlockingCalls, CallPending, CallTimedOut

T = TypeVar("T")

READ_SECONDS = 30.0
"""How long reading the devices may take before a warning is logged."""

POLL_SECONDS = 2.0
"""Seconds between scans of all devices where no uevents are received."""

TICK = 1.0
"""Seconds between looks at what no uevent announces: that a client imports or releases a device."""

SHARE_OF_CORE = 0.02
"""The share of a processor core that repeated scans may use: scans are less frequent on machines
where a scan takes long."""

NO_USB = (
    "this machine's kernel has no USB: {error}. If it has USB hardware, load the driver of "
    "its controller (modprobe xhci-pci); in a container, mount the host's /sys"
)


class DeviceMonitor:
    """
    Reads devices into an inventory, and reads each again when its state may have changed.
    """

    _log = Logger()

    def __init__(
        self,
        system: ISystem,
        scanner: Scanner,
        inventory: Inventory,
        calls: BlockingCalls,
        reactor: Any,
        rescan: float = 30.0,
    ) -> None:
        """
        @param rescan: seconds between scans of all devices.
        """
        self._system = system
        self._scanner = scanner
        self._inventory = inventory
        self._calls = calls
        self._reactor = reactor
        self._rescan = rescan
        self._strings = StringReader(scanner, calls, self._refreshSoon)
        self._uevents: Uevents | None = None
        self._tick = LoopingCall(lambda: Deferred.fromCoroutine(self._onTick()))
        self._tick.clock = reactor
        self._troubles: dict[str, str] = {}
        self._wanted: set[str] = set()
        self._isScanWanted = False
        self._isRefreshing = False
        self._waiting: list[Deferred[None]] = []
        self._scannedAt = 0.0
        self._scanCost = 0.0  # seconds of CPU time
        self._sequence: bytes | None = None  # uevent_seqnum before the last scan
        self._hasLoggedPolling = False
        self._logged: set[str] = set()  # the warnings since a read has succeeded

    async def start(self) -> None:
        """Subscribe to uevents and read all devices. Returns when the inventory is complete."""
        try:
            self._uevents = Uevents(
                self._system.ueventSocket(),
                self._reactor,
                lambda busId: self._refreshSoon([busId]),
                self._scanSoon,
            )
            self._uevents.start()
        except OSError as error:
            self._logPolling(f"they cannot be received: {error}")
        self._tick.start(TICK, now=False)
        await self.refresh(None)
        if await self._strings.idle():
            await self.refresh(())

    def stop(self) -> None:
        """Unsubscribe from uevents and read nothing more."""
        if self._tick.running:
            self._tick.stop()
        if self._uevents is not None:
            self._uevents.stop()
            self._uevents = None

    async def refresh(self, busIds: Iterable[str] | None) -> None:
        """
        Read devices now. Returns when the inventory is updated.

        @param busIds: which; C{None}: all.
        """
        if busIds is None:
            self._isScanWanted = True
        else:
            self._wanted.update(busIds)
        done: Deferred[None] = Deferred()
        self._waiting.append(done)
        self._begin()
        await done

    async def setTrouble(self, busId: str, trouble: str | None) -> None:
        """
        Show a device as C{error} for the reason given, or (C{None}) in the state it is in.
        """
        if trouble is None:
            self._troubles.pop(busId, None)
        else:
            self._troubles[busId] = trouble
        await self.refresh({busId})

    def _refreshSoon(self, busIds: Iterable[str]) -> None:
        self._wanted.update(busIds)
        self._begin()

    def _scanSoon(self) -> None:
        self._isScanWanted = True
        self._begin()

    def _begin(self) -> None:
        if not self._isRefreshing:
            self._isRefreshing = True
            Deferred.fromCoroutine(self._refreshWhileWanted())

    async def _refreshWhileWanted(self) -> None:
        """
        Read what is wanted, until nothing is. A request that comes while devices are being read
        is satisfied by the next round.
        """
        while self._isScanWanted or self._wanted or self._waiting:
            busIds = None if self._isScanWanted else frozenset(self._wanted)
            waiting, self._waiting = self._waiting, []
            self._isScanWanted = False
            self._wanted.clear()
            try:
                await self._read(busIds)
                self._logged.clear()
            except OSError as error:
                self._noUsb(error)
            except (CallTimedOut, CallPending):
                if self._isFirst("hangs"):
                    self._log.warn("reading the devices hangs; the list may be out of date")
            except Exception as error:
                if self._isFirst(repr(error)):
                    self._log.failure("cannot read the devices")
            for done in waiting:
                done.callback(None)
        self._isRefreshing = False

    def _isFirst(self, warning: str) -> bool:
        """
        Whether to log a warning: not if the same was logged and no read has succeeded since, nor
        while the monitor is being stopped.
        """
        if warning in self._logged or not self._tick.running:
            return False
        self._logged.add(warning)
        return True

    def _noUsb(self, error: OSError) -> None:
        if self._inventory.trouble is None:
            self._inventory.trouble = NO_USB.format(error=error)
            self._log.warn("{trouble}", trouble=self._inventory.trouble)
        self._inventory.replace([])

    async def _read(self, busIds: frozenset[str] | None) -> None:
        """
        Read devices and update the inventory. A new device is shown only when its strings have
        been read, or have timed out.

        @param busIds: which; C{None}: all.
        """
        isScan = busIds is None or self._inventory.trouble is not None
        costs: list[float] = []
        if isScan:
            self._scannedAt = self._reactor.seconds()
            self._sequence = await self._call("sequence", self._readSequence, costs)
            busIds = frozenset(await self._call("names", self._scanner.busIds, costs))
            busIds |= {device.busId for device in self._inventory.snapshot.devices}
        wanted = busIds or frozenset()
        found = await self._call("attributes", lambda: self._scanner.read(wanted), costs)
        if isScan:
            self._inventory.trouble = None
            self._strings.keepOnly({each.plugId for each in found})
            self._strings.retry(found)
        known = [(each, s) for each in found if (s := self._strings.of(each)) is not None]
        if len(known) < len(found):
            self._strings.read(each for each in found if self._strings.of(each) is None)
        devices = await self._call("devices", lambda: self._devices(known), costs) if known else []
        began = time.thread_time()
        self._inventory.excluded = self._scanner.excluded
        self._inventory.replace(devices, wanted)
        if isScan:
            self._scanCost = sum(costs) + time.thread_time() - began

    async def _call(self, key: str, function: Callable[[], T], costs: list[float]) -> T:
        """
        Call a function in a thread, and append the CPU time that it used, in seconds.
        """

        def timed() -> T:
            began = time.thread_time()
            try:
                return function()
            finally:
                costs.append(time.thread_time() - began)

        return await self._calls.call(key, READ_SECONDS, timed)

    def _devices(self, known: list[tuple[Attributes, Strings]]) -> list[UsbDevice]:
        """
        Called in a thread, as it may have to read usb.ids.
        """
        return [
            self._scanner.device(attributes, strings, self._troubles.get(attributes.busId))
            for attributes, strings in known
        ]

    async def _onTick(self) -> None:
        """
        Read what no uevent announces: bound devices, and all devices where uevents may be missing.
        """
        if self._isRefreshing:
            return
        try:
            sequence = await self._calls.call("tick", READ_SECONDS, self._readSequence)
        except Exception as error:
            if self._isFirst("uevent_seqnum"):
                self._log.warn("cannot read uevent_seqnum: {error!r}", error=error)
            return
        hasChanged = sequence is None or sequence != self._sequence
        isPolling = hasChanged and not (self._uevents is not None and self._uevents.hasReceived)
        if isPolling:
            self._logPolling("none has been received")
        age = self._reactor.seconds() - self._scannedAt
        interval = POLL_SECONDS if isPolling else self._rescan
        if age >= max(interval, self._scanCost / SHARE_OF_CORE):
            self._scanSoon()
            return
        self._refreshSoon(
            device.busId
            for device in self._inventory.snapshot.devices
            if device.state is not DeviceState.FREE
        )

    def _readSequence(self) -> bytes | None:
        """
        The number of uevents since the boot; C{None} if it cannot be read.
        """
        try:
            return self._system.read("kernel/uevent_seqnum")
        except OSError:
            return None

    def _logPolling(self, reason: str) -> None:
        if not self._hasLoggedPolling:
            self._hasLoggedPolling = True
            self._log.info(
                "no uevents ({reason}): scanning the devices every {seconds:g} s",
                reason=reason,
                seconds=POLL_SECONDS,
            )
