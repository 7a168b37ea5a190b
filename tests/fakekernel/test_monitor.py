"""
Tests of L{usbip_server.kernel.monitor}: the inventory follows the kernel.
"""

from __future__ import annotations

import errno
from collections.abc import Hashable
from typing import Any, NoReturn

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from usbip_server.kernel.monitor import DeviceMonitor
from usbip_server.kernel.scan import IS_HUB, IS_IMPORTED, Scanner
from usbip_server.kernel.strings import SECONDS
from usbip_server.kernel.usbids import UsbIds
from usbip_server.model.device import OWN_STRINGS, DeviceState, UsbDevice
from usbip_server.model.inventory import Change, ChangeKind, Inventory
from usbip_server.runtime.threads import BlockingCalls
from usbip_server.testing import FakeKernel, FakeReactor

LOCK_FREE = {"authorized", "descriptors", "devnum", "speed", "uevent_seqnum"}
"""The attributes that are read of each device, besides its strings."""


class MonitorCase(SynchronousTestCase):
    """
    A monitor of the devices 1-1 and 1-10.
    """

    def setUp(self) -> None:
        self.kernel = FakeKernel()
        self.kernel.plug("1-1", serial="ONE")
        self.kernel.plug("1-10", "0403", "6001")
        self.reactor = FakeReactor()
        self.inventory = Inventory()
        self.calls = BlockingCalls(self.reactor, self.reactor.spawn)
        scanner = Scanner(self.kernel, UsbIds([]))
        self.monitor = DeviceMonitor(self.kernel, scanner, self.inventory, self.calls, self.reactor)
        self.addCleanup(self.monitor.stop)

    def start(self) -> None:
        """Start the monitor."""
        self.successResultOf(Deferred.fromCoroutine(self.monitor.start()))

    def refresh(self, *busIds: str) -> None:
        """Read devices, or all."""
        self.successResultOf(Deferred.fromCoroutine(self.monitor.refresh(busIds or None)))

    def busIds(self) -> list[str]:
        """The bus ids in the inventory."""
        return [device.busId for device in self.inventory.snapshot.devices]

    def device(self, busId: str = "1-1") -> UsbDevice:
        """A device in the inventory."""
        device = self.inventory.get(busId)
        assert device is not None
        return device

    def advance(self, seconds: int) -> None:
        """Let time pass."""
        for _ in range(seconds):
            self.reactor.advance(1)


