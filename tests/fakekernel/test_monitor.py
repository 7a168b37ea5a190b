"""
The inventory keeps step with the kernel.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from usbip_server.kernel.monitor import DeviceMonitor
from usbip_server.kernel.scan import Scanner
from usbip_server.kernel.strings import SECONDS
from usbip_server.kernel.usbids import UsbIds
from usbip_server.model.device import DeviceState, UsbDevice
from usbip_server.model.inventory import Inventory
from usbip_server.runtime.threads import BlockingCalls
from usbip_server.testing import FakeKernel, FakeReactor


class WatchTests(SynchronousTestCase):
    """
    Plug, unplug, bind, and what nobody announces.
    """

    def setUp(self) -> None:
        self.kernel = FakeKernel()
        self.kernel.plug("1-1", serial="ONE")
        self.kernel.plug("1-10", "0403", "6001")
        self.reactor = FakeReactor()
        self.inventory = Inventory()
        self.calls = BlockingCalls(self.reactor, self.reactor.spawn)
        self.monitor = DeviceMonitor(
            self.kernel,
            Scanner(self.kernel, UsbIds([])),
            self.inventory,
            self.calls,
            self.reactor,
        )

    def start(self) -> None:
        """Start, and take the first look."""
        self.successResultOf(Deferred.fromCoroutine(self.monitor.start()))

    def busIds(self) -> list[str]:
        """What the inventory has."""
        return [device.busId for device in self.inventory.snapshot.devices]

    def device(self, busId: str = "1-1") -> UsbDevice:
        """One device of it."""
        device = self.inventory.get(busId)
        assert device is not None
        return device

    def test_first(self) -> None:
        """The first look finds all, in bus order; hubs and interfaces are none."""
        self.kernel.plug("1-2", deviceClass=9)
        self.kernel.plug("4-1", imported=True)
        self.start()
        self.assertEqual(self.busIds(), ["1-1", "1-10"])
        self.assertEqual(self.device().serial, "ONE")
        self.assertIsNone(self.device("1-10").serial)

    def test_plug(self) -> None:
        """What is plugged in is there as soon as its uevents are read."""
        self.start()
        self.kernel.plug("1-2", serial="TWO")
        self.reactor.deliver()
        self.assertEqual(self.busIds(), ["1-1", "1-2", "1-10"])

    def test_unplug(self) -> None:
        """What is unplugged is gone."""
        self.start()
        self.kernel.unplug("1-1")
        self.reactor.deliver()
        self.assertEqual(self.busIds(), ["1-10"])

    def test_replug(self) -> None:
        """Another device at the same place has its own strings."""
        self.start()
        self.kernel.unplug("1-1")
        self.kernel.plug("1-1", serial="OTHER")
        self.reactor.deliver()
        self.assertEqual(self.device().serial, "OTHER")

    def test_reset(self) -> None:
        """A device that is being reset, and has no number for a moment, is the same still."""
        self.start()
        before = self.inventory.snapshot
        read = self.kernel.read
        self.patch(
            self.kernel,
            "read",
            lambda path: b"0\n" if path.endswith("1-1/devnum") else read(path),
        )
        self.successResultOf(Deferred.fromCoroutine(self.monitor.refresh({"1-1"})))
        self.assertIs(self.inventory.snapshot, before)

    def test_boundByAnother(self) -> None:
        """That another program binds a device is seen."""
        self.start()
        for path, data in (
            ("usb/unbind", b"1-1"),
            ("usbip-host/match_busid", b"add 1-1"),
            ("usbip-host/bind", b"1-1"),
        ):
            self.kernel.write(f"bus/usb/drivers/{path}", data)
        self.reactor.deliver()
        self.assertIs(self.device().state, DeviceState.BOUND)
        self.assertEqual(self.device().driver, "usbip-host")
        # A client comes and goes, which nothing announces: seen within the tick.
        self.kernel.importDevice("1-1")
        self.reactor.advance(2)
        self.assertIs(self.device().state, DeviceState.IN_USE)
        self.kernel.releaseDevice("1-1")
        self.reactor.advance(2)
        self.assertIs(self.device().state, DeviceState.BOUND)

    def test_lost(self) -> None:
        """Lost messages lead to a look at everything."""
        self.start()
        uevents, self.kernel.uevents = self.kernel.uevents, None
        assert uevents is not None
        self.kernel.plug("1-2")
        self.kernel.unplug("1-1")
        uevents.overrun = True
        self.reactor.deliver()
        self.assertEqual(self.busIds(), ["1-2", "1-10"])

    def test_lostInTheStart(self) -> None:
        """What happens while the first look is taken is looked at again."""
        self.reactor.hold = True
        started = Deferred.fromCoroutine(self.monitor.start())
        self.kernel.plug("1-2")
        self.reactor.deliver()
        self.reactor.runThreads()
        self.successResultOf(started)
        self.assertEqual(self.busIds(), ["1-1", "1-2", "1-10"])

    def test_unannounced(self) -> None:
        """What no message told is found by the slow check."""
        self.start()
        self.kernel.plug("1-2")
        self.reactor.deliver()  # so that it is known that there are messages
        self.kernel.uevents = None
        self.kernel.unplug("1-1")
        self.advance(29)
        self.assertIn("1-1", self.busIds())
        self.advance(3)
        self.assertNotIn("1-1", self.busIds())

    def advance(self, seconds: int) -> None:
        """Let time pass."""
        for _ in range(seconds):
            self.reactor.advance(1)

    def test_deaf(self) -> None:
        """
        Where there are no messages at all, it looks whenever the kernel has counted one,
        and not otherwise.
        """
        self.kernel.announces = False
        self.start()
        self.kernel.plug("1-2")
        self.advance(2)
        self.assertEqual(self.busIds(), ["1-1", "1-2", "1-10"])
        self.kernel.reads.clear()
        self.advance(10)
        self.assertEqual(set(self.kernel.reads), {"kernel/uevent_seqnum"})

    def test_deafUnawares(self) -> None:
        """A socket that stays silent while the kernel counts on is found out."""
        self.start()
        self.kernel.uevents = None
        self.kernel.plug("1-2")
        self.advance(4)
        self.assertEqual(self.busIds(), ["1-1", "1-2", "1-10"])

    def test_stringsOnce(self) -> None:
        """Strings are read once for each stay of a device."""
        self.start()
        self.advance(120)
        serials = [path for path in self.kernel.reads if path.endswith("/serial")]
        self.assertEqual(len(serials), 2)

    def test_lockFree(self) -> None:
        """All but the strings comes from attributes that need no lock."""
        self.start()
        names = {path.rpartition("/")[2] for path in self.kernel.reads}
        strings = {"serial", "manufacturer", "product"}
        self.assertEqual(names - strings, {"descriptors", "devnum", "speed", "uevent_seqnum"})

    def test_silent(self) -> None:
        """
        A device whose strings do not come is listed without them, delays the others only
        that long, and is completed when they come.
        """
        self.start()
        self.reactor.hold = True
        self.kernel.plug("1-2", serial="SLOW")
        self.reactor.deliver()
        self.reactor.threads.pop(0)()  # the first look
        slow = self.reactor.threads.pop(0)  # its strings
        self.reactor.runThreads()
        self.reactor.advance(SECONDS)
        self.assertIsNone(self.device("1-2").serial)
        self.kernel.plug("1-3", serial="QUICK")
        self.reactor.deliver()
        self.assertEqual(self.device("1-3").serial, "QUICK")
        slow()
        self.assertEqual(self.device("1-2").serial, "SLOW")

    def test_manySilent(self) -> None:
        """Devices that do not answer hold up neither each other nor anything else."""
        self.start()
        call = self.calls.call

        async def mute(key: Hashable, seconds: float, *more: Any, **rest: Any) -> Any:
            self.reactor.hold = seconds == SECONDS
            result = Deferred.fromCoroutine(call(key, seconds, *more, **rest))
            self.reactor.hold = False
            return await result

        self.calls.call = mute  # type: ignore[method-assign]
        for port in range(2, 8):
            self.kernel.plug(f"1-{port}")
        self.reactor.deliver()
        self.calls.call = call  # type: ignore[method-assign]
        self.kernel.plug("1-9", serial="QUICK")
        self.reactor.deliver()
        self.assertEqual(self.busIds(), ["1-1", "1-9", "1-10"])
        self.reactor.advance(SECONDS)
        self.assertEqual(len(self.busIds()), 9)
        self.reactor.runThreads()

    def test_noThreads(self) -> None:
        """When the system has no threads for a while, it goes on looking afterwards."""
        self.start()
        spawn = self.reactor.spawn
        for seconds in (1, 2, 3, 30):

            def refuse(function: object) -> None:
                raise RuntimeError("can't start new thread")

            self.calls._spawn = refuse
            self.kernel.plug("1-2")
            self.reactor.deliver()
            self.advance(seconds)
            self.flushLoggedErrors(RuntimeError)
            self.calls._spawn = spawn
            self.advance(32)
            self.assertEqual(self.busIds(), ["1-1", "1-2", "1-10"])
            self.kernel.unplug("1-2")
            self.reactor.deliver()
            self.assertEqual(self.busIds(), ["1-1", "1-10"])

    def test_notDeafForEver(self) -> None:
        """Once a message comes it relies on messages again."""
        self.start()
        uevents, self.kernel.uevents = self.kernel.uevents, None
        self.kernel.plug("1-2")
        self.advance(4)
        self.kernel.uevents = uevents
        self.kernel.plug("1-3")
        self.reactor.deliver()
        self.advance(2)
        self.kernel.reads.clear()
        self.kernel.uevents = None
        self.kernel.unplug("1-2")
        self.advance(10)
        self.assertIn("1-2", self.busIds())
        self.kernel.uevents = uevents

    def test_noUsb(self) -> None:
        """A kernel without USB: the inventory says so, until there is some."""
        found = self.kernel.list

        def none(path: str) -> list[str]:
            raise FileNotFoundError(2, "No such file or directory", path)

        self.kernel.list = none  # type: ignore[method-assign]
        self.start()
        self.assertIn("modprobe", self.inventory.trouble or "")
        self.kernel.list = found  # type: ignore[method-assign]
        self.advance(30)
        self.assertIsNone(self.inventory.trouble)
        self.assertEqual(self.busIds(), ["1-1", "1-10"])

    def test_hanging(self) -> None:
        """A scan that hangs is said, and does not keep the daemon from starting."""
        self.reactor.hold = True
        started = Deferred.fromCoroutine(self.monitor.start())
        self.reactor.advance(30)
        self.successResultOf(started)

    def test_vanishing(self) -> None:
        """A device that vanishes in the middle of a scan is left out, at every step."""
        read = self.kernel.read
        for step in range(1, 20):
            self.kernel.plug("1-3", serial="BRIEF")
            countdown = [step]

            def vanish(path: str, left: list[int] = countdown) -> bytes:
                left[0] -= "/1-3/" in path
                if left[0] == 0 and "1-3" in str(self.kernel.list("bus/usb/devices")):
                    self.kernel.unplug("1-3")
                return read(path)

            self.kernel.read = vanish  # type: ignore[method-assign]
            self.successResultOf(Deferred.fromCoroutine(self.monitor.refresh(None)))
            self.kernel.read = read  # type: ignore[method-assign]
            self.assertEqual([b for b in self.busIds() if b != "1-3"], ["1-1", "1-10"])

    def test_manyChanges(self) -> None:
        """A thousand plugs and unplugs leave nothing behind."""
        self.start()
        for _ in range(1000):
            self.kernel.unplug("1-1")
            self.kernel.plug("1-1", serial="ONE")
            self.reactor.deliver()
        self.assertEqual(self.busIds(), ["1-1", "1-10"])
        self.assertEqual(self.reactor.threads, [])
        self.advance(30)
        self.kernel.reads.clear()
        self.successResultOf(Deferred.fromCoroutine(self.monitor.refresh({"1-1"})))
        self.assertNotIn("bus/usb/devices/1-1/serial", self.kernel.reads)

    def test_stop(self) -> None:
        """When it stops it listens and looks no more."""
        self.start()
        self.monitor.stop()
        self.kernel.reads.clear()
        self.advance(60)
        self.assertEqual((self.kernel.reads, self.reactor.readers), ([], []))

    def tearDown(self) -> None:
        self.monitor.stop()
