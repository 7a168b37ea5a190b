"""
Tests of L{usbip_server.backends.sysfs} on a kernel in memory: bind and unbind. For sessions see
C{test_sysfs_sessions}.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from tests.backends.sysfscase import SysfsCase
from usbip_server.backends.sysfs import SysfsBackend, makeBackend
from usbip_server.interfaces import IUsbBackend
from usbip_server.kernel import usbip_host
from usbip_server.kernel.usbids import UsbIds
from usbip_server.model.device import DeviceState, UsbDevice
from usbip_server.model.errors import (
    DeviceInUse,
    DeviceMounted,
    NetworkInUse,
    OperationFailed,
    OperationTimedOut,
)
from usbip_server.model.options import InvalidOption
from usbip_server.testing import FakeKernel, HangingDeviceConformance, KernelExportConformance

USB, HOST = "bus/usb/drivers/usb", "bus/usb/drivers/usbip-host"


class SysfsConformanceTests(KernelExportConformance, HangingDeviceConformance, TestCase):
    """
    The conformance suite, with real threads and the real reactor.
    """

    async def makeBackend(self) -> IUsbBackend:
        self.kernel = FakeKernel()
        self.kernel.plug("1-1", serial="A1", manufacturer="QEMU", product="QEMU USB HARDDRIVE")
        self.kernel.plug("1-2.4", "0403", "6001", interfaces=((255, 255, 255),))
        return SysfsBackend(self.kernel, reactor, 30.0, UsbIds([]))

    async def importDevice(self, device: UsbDevice) -> None:
        self.kernel.importDevice(device.busId)

    async def unplug(self, device: UsbDevice) -> None:
        self.kernel.unplug(device.busId)

    async def plug(self, device: UsbDevice) -> None:
        self.kernel.plug(device.busId, serial="A1", manufacturer="QEMU", product="OTHER")

    async def hang(self, device: UsbDevice) -> None:
        self.kernel.hang(device.busId)

    async def revive(self, device: UsbDevice) -> None:
        self.kernel.revive(device.busId)


class BindTests(SysfsCase):
    """
    Bind and unbind.
    """

    def test_writes(self) -> None:
        """A bind is three writes without line feeds, in the safe order. Later binds use the entry
        in usbip-host's table again; it is never deleted."""
        self.successResultOf(self.bind())
        self.assertEqual(
            self.kernel.writes,
            [(f"{USB}/unbind", "1-1"), (f"{HOST}/match_busid", "add 1-1"), (f"{HOST}/bind", "1-1")],
        )
        self.successResultOf(self.unbind())
        self.rebind("1-1", "1-1")
        verbs = [text for path, text in self.kernel.writes if path.endswith("match_busid")]
        self.assertEqual((verbs, self.kernel.table()), (["add 1-1"], ["1-1"]))
        self.assertEqual(self.kernel.driver("1-1"), "usb")

    def test_module(self) -> None:
        """The module is loaded if necessary; if that fails, the device keeps its driver."""
        self.kernel.loaded = self.kernel.loadable = False
        self.fails(self.bind(), "modprobe usbip-host")
        self.assertEqual((self.kernel.driver("1-1"), self.kernel.writes), ("usb", []))
        self.kernel.loadable = True
        self.assertIs(self.successResultOf(self.bind()).state, DeviceState.BOUND)

    def test_refused(self) -> None:
        """If the kernel refuses a write, the message contains advice, and the device keeps its
        driver."""
        for number, text in ((errno.EACCES, "as root"), (errno.EROFS, "read-only")):
            self.kernel.refuse = number
            self.fails(self.bind(), text)
            self.assertEqual(self.kernel.driver("1-1"), "usb")

    def test_poisonedEntry(self) -> None:
        """A device that usbip-host refuses is given back to its driver."""
        for path, text in (
            (f"{USB}/unbind", "1-2"),
            (f"{HOST}/match_busid", "add 1-2"),
            (f"{HOST}/bind", "1-2"),
            (f"{HOST}/match_busid", "del 1-2"),  # D6
            (f"{HOST}/unbind", "1-2"),
            (f"{USB}/bind", "1-2"),
        ):
            self.kernel.write(path, text.encode())
        self.reactor.deliver()
        self.fails(self.bind("1-2"), "modprobe -r usbip-host")
        self.assertEqual(self.kernel.driver("1-2"), "usb")
        self.assertIs(self.device("1-2").state, DeviceState.FREE)

    def test_unboundByOthers(self) -> None:
        """A device that another program is unbinding is bound when that has ended. A bind that
        the kernel refuses with ENODEV meanwhile is tried again."""
        self.patch(usbip_host, "SETTLE_SECONDS", 10)
        self.successResultOf(self.bind())
        self.kernel.write(f"{HOST}/unbind", b"1-1")
        self.reactor.deliver()
        read, reads, refusals = self.kernel.read, [0], [1]

        def readOrRebind(path: str) -> bytes:
            reads[0] += path.endswith("match_busid")
            if reads[0] == 3 and self.kernel.driver("1-1") is None:
                self.kernel.write(f"{HOST}/rebind", b"1-1")
            return read(path)

        def refuseOnce() -> None:
            if refusals:
                refusals.pop()
                raise OSError(errno.ENODEV, "No such device")

        self.patch(self.kernel, "read", readOrRebind)
        self.onWrite("usbip-host/bind", before=refuseOnce)
        self.assertIs(self.successResultOf(self.bind()).state, DeviceState.BOUND)
        self.assertEqual((refusals, self.kernel.table()), ([], ["1-1"]))

    def test_driverless(self) -> None:
        """An unbind gives a device that has no driver back to its driver."""
        self.successResultOf(self.bind())
        troubles = [OSError(errno.EIO, "Input/output error")]

        def refuseOnce() -> None:
            if troubles:
                raise troubles.pop()

        self.onWrite("usb/bind", before=refuseOnce)
        self.fails(self.unbind(), "Input/output error")
        self.assertIsNone(self.kernel.driver("1-1"))
        self.successResultOf(self.unbind())
        self.assertEqual(self.kernel.driver("1-1"), "usb")

    def test_error(self) -> None:
        """A device that usbip-host could not reset is shown as C{error}; a bind repairs it."""
        self.successResultOf(self.bind())
        self.kernel.breakDevice("1-1")
        self.reactor.advance(2)
        self.assertIs(self.device().state, DeviceState.ERROR)
        self.assertIn("attach it again", self.device().trouble or "")
        self.assertIs(self.successResultOf(self.bind()).state, DeviceState.BOUND)

    def test_inUse(self) -> None:
        """A bind of a device that is in use writes nothing."""
        self.successResultOf(self.bind())
        self.kernel.importDevice("1-1")
        self.kernel.writes.clear()
        self.fails(self.bind(), "in use", DeviceInUse)
        self.assertEqual((self.kernel.writes, self.device().state), ([], DeviceState.IN_USE))

    def test_mounted(self) -> None:
        """A bind of a disk that this machine uses changes nothing, unless C{allowMounted} is set.
        The disks of a bound device are not mounted any more."""
        self.kernel.loaded = False
        self.kernel.mount("1-1", "/boot")
        self.fails(self.bind(), "1 is mounted on /boot. Unmount it there", DeviceMounted)
        self.assertEqual((self.kernel.writes, self.kernel.loaded), ([], False))
        self.assertIs(self.device().state, DeviceState.FREE)
        self.assertIs(self.successResultOf(self.bind(allowMounted=True)).state, DeviceState.BOUND)
        self.successResultOf(self.bind())
        self.successResultOf(self.unbind())
        self.fails(self.bind(), "mounted", DeviceMounted)
        self.kernel.unmount("1-1")
        self.successResultOf(self.bind())

    def test_network(self) -> None:
        """A bind of a network adapter that this machine is reached through fails, unless
        C{allowMounted} is set."""
        self.kernel.route("1-1", "eth0")
        self.fails(self.bind(), "uses: eth0 has the default route", NetworkInUse)
        self.assertEqual(self.kernel.writes, [])
        self.assertIs(self.successResultOf(self.bind(allowMounted=True)).state, DeviceState.BOUND)

    def test_notAuthorized(self) -> None:
        """A device that the kernel has not authorized is shown as C{error} and is not bound, until
        it is authorized."""
        text = "USBGuard or another program blocks it. To allow it: usbguard allow-device"
        self.kernel.authorize("1-1", False)
        self.reactor.deliver()
        self.assertIs(self.device().state, DeviceState.ERROR)
        self.assertIn(text, self.device().trouble or "")
        self.fails(self.bind(), text)
        self.assertEqual(self.kernel.writes, [])
        self.kernel.authorize("1-1", True)
        self.reactor.deliver()
        self.assertIs(self.device().state, DeviceState.FREE)
        self.successResultOf(self.bind())
        self.kernel.authorize("1-1", False)
        self.reactor.advance(2)  # no uevent announces it for a bound device
        self.assertIs(self.device().state, DeviceState.ERROR)
        self.fails(self.bind(), "echo 1 > /sys/bus/usb/devices/1-1/authorized")

    def test_imported(self) -> None:
        """A device that was imported from another server is neither listed nor bound."""
        self.kernel.plug("4-1", imported=True)
        self.reactor.deliver()
        self.assertIsNone(self.backend.inventory.get("4-1"))
        device = UsbDevice(
            busId="4-1", vendorId="0000", productId="0000", description="x", deviceNumber=5
        )
        binding = Deferred.fromCoroutine(self.backend.bind(device, 30))
        self.fails(binding, "imported from another server")

    def test_options(self) -> None:
        """An invalid option is refused with the path of its key."""
        makeBackend({"root": "/sys", "rescan": 5}, self.reactor)
        for options, path in (({"rot": "/sys"}, ("rot",)), ({"rescan": 0}, ("rescan",))):
            error = self.assertRaises(InvalidOption, makeBackend, options, self.reactor)
            self.assertEqual(error.path, path)


