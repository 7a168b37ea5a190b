"""
Keeps an inventory in step with the kernel.

Uevents only say where to look again. First it listens, then it scans, and whenever
something may have been missed it scans again: at the start, after lost messages and every
C{rescan} seconds the same thing happens.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Set
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from usbip_server.device import DeviceState, UsbDevice
from usbip_server.inventory import Inventory
from usbip_server.kernel.scan import Glance, Scanner, Strings
from usbip_server.kernel.system import ISystem
from usbip_server.kernel.threads import BlockingCalls, StillOut, TookTooLong
from usbip_server.kernel.uevents import Uevents

SCAN_SECONDS = 30.0
"""How long the first look at all devices may take before it is said that it hangs."""

STRINGS_SECONDS = 0.5
"""How long to wait for the strings of L{STRINGS_AT_ONCE} devices, before they are listed
without."""

STRINGS_AT_ONCE = 32

TICK = 2.0
"""Seconds. Nothing announces that a client comes or goes: bound devices are looked at."""

SHARE_OF_CORE = 0.04
"""How much of a core looking may take where there are no uevents."""

Stay = tuple[str, int]
"""Bus id and device number."""

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
        self._uevents: Uevents | None = None
        self._deaf = False
        self._tick = LoopingCall(lambda: Deferred.fromCoroutine(self._onTick()))
        self._tick.clock = reactor
        self._strings: dict[Stay, Strings] = {}
        self._silent: set[Stay] = set()  # their strings have not come
        self._troubles: dict[str, str] = {}
        self._wanted: set[str] = set()
        self._wantAll = False
        self._looking = False
        self._waiting: list[Deferred[None]] = []
        self._scannedAt = 0.0
        self._scanCost = 0.0
        self._sequence: bytes | None = None

    async def start(self) -> None:
        """Listen, and take the first look."""
        try:
            self._uevents = Uevents(
                self._system.ueventSocket(), self._reactor, self._lookAgainAt, self._lookAtAll
            )
            self._uevents.start()
        except OSError as error:
            self._becomeDeaf(str(error))
        self._tick.start(TICK, now=False)
        await self.look(None)

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

    def _lookAgainAt(self, busId: str) -> None:
        self._wanted.add(busId)
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
        while self._wantAll or self._wanted:
            busIds = None if self._wantAll else frozenset(self._wanted)
            waiting, self._waiting = self._waiting, []
            self._wantAll = False
            self._wanted.clear()
            try:
                await self._lookAt(busIds)
            except OSError as error:
                self._noUsb(error)
            except (TookTooLong, StillOut):
                self._log.warn("looking at the devices hangs; what is listed may be out of date")
            except Exception:
                self._log.failure("a bug in looking at the devices")
            for done in waiting:
                done.callback(None)
        self._looking = False

    def _noUsb(self, error: OSError) -> None:
        if self._inventory.trouble is None:
            self._inventory.trouble = NO_USB.format(error=error)
            self._log.warn("{trouble}", trouble=self._inventory.trouble)
        self._inventory.replace([])

    async def _lookAt(self, busIds: frozenset[str] | None) -> None:
        glances = await self._calls.call("look", SCAN_SECONDS, lambda: self._glances(busIds))
        self._inventory.trouble = None
        if busIds is None:
            self._forgetStrings({glance.stay for glance in glances})
            before = {device.busId for device in self._inventory.snapshot.devices}
            busIds = frozenset(before | {glance.busId for glance in glances})
        fresh = {
            glance.busId: glance
            for glance in glances
            if glance.stay not in self._strings and glance.stay not in self._silent
        }
        # What needs no waiting is shown first.
        await self._show([g for g in glances if g.busId not in fresh], busIds - fresh.keys())
        if fresh:
            await self._readStrings(list(fresh.values()))
            await self._show(fresh.values(), fresh.keys())

    def _glances(self, busIds: frozenset[str] | None) -> list[Glance]:
        """
        In a thread: the first look, and what a look at everything costs.
        """
        if busIds is not None:
            return self._scanner.glances(busIds)
        began = time.thread_time()
        self._scannedAt = self._reactor.seconds()
        self._sequence = self._readSequence()
        glances = self._scanner.glances(self._scanner.busIds())
        self._scanCost = time.thread_time() - began
        return glances

    async def _show(self, glances: Collection[Glance], among: Collection[str]) -> None:
        def put() -> list[UsbDevice]:  # in a thread, as it may have to read usb.ids
            return [
                self._scanner.device(
                    glance,
                    self._strings.get(glance.stay, Strings()),
                    self._troubles.get(glance.busId),
                )
                for glance in glances
            ]

        devices = await self._calls.call("show", SCAN_SECONDS, put) if glances else []
        self._inventory.replace(devices, among)

    async def _readStrings(self, glances: list[Glance]) -> None:
        """
        Read strings, some devices at a time. The first that has not answered in time is
        left out, and looked at again if its strings come after all.
        """
        while glances:
            some, glances = glances[:STRINGS_AT_ONCE], glances[STRINGS_AT_ONCE:]
            try:
                await self._calls.call(
                    object(),
                    STRINGS_SECONDS,
                    partial(self._scanner.readStrings, some, self._noteStrings),
                    late=partial(self._spoke, some),
                )
            except TookTooLong:
                unread = [glance for glance in some if glance.stay not in self._strings]
                self._silent.update(glance.stay for glance in unread[:1])
                glances = unread[1:] + glances

    def _noteStrings(self, glance: Glance, strings: Strings) -> None:
        self._strings[glance.stay] = strings

    def _spoke(self, glances: list[Glance]) -> None:
        """
        Strings that were given up have come.
        """
        late = {glance for glance in glances if glance.stay in self._silent}
        self._silent -= {glance.stay for glance in late}
        self._wanted.update(glance.busId for glance in late)
        self._go()

    def _forgetStrings(self, stays: Set[Stay]) -> None:
        for stay in self._strings.keys() - stays:
            del self._strings[stay]
        self._silent &= stays

    async def _onTick(self) -> None:
        """
        Look at what nothing announces.
        """
        if self._looking:
            return
        sequence = await self._calls.call("tick", SCAN_SECONDS, self._readSequence)
        moved = sequence is None or sequence != self._sequence
        if not self._deaf and moved and not (self._uevents and self._uevents.heard):
            self._becomeDeaf("the kernel sends none into this network namespace")
        age = self._reactor.seconds() - self._scannedAt
        if age >= self._rescan or (self._deaf and moved and age >= self._scanCost / SHARE_OF_CORE):
            self._lookAtAll()
            return
        for device in self._inventory.snapshot.devices:
            if device.state is not DeviceState.FREE:
                self._lookAgainAt(device.busId)

    def _readSequence(self) -> bytes | None:
        """
        How many uevents there have been since the boot, as far as this can be told.
        """
        try:
            return self._system.read("kernel/uevent_seqnum")
        except OSError:
            return None

    def _becomeDeaf(self, reason: str) -> None:
        self._deaf = True
        self._log.info(
            "no uevents here ({reason}): looking for changes every {seconds:g} s or less often",
            reason=reason,
            seconds=TICK,
        )
