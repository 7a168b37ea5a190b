"""
Tests of L{usbip_server.backends.virtual}: what is declared, and clients of its devices.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from tests.support.importclient import SINCE, Door
from usbip_server.backends import softdevice
from usbip_server.backends.virtual import VirtualBackend, makeBackend
from usbip_server.interfaces import IUsbBackend
from usbip_server.model.device import DeviceState, Holder, UsbDevice
from usbip_server.model.errors import DeviceInUse, OperationFailed, OperationTimedOut
from usbip_server.model.inventory import Change
from usbip_server.model.options import InvalidOption

if softdevice.installed:
    from usbip import USBDevice, host  # type: ignore[import-untyped]
    from usbip.classes.host.cdc_acm import CDCDriver  # type: ignore[import-untyped]
    from usbip.classes.host.msc import MSCDriver  # type: ignore[import-untyped]
    from usbip.core import NotFound, USBError  # type: ignore[import-untyped]

    from tests.support.usbclient import UsbTransport

T = TypeVar("T")

DEVICES = [
    {"bus_id": "1-1", "kind": "serial", "product": "Port", "serial": "P1"},
    {"bus_id": "1-2", "kind": "disk", "product": "Disk", "size": 64, "vendor_id": "ABCD"},
    {"bus_id": "1-3", "product": "Lamp"},
    {"bus_id": "1-4.1", "kind": "serial", "plugged": False},
]


class OptionTests(SynchronousTestCase):
    """
    What is declared.
    """

    def test_provides(self) -> None:
        """It is a backend."""
        verifyObject(IUsbBackend, makeBackend({}, reactor))

    def test_samples(self) -> None:
        """Where nothing is declared there is something to try it with."""
        backend = makeBackend({"devices": []}, reactor)
        self.successResultOf(Deferred.fromCoroutine(backend.start()))
        self.assertEqual(backend.inventory.snapshot.devices, ())
        self.assertNotEqual(makeBackend({}, reactor), backend)

    def test_wrong(self) -> None:
        """What is wrong is named by the keys that lead to it."""
        wrong: tuple[tuple[dict[str, Any], tuple[str | int, ...]], ...] = (
            ({"colour": "red"}, ("colour",)),
            ({"port": 3240}, ("port",)),
            ({"devices": [{}]}, ("devices", 0, "bus_id")),
            ({"devices": [{"bus_id": "usb1"}]}, ("devices", 0, "bus_id")),
            ({"devices": [{"bus_id": "1-1"}, {"bus_id": "1-1"}]}, ("devices", 1, "bus_id")),
            ({"devices": [{"bus_id": "1-1", "kind": "x"}]}, ("devices", 0, "kind")),
            ({"devices": [{"bus_id": "1-1", "vendor_id": "12"}]}, ("devices", 0, "vendor_id")),
            ({"devices": [{"bus_id": "1-1", "size": 1}]}, ("devices", 0, "size")),
            ({"devices": [{"bus_id": "1-1", "serial": ""}]}, ("devices", 0, "serial")),
            *(
                (
                    {"devices": [{"bus_id": "1-1"}, {"bus_id": "1-2", key: half}]},
                    ("devices", 1, key),
                )
                for key in ("manufacturer", "product", "serial")
                for half in ("\ud800x", "x\udfff")
            ),
        )
        for options, path in wrong:
            with self.assertRaises(InvalidOption) as caught:
                makeBackend(options, reactor)
            self.assertEqual(caught.exception.path, path)

    def test_anyLanguage(self) -> None:
        """A text may be in any language."""
        options = {"devices": [{"bus_id": "1-1", "product": "Gerät \U0001f50c", "serial": "№1"}]}
        backend = makeBackend(options, reactor)
        self.successResultOf(Deferred.fromCoroutine(backend.start()))
        [device] = backend.inventory.snapshot.devices
        self.assertEqual((device.product, device.serial), ("Gerät \U0001f50c", "№1"))

    def test_withoutExtra(self) -> None:
        """Where the package that makes real devices is not installed, the others can be had."""
        self.patch(softdevice, "installed", False)
        makeBackend({"devices": [{"bus_id": "1-1"}]}, reactor)
        with self.assertRaises(InvalidOption) as caught:
            makeBackend({"devices": [{"bus_id": "1-1", "kind": "disk"}]}, reactor)
        self.assertIn("pip install", str(caught.exception))


class InertTests(SynchronousTestCase):
    """
    Devices that only stand in the list.
    """

    def setUp(self) -> None:
        self.backend = makeBackend({"devices": [{"bus_id": "1-3", "product": "Lamp"}]}, reactor)
        self.successResultOf(Deferred.fromCoroutine(self.backend.start()))

    def lamp(self) -> UsbDevice:
        """The lamp, as it is now."""
        device = self.backend.inventory.get("1-3")
        assert device is not None
        return device

    def test_listed(self) -> None:
        """They are listed."""
        self.assertEqual(self.lamp().description, "Lamp")
        self.assertIsNone(self.lamp().serial)
        self.assertEqual(self.lamp().path, "virtual/1-3")

    def test_bindAndUnbind(self) -> None:
        """They can be bound, as often as one likes, and unbound."""
        for _ in range(2):
            bound = self.successResultOf(Deferred.fromCoroutine(self.backend.bind(self.lamp(), 5)))
            self.assertIs(bound.state, DeviceState.BOUND)
            self.assertEqual(bound, self.lamp())
        for _ in range(2):
            self.successResultOf(Deferred.fromCoroutine(self.backend.unbind(self.lamp(), 5)))
            self.assertIs(self.lamp().state, DeviceState.FREE)

    def test_export(self) -> None:
        """They cannot be imported, bound or not."""
        ours, theirs = socket.socketpair()
        for state in (DeviceState.FREE, DeviceState.BOUND):
            self.assertIs(self.lamp().state, state)
            exporting = self.backend.export(self.lamp(), ours, Holder(), 5)
            failure = self.failureResultOf(Deferred.fromCoroutine(exporting), OperationFailed)
            self.assertIn("cannot be imported: it is of kind inert", str(failure.value))
            self.successResultOf(Deferred.fromCoroutine(self.backend.bind(self.lamp(), 5)))
        ours.close()
        self.assertEqual(theirs.recv(1), b"")  # nobody else has it
        theirs.close()

    def test_replugged(self) -> None:
        """A device that was pulled out and plugged in again is not the one that was meant."""
        before = self.lamp()
        self.backend.unplug("1-3")
        self.failureResultOf(Deferred.fromCoroutine(self.backend.bind(before, 5)), OperationFailed)
        self.backend.plug("1-3")
        self.assertNotEqual(self.lamp().deviceNumber, before.deviceNumber)
        for method in (self.backend.bind, self.backend.unbind):
            self.failureResultOf(Deferred.fromCoroutine(method(before, 5)), OperationFailed)


class ImportTests(TestCase):
    """
    Devices that can be imported, over loopback.
    """

    timeout = 300
    backend: VirtualBackend
    door: Door

    if not softdevice.installed:
        skip = "the package usbip is not installed"

    async def setUp(self) -> None:  # type: ignore[override]
        self.backend = makeBackend({"devices": DEVICES}, reactor)
        await self.backend.start()
        self.door = Door(self.backend)
        self.addCleanup(self.door.close)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.backend.stop()))

    def device(self, busId: str) -> UsbDevice:
        """A device, as it is now."""
        device = self.backend.inventory.get(busId)
        assert device is not None
        return device

    async def bind(self, busId: str) -> None:
        """Bind a device."""
        await self.backend.bind(self.device(busId), 5)

    async def open(self, busId: str) -> Any:
        """Import a device; it is in use when this returns."""
        transport = UsbTransport(self.door.port)
        handle = await self.blocking(lambda: host.open(busid=busId, transport=transport))
        self.addCleanup(handle.close)
        self.assertIs(self.device(busId).state, DeviceState.IN_USE)
        return handle

    async def blocking(self, function: Callable[[], T]) -> T:
        """Call something that blocks, in a thread."""
        result: T = await deferToThread(function)
        return result

    async def until(self, busId: str, state: DeviceState) -> None:
        """Wait until a device is in a state."""
        if self.device(busId).state is state:
            return
        done: Deferred[None] = Deferred()

        def look(changes: tuple[Change, ...]) -> None:
            if self.device(busId).state is state and not done.called:
                done.callback(None)

        self.backend.inventory.subscribe(look)
        await done
        self.backend.inventory.unsubscribe(look)

    async def refused(self, busId: str) -> None:
        """To import a device is refused."""
        with self.assertRaises(NotFound):
            await self.open(busId)

    async def test_notBound(self) -> None:
        """What is bound can be imported, and nothing else."""
        await self.refused("1-2")
        await self.bind("1-2")
        (await self.open("1-2")).close()
        await self.until("1-2", DeviceState.BOUND)
        await self.backend.unbind(self.device("1-2"), 5)
        await self.refused("1-2")

    async def test_described(self) -> None:
        """A device that is real to whoever imports it is described as it will find it."""
        port, disk = self.device("1-1"), self.device("1-2")
        self.assertEqual((port.deviceClass, len(port.interfaces)), ("02", 2))
        self.assertEqual(disk.interfaces, ("08/06/50",))
        self.assertEqual(disk.vendorId, "abcd")
        for device in (port, disk):
            await self.bind(device.busId)
            told = (await self.open(device.busId)).device_descriptor
            self.assertEqual(device.vendorId, f"{told.idVendor:04x}")
            self.assertEqual(device.productId, f"{told.idProduct:04x}")
            self.assertEqual(device.deviceClass, f"{told.bDeviceClass:02x}")
            self.assertEqual(device.subclass, f"{told.bDeviceSubClass:02x}")
            self.assertEqual(device.protocol, f"{told.bDeviceProtocol:02x}")
            self.assertEqual(device.release, told.bcdDevice)
            self.assertEqual(device.configurations, told.bNumConfigurations)
            self.assertEqual(device.path, f"virtual/{device.busId}")

    async def test_serial(self) -> None:
        """A serial port sends back what it receives."""
        await self.bind("1-1")
        port = CDCDriver(await self.open("1-1"))
        for text in (b"hello", b"", bytes(range(60))):
            if text:
                await self.blocking(lambda text=text: port.write(text))  # type: ignore[misc]
                self.assertEqual(await self.blocking(port.read), text)

    async def test_disk(self) -> None:
        """A disk keeps what is written to it, also for the next who imports it."""
        content = os.urandom(1024)
        await self.bind("1-2")
        disk = MSCDriver(await self.open("1-2"))
        await self.blocking(lambda: disk.write_blocks(3, content, 512))
        self.assertEqual(await self.blocking(lambda: disk.read_blocks(3, 2, 512)), content)
        disk.close()
        await self.until("1-2", DeviceState.BOUND)
        disk = MSCDriver(await self.open("1-2"))
        self.assertEqual(await self.blocking(lambda: disk.read_blocks(3, 2, 512)), content)

    async def test_inUse(self) -> None:
        """While a client has it, it is in use by that client; afterwards it is bound again."""
        await self.bind("1-1")
        handle = await self.open("1-1")
        holder = self.device("1-1").holder
        self.assertEqual(holder, Holder(address="127.0.0.1", since=SINCE))
        with self.assertRaises(DeviceInUse) as caught:
            await self.bind("1-1")
        self.assertIn("127.0.0.1", str(caught.exception))
        handle.close()
        await self.until("1-1", DeviceState.BOUND)
        self.assertIsNone(self.device("1-1").holder)

    async def test_secondImport(self) -> None:
        """What a client has, another cannot have, and does not disturb."""
        await self.bind("1-1")
        first = CDCDriver(await self.open("1-1"))
        await self.refused("1-1")
        await self.blocking(lambda: first.write(b"still here"))
        self.assertEqual(await self.blocking(first.read), b"still here")

    async def test_unbind(self) -> None:
        """To unbind takes it from the client that has it."""
        await self.bind("1-1")
        port = CDCDriver(await self.open("1-1"))
        device = await self.backend.unbind(self.device("1-1"), 5)
        self.assertEqual((device.state, device.holder), (DeviceState.FREE, None))
        with self.assertRaises((USBError, OSError)):
            await self.blocking(lambda: port.write(b"anybody?"))
        await self.bind("1-1")
        self.assertIs(self.device("1-1").state, DeviceState.BOUND)

    async def test_unbindAndBind(self) -> None:
        """A device that was taken from its client can be bound at once, and imported by
        another."""
        await self.bind("1-1")
        for _ in range(20):
            await self.open("1-1")
            await self.backend.unbind(self.device("1-1"), 5)
            await self.bind("1-1")
            await self.bind("1-1")
            self.assertIs(self.device("1-1").state, DeviceState.BOUND)

    async def test_release(self) -> None:
        """
        Who has a device loses it when it is released; it can be imported at once.
        """
        await self.bind("1-1")
        for _ in range(20):
            port = CDCDriver(await self.open("1-1"))
            device = await self.backend.release(self.device("1-1"), 5)
            self.assertEqual((device.state, device.holder), (DeviceState.BOUND, None))
            with self.assertRaises((USBError, OSError)):
                await self.blocking(lambda port=port: port.write(b"anybody?"))  # type: ignore[misc]
        port = CDCDriver(await self.open("1-1"))
        await self.blocking(lambda: port.write(b"again"))
        self.assertEqual(await self.blocking(port.read), b"again")

    async def test_releaseStuck(self) -> None:
        """A session that does not end is given up in time, and the device is shown as an
        error until it does."""
        await self.bind("1-2")
        disk = MSCDriver(await self.open("1-2"))
        hangs, goOn = threading.Event(), threading.Event()
        self.addCleanup(goOn.set)

        def hang(*arguments: object) -> None:
            hangs.set()
            goOn.wait()

        self.patch(USBDevice, "handle_urb", hang)
        reading = deferToThread(disk.read_blocks, 0, 1, 512)
        reading.addErrback(lambda failure: failure.trap(USBError, OSError))
        await self.blocking(hangs.wait)
        for _ in range(2):
            with self.assertRaises(OperationTimedOut) as caught:
                await self.backend.release(self.device("1-2"), 0.1)
            self.assertIn("has not ended within 0.1 s", str(caught.exception))
            self.assertIs(self.device("1-2").state, DeviceState.ERROR)
        goOn.set()
        await self.until("1-2", DeviceState.BOUND)
        self.assertIsNone(self.device("1-2").trouble)
        await reading

    async def test_onlyOne(self) -> None:
        """Of several who import a device at the same time one gets it, and only that one is
        told so."""
        await self.bind("1-1")
        transport = UsbTransport(self.door.port)

        def take() -> bool:
            try:
                handle = host.open(busid="1-1", transport=transport)
            except NotFound:
                return False
            self.addCleanup(handle.close)
            return True

        for _ in range(5):
            taken = await gatherResults([deferToThread(take) for _ in range(8)])
            self.assertEqual(sum(taken), 1)
            await self.backend.unbind(self.device("1-1"), 5)
            await self.bind("1-1")

    async def test_unplug(self) -> None:
        """So does to pull it out; plugged in again it is free."""
        await self.bind("1-1")
        port = CDCDriver(await self.open("1-1"))
        self.backend.unplug("1-1")
        self.assertIsNone(self.backend.inventory.get("1-1"))
        with self.assertRaises((USBError, OSError)):
            await self.blocking(lambda: port.write(b"anybody?"))
        self.backend.plug("1-1")
        self.assertIs(self.device("1-1").state, DeviceState.FREE)
        await self.refused("1-1")
        await self.bind("1-1")
        await self.open("1-1")

    async def test_plug(self) -> None:
        """What is declared as not plugged in is not there until it is."""
        self.assertIsNone(self.backend.inventory.get("1-4.1"))
        self.backend.plug("1-4.1")
        await self.bind("1-4.1")
        await self.open("1-4.1")

    async def test_garbageAfterImport(self) -> None:
        """Garbage from who has imported a device ends that, and the device is to be had again."""
        await self.bind("1-1")
        handle = await self.open("1-1")
        await self.blocking(lambda: handle.conn.sock.sendall(b"\xff" * 500))
        handle.close()
        await self.until("1-1", DeviceState.BOUND)
        self.flushLoggedErrors()
        port = CDCDriver(await self.open("1-1"))
        await self.blocking(lambda: port.write(b"again"))
        self.assertEqual(await self.blocking(port.read), b"again")

    async def test_stop(self) -> None:
        """When it is stopped, who has something loses it."""
        await self.bind("1-1")
        port = CDCDriver(await self.open("1-1"))
        await self.backend.stop()
        with self.assertRaises((USBError, OSError)):
            await self.blocking(lambda: port.write(b"anybody?"))
        await self.until("1-1", DeviceState.BOUND)