class UeventTests(MonitorCase):
    """
    Changes that are announced by uevents, and those that are not.
    """

    def test_start(self) -> None:
        """After the start the inventory contains all devices, but no interfaces; hubs and devices
        imported from another server are excluded, with the reason. All but the strings is read
        from attributes that need no lock."""
        self.kernel.plug("1-2", deviceClass=9)
        self.kernel.plug("4-1", imported=True)
        self.start()
        self.assertEqual(self.busIds(), ["1-1", "1-10"])
        reasons = {busId: it.trouble for busId, it in self.inventory.excluded.items()}
        self.assertEqual(reasons, {"1-2": IS_HUB, "4-1": IS_IMPORTED})
        self.assertEqual((self.device().serial, self.device("1-10").serial), ("ONE", None))
        names = {path.rpartition("/")[2] for path in self.kernel.reads}
        strings = {"serial", "manufacturer", "product"}
        self.assertEqual(names - strings, LOCK_FREE)

    def test_plugs(self) -> None:
        """A uevent updates the inventory: plugged in, unplugged, and replaced by another device."""
        self.start()
        self.kernel.plug("1-2", serial="TWO")
        self.reactor.deliver()
        self.assertEqual(self.busIds(), ["1-1", "1-2", "1-10"])
        self.kernel.unplug("1-2")
        self.kernel.unplug("1-1")
        self.kernel.plug("1-1", serial="OTHER")
        self.reactor.deliver()
        self.assertEqual((self.busIds(), self.device().serial), (["1-1", "1-10"], "OTHER"))

    def test_reset(self) -> None:
        """A device that has no number while it is being reset is the same device."""
        self.start()
        before = self.inventory.snapshot
        read = self.kernel.read
        self.patch(
            self.kernel,
            "read",
            lambda path: b"0\n" if path.endswith("1-1/devnum") else read(path),
        )
        self.refresh("1-1")
        self.assertIs(self.inventory.snapshot, before)

    def test_boundByAnother(self) -> None:
        """A bind by another program is noticed by its uevent, and a client that imports or releases
        the device, which no uevent announces, within two seconds."""
        self.start()
        for path, data in (
            ("usb/unbind", b"1-1"),
            ("usbip-host/match_busid", b"add 1-1"),
            ("usbip-host/bind", b"1-1"),
        ):
            self.kernel.write(f"bus/usb/drivers/{path}", data)
        self.reactor.deliver()
        shown = (self.device().state, self.device().driver)
        self.assertEqual(shown, (DeviceState.BOUND, "usbip-host"))
        self.kernel.importDevice("1-1")
        self.reactor.advance(2)
        self.assertIs(self.device().state, DeviceState.IN_USE)
        self.kernel.releaseDevice("1-1")
        self.reactor.advance(2)
        self.assertIs(self.device().state, DeviceState.BOUND)

    def test_lost(self) -> None:
        """After an overflow of the socket all devices are read."""
        self.start()
        uevents, self.kernel.uevents = self.kernel.uevents, None
        assert uevents is not None
        self.kernel.plug("1-2")
        self.kernel.unplug("1-1")
        uevents.overrun = True
        self.reactor.deliver()
        self.assertEqual(self.busIds(), ["1-2", "1-10"])

    def test_duringStart(self) -> None:
        """A device that is plugged in while the devices are read for the first time is not
        missed; a first read that hangs does not keep the daemon from starting."""
        self.reactor.hold = True
        started = Deferred.fromCoroutine(self.monitor.start())
        self.kernel.plug("1-2")
        self.reactor.deliver()
        self.reactor.advance(30)
        self.successResultOf(started)
        self.reactor.runThreads()
        self.advance(31)
        self.assertEqual(self.busIds(), ["1-1", "1-2", "1-10"])

    def test_slowScan(self) -> None:
        """Without a uevent a change is found within C{rescan} seconds."""
        self.start()
        self.kernel.plug("1-2")
        self.reactor.deliver()  # uevents are received
        self.kernel.uevents = None
        self.kernel.unplug("1-1")
        self.advance(29)
        self.assertIn("1-1", self.busIds())
        self.advance(3)
        self.assertNotIn("1-1", self.busIds())

    def test_noUevents(self) -> None:
        """Where no uevents are received, be it without a socket or with one that stays silent, all
        devices are read whenever the kernel has counted one, and not otherwise."""
        for hasSocket in (False, True):
            self.setUp()
            self.kernel.announces = hasSocket
            self.start()
            self.kernel.uevents = None
            self.kernel.plug("1-2")
            self.advance(4)
            self.assertEqual(self.busIds(), ["1-1", "1-2", "1-10"])
            self.kernel.reads.clear()
            self.advance(10)
            self.assertEqual(set(self.kernel.reads), {"kernel/uevent_seqnum"})

    def test_ueventsAgain(self) -> None:
        """After a uevent has been received, uevents are relied on again."""
        self.start()
        uevents, self.kernel.uevents = self.kernel.uevents, None
        self.kernel.plug("1-2")
        self.advance(4)
        self.kernel.uevents = uevents
        self.kernel.plug("1-3")
        self.reactor.deliver()
        self.advance(2)
        self.kernel.uevents = None
        self.kernel.unplug("1-2")
        self.advance(10)
        self.assertIn("1-2", self.busIds())

    def test_manyPlugs(self) -> None:
        """A thousand replugs leave nothing behind; the strings are read once for each plug."""
        self.start()
        for _ in range(1000):
            self.kernel.unplug("1-1")
            self.kernel.plug("1-1", serial="ONE")
            self.reactor.deliver()
        self.assertEqual((self.busIds(), self.reactor.threads), (["1-1", "1-10"], []))
        self.kernel.reads.clear()
        self.advance(120)
        self.refresh("1-1")
        self.assertEqual([path for path in self.kernel.reads if path.endswith("/serial")], [])

    def test_stop(self) -> None:
        """After the stop nothing is read."""
        self.start()
        self.monitor.stop()
        self.kernel.reads.clear()
        self.advance(60)
        self.assertEqual((self.kernel.reads, self.reactor.readers), ([], []))


