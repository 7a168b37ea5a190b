"""
Keeps an inventory in step with the kernel.

Uevents only say where to look again. First it listens, then it scans, and whenever
something may have been missed it scans again: at the start, after lost messages and every
C{rescan} seconds the same thing happens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from usbip_server.kernel.scan import Glance, Scanner, Strings
from usbip_server.kernel.strings import StringReader
from usbip_server.kernel.system import ISystem
from usbip_server.kernel.uevents import Uevents
from usbip_server.model.device import DeviceState, UsbDevice
from usbip_server.model.inventory import Inventory
from usbip_server.runtime.threads import BlockingCalls, StillOut, TookTooLong

T = TypeVar("T")

SCAN_SECONDS = 30.0
"""How long a look may take before it is said that it hangs."""

DEAF = 2.0
"""Seconds between looks at everything where nothing is announced."""

TICK = 1.0
"""Seconds. Nothing announces that a client comes or goes: bound devices are looked at."""

SHARE_OF_CORE = 0.02
"""How much of a core it may take to look at everything again and again."""

NO_USB = (
    "this machine's kernel has no USB: {error}. If it has USB hardware, load the driver of "
    "its controller (modprobe xhci-pci); in a container, mount the host's /sys"
)


class KernelWatch:
    """
    Looks at devices, and again when something happens to them.
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
        @param rescan: seconds between looks at everything.
        """
        self._system = system
        self._scanner = scanner
        self._inventory = inventory
        self._calls = calls
        self._reactor = reactor
        self._rescan = rescan
        self._strings = StringReader(scanner, calls, self._lookAgainAt)
        self._uevents: Uevents | None = None
        self._tick = LoopingCall(lambda: Deferred.fromCoroutine(self._onTick()))
        self._tick.clock = reactor
        self._troubles: dict[str, str] = {}
        self._wanted: set[str] = set()
        self._wantAll = False
        self._looking = False
        self._waiting: list[Deferred[None]] = []
        self._scannedAt = 0.0
        self._scanCost = 0.0  # seconds of CPU time
        self._sequence: bytes | None = None  # uevent_seqnum before the last scan
        self._saidDeaf = False

    async def start(self) -> None:
        """Listen, and take the first look."""
        try:
            self._uevents = Uevents(
                self._system.ueventSocket(),
                self._reactor,
                lambda busId: self._lookAgainAt([busId]),
                self._lookAtAll,
            )
            self._uevents.start()
        except OSError as error:
            self._sayDeaf(f"there are no uevents here: {error}")
        self._tick.start(TICK, now=False)
        await self.look(None)
        if await self._strings.idle():
            await self.look(())

    def stop(self) -> None:
        """Listen and look no more."""
        if self._tick.running:
            self._tick.stop()
        if self._uevents is not None:
            self._uevents.stop()
            self._uevents = None

    async def look(self, busIds: Iterable[str] | None) -> None:
        """
        Look at some devices, or (C{None}) at all, now. Returns when the inventory has what
        was seen.
        """
        if busIds is None:
            self._wantAll = True
        else:
            self._wanted.update(busIds)
        done: Deferred[None] = Deferred()
        self._waiting.append(done)
        self._go()
        await done

    async def setTrouble(self, busId: str, trouble: str | None) -> None:
        """
        Show a device as C{error}, or (C{None}) as it is.
        """
        if trouble is None:
            self._troubles.pop(busId, None)
        else:
            self._troubles[busId] = trouble
        await self.look({busId})

    def _lookAgainAt(self, busIds: Iterable[str]) -> None:
        self._wanted.update(busIds)
        self._go()

    def _lookAtAll(self) -> None:
        self._wantAll = True
        self._go()

    def _go(self) -> None:
        if not self._looking:
            self._looking = True
            Deferred.fromCoroutine(self._lookWhileWanted())

    async def _lookWhileWanted(self) -> None:
        """
        What is asked for while a look is under way is answered by the next one.
        """
        while self._wantAll or self._wanted or self._waiting:
            busIds = None if self._wantAll else frozenset(self._wanted)
            waiting, self._waiting = self._waiting, []
            self._wantAll = False
            self._wanted.clear()
            try:
                await self._lookAt(busIds)
            except OSError as error:
                self._noUsb(error)
            except (TookTooLong, StillOut):
                if self._tick.running:  # else we stop
                    self._log.warn("looking at devices hangs; the list may be out of date")
            except Exception:
                self._log.failure("cannot look at the devices")
            for done in waiting:
                done.callback(None)
        self._looking = False

    def _noUsb(self, error: OSError) -> None:
        if self._inventory.trouble is None:
            self._inventory.trouble = NO_USB.format(error=error)
            self._log.warn("{trouble}", trouble=self._inventory.trouble)
        self._inventory.replace([])

    async def _lookAt(self, busIds: frozenset[str] | None) -> None:
        """
        A device is shown when its strings are there too; what else is seen is shown at
        once.
        """
        isScan = busIds is None or self._inventory.trouble is not None
        costs: list[float] = []
        if isScan:
            self._scannedAt = self._reactor.seconds()
            self._sequence = await self._call("sequence", self._readSequence, costs)
            busIds = frozenset(await self._call("names", self._scanner.busIds, costs))
            busIds |= {device.busId for device in self._inventory.snapshot.devices}
        wanted = busIds or frozenset()
        glances = await self._call("glances", lambda: self._scanner.glances(wanted), costs)
        if isScan:
            self._inventory.trouble = None
            self._strings.keepOnly({glance.stay for glance in glances})
        known = [(g, s) for g in glances if (s := self._strings.of(g)) is not None]
        if len(known) < len(glances):
            self._strings.read(glance for glance in glances if self._strings.of(glance) is None)
        devices = await self._call("devices", lambda: self._devices(known), costs) if known else []
        began = time.thread_time()
        self._inventory.replace(devices, wanted)
        if isScan:
            self._scanCost = sum(costs) + time.thread_time() - began

    async def _call(self, key: str, function: Callable[[], T], costs: list[float]) -> T:
        """
        Call a function in a thread, and note what it costs.
        """

        def timed() -> T:
            began = time.thread_time()
            try:
                return function()
            finally:
                costs.append(time.thread_time() - began)

        return await self._calls.call(key, SCAN_SECONDS, timed)

    def _devices(self, known: list[tuple[Glance, Strings]]) -> list[UsbDevice]:
        """
        In a thread, as it may have to read usb.ids.
        """
        return [
            self._scanner.device(glance, strings, self._troubles.get(glance.busId))
            for glance, strings in known
        ]

    async def _onTick(self) -> None:
        """
        Look at what nothing announces.
        """
        if self._looking:
            return
        try:
            sequence = await self._calls.call("tick", SCAN_SECONDS, self._readSequence)
        except Exception as error:
            self._log.warn("cannot look for changes: {error!r}", error=error)
            return
        moved = sequence is None or sequence != self._sequence
        isDeaf = moved and not (self._uevents is not None and self._uevents.heard)
        if isDeaf:
            self._sayDeaf("the kernel sends none here, or has not yet")
        age = self._reactor.seconds() - self._scannedAt
        if age >= max(DEAF if isDeaf else self._rescan, self._scanCost / SHARE_OF_CORE):
            self._lookAtAll()
            return
        self._lookAgainAt(
            device.busId
            for device in self._inventory.snapshot.devices
            if device.state is not DeviceState.FREE
        )

    def _readSequence(self) -> bytes | None:
        """
        How many uevents there have been since the boot, as far as this can be told.
        """
        try:
            return self._system.read("kernel/uevent_seqnum")
        except OSError:
            return None

    def _sayDeaf(self, reason: str) -> None:
        if not self._saidDeaf:
            self._saidDeaf = True
            self._log.info(
                "no uevents ({reason}): looking for changes every {seconds:g} s",
                reason=reason,
                seconds=DEAF,
            )
