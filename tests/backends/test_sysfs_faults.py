"""
The sysfs backend when the kernel or a device does not do its part.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from twisted.internet.defer import Deferred

from tests.backends.sysfscase import SysfsCase
from usbip_server.backends.sysfs import makeBackend
from usbip_server.model.device import DeviceState, UsbDevice
from usbip_server.model.errors import DeviceInUse, DeviceMounted, OperationFailed, OperationTimedOut
from usbip_server.model.options import InvalidOption


class SysfsFaultTests(SysfsCase):
    """
    Of bind and unbind.
    """

    def test_writes(self) -> None:
        """A bind is three writes without line feeds, in the order that is safe."""
        self.successResultOf(self.bind())
        self.assertEqual(
            self.kernel.writes,
            [
                ("bus/usb/drivers/usb/unbind", "1-1"),
                ("bus/usb/drivers/usbip-host/match_busid", "add 1-1"),
                ("bus/usb/drivers/usbip-host/bind", "1-1"),
            ],
        )

    def test_writesAgain(self) -> None:
        """A device's place in the table is used again; it is never deleted."""
        for _ in range(3):
            self.successResultOf(self.bind())
            self.successResultOf(self.unbind())
        verbs = [text for path, text in self.kernel.writes if path.endswith("match_busid")]
        self.assertEqual(verbs, ["add 1-1"])
        self.assertEqual(self.kernel.table(), ["1-1"])
        self.assertEqual(self.kernel.driver("1-1"), "usb")

    def test_noModule(self) -> None:
        """A driver that is not loaded is loaded."""
        self.kernel.loaded = False
        self.successResultOf(self.bind())
        self.assertIs(self.device().state, DeviceState.BOUND)

    def test_noModuleAtAll(self) -> None:
        """If it cannot be loaded, the message says how; the device keeps its driver."""
        self.kernel.loaded = self.kernel.loadable = False
        self.fails(self.bind(), "modprobe usbip-host")
        self.assertEqual(self.kernel.driver("1-1"), "usb")
        self.assertEqual(self.kernel.writes, [])

    def test_noPermission(self) -> None:
        """No permission: the message says what is needed."""
        for number, text in ((errno.EACCES, "as root"), (errno.EROFS, "read-only")):
            self.kernel.refuse = number
            self.fails(self.bind(), text)
            self.assertEqual(self.kernel.driver("1-1"), "usb")

    def test_refused(self) -> None:
        """A device that usbip-host refuses goes back to its driver."""
        self.kernel.fillTable("1-1")
        self.kernel.write("bus/usb/drivers/usb/unbind", b"1-2")
        self.kernel.write("bus/usb/drivers/usbip-host/match_busid", b"add 1-2")
        self.kernel.write("bus/usb/drivers/usbip-host/bind", b"1-2")
        self.kernel.write("bus/usb/drivers/usbip-host/match_busid", b"del 1-2")  # the sin, D6
        self.kernel.write("bus/usb/drivers/usbip-host/unbind", b"1-2")
        self.kernel.write("bus/usb/drivers/usb/bind", b"1-2")
        self.reactor.deliver()
        self.fails(self.bind("1-2"), "modprobe -r usbip-host")
        self.assertEqual(self.kernel.driver("1-2"), "usb")
        self.assertIs(self.device("1-2").state, DeviceState.FREE)

    def test_full(self) -> None:
        """When all 16 places are taken by others the message says so; nothing is touched."""
        self.kernel.fillTable(*(f"9-{port}" for port in range(1, 17)))
        self.fails(self.bind(), "all 16 places")
        self.assertEqual(self.kernel.writes, [])

    def test_reclaim(self) -> None:
        """A place that we have used and is free now is used for another device."""
        self.successResultOf(self.bind("1-10"))
        self.successResultOf(self.unbind("1-10"))
        self.kernel.fillTable(*(f"9-{port}" for port in range(1, 16)))
        self.successResultOf(self.bind("1-1"))
        self.assertIn("1-1", self.kernel.table())
        self.assertNotIn("1-10", self.kernel.table())

    def test_noReclaim(self) -> None:
        """
        A place is left alone if its device was unplugged since (to free it would follow a
        freed pointer), is bound now, or was never ours.
        """
        for busId in ("1-2", "1-10"):
            self.successResultOf(self.bind(busId))
        self.successResultOf(self.unbind("1-10"))
        self.kernel.unplug("1-10")
        self.kernel.plug("1-10")
        self.kernel.fillTable(*(f"9-{port}" for port in range(1, 15)))
        self.fails(self.bind("1-1"), "all 16 places")  # before anything is heard of the replug
        self.reactor.deliver()
        self.fails(self.bind("1-1"), "all 16 places")
        self.assertNotIn("rebind", str(self.kernel.writes))

    def test_stuck(self) -> None:
        """
        A device that hangs is given up in time and shown as C{error}; others are bound
        meanwhile.
        """
        self.reactor.hold = True
        stuck = self.bind("1-1")
        held = self.reactor.threads.copy()
        self.reactor.threads.clear()
        self.reactor.hold = False
        self.successResultOf(self.bind("1-2"))
        self.reactor.advance(29.9)
        self.assertNoResult(stuck)
        self.reactor.advance(0.2)
        self.fails(stuck, "has not finished the attach within 30 s", OperationTimedOut)
        self.assertIs(self.device().state, DeviceState.ERROR)
        self.fails(self.bind("1-1"), "still stuck", OperationTimedOut)
        # It comes back, much later: its driver gets it back, as nobody waits any more.
        held[0]()
        self.assertIs(self.device().state, DeviceState.FREE)
        self.assertEqual(self.kernel.driver("1-1"), "usb")
        self.successResultOf(self.bind("1-1"))

    def test_stop(self) -> None:
        """The end waits for nothing: whoever waits for a device is told, and no timer is left."""
        self.reactor.hold = True
        stuck = self.bind("1-1")
        self.successResultOf(Deferred.fromCoroutine(self.backend.stop()))
        self.failureResultOf(stuck, OperationTimedOut)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.reactor.readers, [])
        self.reactor.runThreads()
        self.assertEqual(self.kernel.driver("1-1"), "usb")

    def test_reloaded(self) -> None:
        """
        A place in the table of a driver that was unloaded since is left alone: the same
        name in the new one's table was never bound (to free it would be the end).
        """
        self.successResultOf(self.bind("1-10"))
        self.successResultOf(self.unbind("1-10"))
        self.kernel.unload()
        self.kernel.loadModule("usbip-host")
        self.kernel.fillTable("1-10", *(f"9-{port}" for port in range(1, 16)))
        self.fails(self.bind("1-1"), "all 16 places")
        self.assertNotIn("rebind", str(self.kernel.writes))

    def test_lastPlace(self) -> None:
        """
        Two binds that meet at the last place: one gets it, the other one that is freed.
        """
        self.successResultOf(self.bind("1-10"))
        self.successResultOf(self.unbind("1-10"))
        self.kernel.fillTable(*(f"9-{port}" for port in range(1, 15)))
        write = self.kernel.write

        def another(path: str, data: bytes) -> None:
            if data == b"add 1-1" and "1-2" not in self.kernel.table():
                self.kernel.fillTable("1-2")
            write(path, data)

        self.kernel.write = another  # type: ignore[method-assign]
        self.successResultOf(self.bind("1-1"))
        self.assertNotIn("1-10", self.kernel.table())

    def test_reclaimHangs(self) -> None:
        """
        A device whose place could be freed, but that hangs, holds another one up for two
        seconds and not for ever; it is not the other one that is shown as hanging.
        """
        for busId in ("1-10", "1-2"):
            self.successResultOf(self.bind(busId))
            self.successResultOf(self.unbind(busId))
        self.kernel.fillTable(*(f"9-{port}" for port in range(1, 15)))
        self.reactor.hold = True
        result = self.bind("1-1")
        self.reactor.threads.pop(0)()  # finds the table full
        while self.backend.inventory.get("1-1") and len(self.reactor.threads) < 1:
            self.reactor.threads.pop(0)()
        for _ in range(2):
            self.reactor.threads.pop(0)()  # the look after it
        self.reactor.threads.clear()  # the first that is asked hangs
        self.reactor.hold = False
        self.reactor.advance(2)
        self.assertIs(self.successResultOf(result).state, DeviceState.BOUND)
        self.assertEqual(len({"1-10", "1-2"} & set(self.kernel.table())), 1)

    def test_vanishing(self) -> None:
        """A device or driver that vanishes at any step of a bind is a plain failure."""
        self.successResultOf(self.bind("1-1"))
        steps = len(self.kernel.reads)
        self.successResultOf(self.unbind("1-1"))
        for way in ("unload", "unplug"):  # the other way round would be D3
            for step in range(1, steps):
                self.vanish(way, step)

    def vanish(self, way: str, step: int) -> None:
        """Bind, with something vanishing before the step."""
        count = 0
        originals = {
            name: getattr(self.kernel, name) for name in ("read", "readlink", "list", "directories")
        }

        def before(name: str) -> Callable[[str], object]:
            def call(path: str) -> object:
                nonlocal count
                count += 1
                if count == step and way == "unload":
                    self.kernel.unload()
                    self.kernel.loadable = False
                elif count == step:
                    self.kernel.unplug("1-2")
                result: object = originals[name](path)
                return result

            return call

        for name in originals:
            setattr(self.kernel, name, before(name))
        result = self.bind("1-2")
        for name, original in originals.items():
            setattr(self.kernel, name, original)
        if not isinstance(result.result, UsbDevice):
            message = str(self.failureResultOf(result, OperationFailed).value)
            self.assertNotIn("bug", message)
        self.kernel.loaded = self.kernel.loadable = True
        if way == "unplug" and "1-2" in self.kernel.list("bus/usb/devices"):
            self.kernel.unplug("1-2")
        if way == "unplug":
            self.kernel.plug("1-2", serial="S1-2")
        self.reactor.deliver()
        self.successResultOf(self.unbind("1-2"))
        self.assertEqual(self.kernel.driver("1-2"), "usb")

    def test_abandonedLate(self) -> None:
        """A bind that comes to its end after nobody waits for it any more is undone."""
        write = self.kernel.write

        def slow(path: str, data: bytes) -> None:
            write(path, data)
            if path.endswith("usbip-host/bind"):
                self.reactor.advance(31)

        self.kernel.write = slow  # type: ignore[method-assign]
        self.reactor.hold = True
        result = self.bind()
        self.reactor.runThreads()
        self.fails(result, "has not finished the attach", OperationTimedOut)
        self.assertEqual(self.kernel.driver("1-1"), "usb")
        self.assertIs(self.device().state, DeviceState.FREE)

    def test_driverless(self) -> None:
        """A device that was left without a driver gets it back with a detach."""
        self.successResultOf(self.bind())
        write = self.kernel.write

        def refuse(path: str, data: bytes) -> None:
            if path.endswith("usb/bind"):
                raise OSError(errno.EIO, "Input/output error")
            write(path, data)

        self.kernel.write = refuse  # type: ignore[method-assign]
        self.fails(self.unbind(), "Input/output error")
        self.assertIsNone(self.kernel.driver("1-1"))
        self.kernel.write = write  # type: ignore[method-assign]
        self.successResultOf(self.unbind())
        self.assertEqual(self.kernel.driver("1-1"), "usb")

    def test_error(self) -> None:
        """A device that usbip-host has given up is bound anew."""
        self.successResultOf(self.bind())
        self.kernel.breakDevice("1-1")
        self.reactor.advance(2)
        self.assertIs(self.device().state, DeviceState.ERROR)
        self.assertIn("attach it again", self.device().trouble or "")
        self.successResultOf(self.bind())
        self.assertIs(self.device().state, DeviceState.BOUND)

    def test_inUse(self) -> None:
        """A device that is in use is not disturbed."""
        self.successResultOf(self.bind())
        self.kernel.importDevice("1-1")
        writes = len(self.kernel.writes)
        self.fails(self.bind(), "in use", DeviceInUse)
        self.assertEqual(len(self.kernel.writes), writes)
        self.assertIs(self.device().state, DeviceState.IN_USE)

    def test_mounted(self) -> None:
        """A disk that this machine uses itself is not touched, nor is the driver loaded."""
        self.kernel.loaded = False
        self.kernel.mount("1-1", "/boot")
        self.fails(self.bind(), "1 is mounted on /boot. Unmount it there", DeviceMounted)
        self.assertEqual((self.kernel.writes, self.kernel.loaded), ([], False))
        self.assertIs(self.device().state, DeviceState.FREE)
        self.kernel.unmount("1-1")
        self.successResultOf(self.bind())

    def test_allowMounted(self) -> None:
        """Unless that is what is wanted. What is bound is none of its disks any more."""
        self.kernel.mount("1-1", "/boot")
        self.successResultOf(self.bind(allowMounted=True))
        self.assertIs(self.device().state, DeviceState.BOUND)
        self.successResultOf(self.bind())
        self.successResultOf(self.unbind())
        self.fails(self.bind(), "mounted", DeviceMounted)

    def test_allowMountedAgain(self) -> None:
        """Also if a place in the table had to be freed first."""
        self.successResultOf(self.bind("1-10"))
        self.successResultOf(self.unbind("1-10"))
        self.kernel.fillTable(*(f"9-{port}" for port in range(1, 16)))
        self.kernel.mount("1-1", "/boot")
        self.successResultOf(self.bind(allowMounted=True))

    def test_imported(self) -> None:
        """What was imported from another server is not listed, and not bound either."""
        self.kernel.plug("4-1", imported=True)
        self.reactor.deliver()
        self.assertIsNone(self.backend.inventory.get("4-1"))
        stranger = UsbDevice(
            busId="4-1", vendorId="0000", productId="0000", description="x", deviceNumber=5
        )
        result = Deferred.fromCoroutine(self.backend.bind(stranger, 30))
        self.fails(result, "imported from another server")

    def test_unplugDuringBind(self) -> None:
        """A device that vanishes between two writes is a failure, and nothing breaks."""
        write = self.kernel.write

        def vanish(path: str, data: bytes) -> None:
            write(path, data)
            if path.endswith("match_busid"):
                self.kernel.unplug("1-1")

        self.kernel.write = vanish  # type: ignore[method-assign]
        self.fails(self.bind(), "1-1")
        self.reactor.deliver()
        self.assertIsNone(self.backend.inventory.get("1-1"))

    def test_options(self) -> None:
        """Wrong options are told from right ones."""
        makeBackend({"root": "/sys", "rescan": 5}, self.reactor)
        for options, path in (({"rot": "/sys"}, ("rot",)), ({"rescan": 0}, ("rescan",))):
            error = self.assertRaises(InvalidOption, makeBackend, options, self.reactor)
            self.assertEqual(error.path, path)
