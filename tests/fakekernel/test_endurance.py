"""
A thousand replugs, with everything that the daemon does at each.
"""

from __future__ import annotations

import gc
import os
import threading
import tracemalloc

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import TestCase

from tests.server.corecase import MemoryStateFile
from tests.support.fixtures import watching
from usbip_server.backends.sysfs import SysfsBackend
from usbip_server.kernel.usbids import UsbIds
from usbip_server.model.devicerules import Match, Rule, Share
from usbip_server.model.options import Limits
from usbip_server.model.policy import LOCAL, Principal
from usbip_server.model.requests import WatchDevices
from usbip_server.net.caller import Caller
from usbip_server.server.config import LiveSettings, Settings
from usbip_server.server.core import Core
from usbip_server.testing import FakeKernel

CYCLES = 1000
WARM_UP = 100
GROWTH = 384 * 1024
"""Bytes by which the memory may grow: caches that are not full yet."""


class EnduranceTests(TestCase):
    """
    With real threads and the real reactor, on a kernel in memory.
    """

    timeout = 900

    async def test_plugs(self) -> None:
        """No threads, descriptors or memory leak, and each time the device is bound again."""
        kernel = FakeKernel()
        for number in range(1, 17):
            kernel.plug(f"1-{number}", serial=f"S{number}")
        backend = SysfsBackend(kernel, reactor, 30.0, UsbIds([]))
        settings = Settings(
            devices=(Rule(match=Match(bus="*"), share=Share.ALWAYS),),
            limits=Limits(history=WARM_UP),
        )
        clock = Clock()
        core = Core(
            backend,
            clock,
            LiveSettings(settings),
            MemoryStateFile(),  # type: ignore[arg-type]
        )
        await core.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(core.stop()))
        bound: dict[str, int] = {}

        def count(kind: str, busId: str) -> None:
            bound[busId] = bound.get(busId, 0) + (kind == "bound")

        _, stream = watching(core, WatchDevices(), Caller(Principal(LOCAL)))
        stream.begin(lambda event, line: count(event.kind.value, event.device.busId))
        self.addCleanup(stream.end)

        async def cycle(number: int) -> None:
            busId = f"1-{number % 16 + 1}"
            clock.advance(5)  # seldom enough at each port not to be flapping
            before = bound.get(busId, 0)
            kernel.unplug(busId)
            kernel.plug(busId, serial=f"S{number % 16 + 1}")
            while bound.get(busId, 0) == before:  # until trial's timeout
                await deferLater(reactor, 0.001)

        for number in range(WARM_UP):
            await cycle(number)
        threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
        gc.collect()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for number in range(WARM_UP, WARM_UP + CYCLES):
                await cycle(number)
            await backend.monitor.refresh(None)  # as every 30 s
            del kernel.writes[:], kernel.reads[:]
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        self.assertLess(after - before, GROWTH)
        while threading.active_count() > threads + 1:  # some may be about to end
            await deferLater(reactor, 0.001)
        self.assertLessEqual(len(os.listdir("/proc/self/fd")), descriptors)