class TroubleTests(MonitorCase):
    """
    Devices that do not answer, and machines without USB or threads.
    """

    def test_slowStrings(self) -> None:
        """A device whose strings do not come is listed without them, delays the others only that
        long, and is completed when they come."""
        self.start()
        self.reactor.hold = True
        self.kernel.plug("1-2", serial="SLOW")
        self.reactor.deliver()
        self.reactor.threads.pop(0)()  # the attributes
        slow = self.reactor.threads.pop(0)  # the strings
        self.reactor.runThreads()
        self.reactor.advance(SECONDS)
        shown = self.device("1-2")
        self.assertEqual((shown.serial, shown.unknown), (None, OWN_STRINGS))
        self.kernel.plug("1-3", serial="QUICK")
        self.reactor.deliver()
        self.assertEqual(self.device("1-3").serial, "QUICK")
        slow()
        shown = self.device("1-2")
        self.assertEqual((shown.serial, shown.unknown), ("SLOW", ()))

    def test_unreadableStrings(self) -> None:
        """A device whose strings cannot be read has unknown strings until a scan succeeds in
        reading them; a device without a string has none."""
        self.start()
        self.assertEqual(self.device("1-10").unknown, ())
        read = self.kernel.read
        errors = [OSError(errno.EINTR, "Interrupted system call")]

        def fail(path: str) -> bytes:
            if path.endswith("1-2/serial") and errors:
                raise errors[0]
            return read(path)

        self.patch(self.kernel, "read", fail)
        self.kernel.plug("1-2", serial="TWO")
        self.reactor.deliver()
        for _ in range(2):
            shown = self.device("1-2")
            self.assertEqual((shown.serial, shown.unknown), (None, OWN_STRINGS))
            self.advance(31)
        changes: list[Change] = []
        self.inventory.subscribe(changes.extend)
        errors.clear()
        self.advance(31)
        shown = self.device("1-2")
        self.assertEqual((shown.serial, shown.unknown), ("TWO", ()))
        self.assertEqual([change.kind for change in changes], [ChangeKind.CHANGED])

    def test_loggedOnce(self) -> None:
        """A device that cannot be read is logged once, and again after it could be read; a read
        that hangs is logged once."""
        self.start()
        read = self.kernel.read

        def fail(path: str) -> bytes:
            if path.endswith("1-2/descriptors"):
                raise OSError(errno.EIO, "Input/output error")
            return read(path)

        self.patch(self.kernel, "read", fail)
        self.kernel.plug("1-2")
        with capturedLogs() as events:
            for _ in range(2):
                for _ in range(10):
                    self.refresh()
                self.kernel.unplug("1-2")
                self.refresh()
                self.kernel.plug("1-2")
            self.reactor.hold = True
            self.kernel.plug("1-3")
            self.reactor.deliver()
            self.advance(100)
        texts = [event["log_format"].partition(" device")[0] for event in events]
        self.assertEqual(texts.count("cannot read"), 2)
        self.assertEqual(
            sorted(set(texts)),
            ["cannot read", "cannot read uevent_seqnum: {error!r}", "reading the"],
        )
        self.assertEqual(len(texts), 4)
        self.reactor.runThreads()

    def test_manySlowStrings(self) -> None:
        """Several such devices do not delay each other."""
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
        """After the system had no threads for a while, the devices are read again."""

        def refuse(function: object) -> NoReturn:
            raise RuntimeError("can't start new thread")

        self.start()
        for seconds in (1, 2, 3, 30):
            self.calls._spawn = refuse
            self.kernel.plug("1-2")
            self.reactor.deliver()
            self.advance(seconds)
            self.flushLoggedErrors(RuntimeError)
            self.calls._spawn = self.reactor.spawn
            self.advance(32)
            self.assertEqual(self.busIds(), ["1-1", "1-2", "1-10"])
            self.kernel.unplug("1-2")
            self.reactor.deliver()
            self.assertEqual(self.busIds(), ["1-1", "1-10"])

    def test_noUsb(self) -> None:
        """On a kernel without USB the inventory has a trouble, until there is USB."""
        found = self.kernel.list
        kernel: Any = self.kernel

        def none(path: str) -> list[str]:
            raise FileNotFoundError(2, "No such file or directory", path)

        kernel.list = none
        self.start()
        self.assertIn("modprobe", self.inventory.trouble or "")
        kernel.list = found
        self.advance(30)
        self.assertIsNone(self.inventory.trouble)
        self.assertEqual(self.busIds(), ["1-1", "1-10"])

    def test_vanishing(self) -> None:
        """A device that vanishes before any read of a scan is left out."""
        read = self.kernel.read
        for step in range(1, 20):
            self.kernel.plug("1-3", serial="BRIEF")
            countdown = [step]

            def vanish(path: str, left: list[int] = countdown) -> bytes:
                left[0] -= "/1-3/" in path
                if left[0] == 0 and "1-3" in self.kernel.list("bus/usb/devices"):
                    self.kernel.unplug("1-3")
                return read(path)

            self.kernel.read = vanish  # type: ignore[method-assign]
            self.refresh()
            self.kernel.read = read  # type: ignore[method-assign]
            self.assertEqual([b for b in self.busIds() if b != "1-3"], ["1-1", "1-10"])