class TableTests(SysfsCase):
    """
    The 16 places of usbip-host's table.
    """

    def test_full(self) -> None:
        """If other devices have all places, a bind writes nothing."""
        self.fillTable(16)
        self.fails(self.bind(), "all 16 places")
        self.assertEqual(self.kernel.writes, [])

    def test_reclaimed(self) -> None:
        """The place of a device that was bound by this process, and is not now, is freed."""
        self.rebind("1-10")
        self.fillTable(15)
        self.kernel.mount("1-1", "/boot")
        self.successResultOf(self.bind(allowMounted=True))
        self.assertIn("1-1", self.kernel.table())
        self.assertNotIn("1-10", self.kernel.table())

    def test_notReclaimed(self) -> None:
        """A place is not freed if its device is bound, was unplugged since (the kernel would follow
        a freed pointer, D3), or if the driver was reloaded since (D2)."""
        self.successResultOf(self.bind("1-2"))
        self.rebind("1-10")
        self.kernel.unplug("1-10")
        self.kernel.plug("1-10")
        self.fillTable(14)
        self.fails(self.bind(), "all 16 places")  # before the uevents are read
        self.reactor.deliver()
        self.fails(self.bind(), "all 16 places")
        self.assertNotIn("rebind", str(self.kernel.writes))

    def test_notReclaimedReloaded(self) -> None:
        """The same after the driver was reloaded: the entry was never bound (D2)."""
        self.rebind("1-10")
        self.kernel.unload()
        self.kernel.loadModule("usbip-host")
        self.kernel.fillTable("1-10")
        self.fillTable(15)
        self.fails(self.bind(), "all 16 places")
        self.assertNotIn("rebind", str(self.kernel.writes))

    def test_lastPlaceTaken(self) -> None:
        """If another program takes the last place during a bind, a place is freed."""
        self.rebind("1-10")
        self.fillTable(14)
        self.onWrite("match_busid", before=lambda: self.kernel.fillTable("1-2"))
        self.successResultOf(self.bind())
        self.assertNotIn("1-10", self.kernel.table())

    def test_reclaimHangs(self) -> None:
        """A device that hangs while its place is freed delays a bind of another by 2 s, and is not
        the reason why that one fails."""
        self.rebind("1-10", "1-2")
        self.fillTable(14)
        self.reactor.hold = True
        result = self.bind()
        for _ in range(3):  # finds the table full, and reads the device
            self.reactor.threads.pop(0)()
        self.reactor.threads.clear()  # the thread that frees the first place
        self.reactor.hold = False
        self.reactor.advance(2)
        self.assertIs(self.successResultOf(result).state, DeviceState.BOUND)
        self.assertEqual(len({"1-10", "1-2"} & set(self.kernel.table())), 1)


class StuckTests(SysfsCase):
    """
    Devices that hang or vanish during a bind.
    """

    def test_deadline(self) -> None:
        """A bind that hangs fails at its deadline, and the device is shown as C{error} until it
        ends; it is undone then."""
        self.reactor.hold = True
        stuck = self.bind()
        held = self.takeThread()
        self.successResultOf(self.bind("1-2"))
        self.reactor.advance(29.9)
        self.assertNoResult(stuck)
        self.reactor.advance(0.2)
        self.fails(stuck, "has not finished the attach within 30 s", OperationTimedOut)
        self.assertIs(self.device().state, DeviceState.ERROR)
        self.fails(self.bind(), "still stuck", OperationTimedOut)
        held()
        self.assertIs(self.device().state, DeviceState.FREE)
        self.assertEqual(self.kernel.driver("1-1"), "usb")
        self.successResultOf(self.bind())

    def test_lateSuccess(self) -> None:
        """A bind that succeeds after its deadline is undone."""
        self.onWrite("usbip-host/bind", after=lambda: self.reactor.advance(31))
        self.reactor.hold = True
        result = self.bind()
        self.reactor.runThreads()
        self.fails(result, "has not finished the attach", OperationTimedOut)
        self.assertEqual(self.kernel.driver("1-1"), "usb")
        self.assertIs(self.device().state, DeviceState.FREE)

    def test_stop(self) -> None:
        """C{stop} waits for no device: binds in progress fail, and are undone when they end."""
        self.reactor.hold = True
        stuck = self.bind()
        self.successResultOf(Deferred.fromCoroutine(self.backend.stop()))
        self.failureResultOf(stuck, OperationTimedOut)
        self.assertEqual((self.reactor.getDelayedCalls(), self.reactor.readers), ([], []))
        self.reactor.runThreads()
        self.assertEqual(self.kernel.driver("1-1"), "usb")

    def test_unpluggedBetweenWrites(self) -> None:
        """A bind fails if the device is unplugged between two writes."""
        self.onWrite("match_busid", after=lambda: self.kernel.unplug("1-1"))
        self.fails(self.bind(), "1-1")
        self.reactor.deliver()
        self.assertIsNone(self.backend.inventory.get("1-1"))

    def test_vanishing(self) -> None:
        """A bind fails without a bug if the driver or the device vanishes before any read."""
        self.successResultOf(self.bind())
        steps = len(self.kernel.reads)
        self.successResultOf(self.unbind())
        for way in ("unload", "unplug"):
            for step in range(1, steps):
                self.vanish(way, step)

    def vanish(self, way: str, step: int) -> None:
        """Bind; the driver is unloaded, or the device is unplugged, before a read."""
        count = 0
        names = ("read", "readlink", "list", "directories")
        originals: dict[str, Callable[[str], Any]] = {
            name: getattr(self.kernel, name) for name in names
        }

        def wrapped(path: str, name: str) -> Any:
            nonlocal count
            count += 1
            if count == step and way == "unload":
                self.kernel.unload()
                self.kernel.loadable = False
            elif count == step:
                self.kernel.unplug("1-2")
            return originals[name](path)

        for name in names:
            setattr(self.kernel, name, lambda path, name=name: wrapped(path, name))
        result = self.bind("1-2")
        for name in names:
            setattr(self.kernel, name, originals[name])
        if not isinstance(result.result, UsbDevice):
            message = str(self.failureResultOf(result, OperationFailed).value)
            self.assertNotIn("bug", message)
        self.kernel.loaded = self.kernel.loadable = True
        if way == "unplug":
            if "1-2" in self.kernel.list("bus/usb/devices"):
                self.kernel.unplug("1-2")
            self.kernel.plug("1-2", serial="S1-2")
        self.reactor.deliver()
        self.successResultOf(self.unbind("1-2"))
        self.assertEqual(self.kernel.driver("1-2"), "usb")
