"""
What every backend has to do.
"""

from __future__ import annotations

import re
import select
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from zope.interface.verify import verifyObject

from usbip_server.interfaces import IUsbBackend
from usbip_server.model.device import DeviceState, Holder, Traffic, UsbDevice, busOrder, isBusId
from usbip_server.model.errors import DeviceInUse, OperationFailed, OperationTimedOut
from usbip_server.model.inventory import Change, ChangeKind

if TYPE_CHECKING:
    from twisted.trial.unittest import TestCase as Base
else:
    Base = object

DEADLINE = 10.0
"""Seconds that anything may take here."""


class BackendConformance(Base):
    """
    Mix this into a C{twisted.trial.unittest.TestCase}, and say in the four methods below
    how to come by a backend and what happens to its devices. Every test makes one backend.

    @cvar patience: seconds to wait for what happens outside the backend.
    """

    patience = DEADLINE

    async def makeBackend(self) -> IUsbBackend:
        """
        Make a backend with at least two devices that nobody uses. It is not started.
        """
        raise NotImplementedError

    async def importDevice(self, device: UsbDevice) -> None:
        """Be the client that imports a bound device."""
        raise NotImplementedError

    async def unplug(self, device: UsbDevice) -> None:
        """Pull a device out."""
        raise NotImplementedError

    async def plug(self, device: UsbDevice) -> None:
        """Plug a device that was pulled out in again, at the same place."""
        raise NotImplementedError

    def choose(self, devices: tuple[UsbDevice, ...]) -> UsbDevice:
        """The device to work with."""
        return devices[0]

    async def started(self) -> tuple[IUsbBackend, UsbDevice]:
        """
        A backend that has started, and the device to work with.
        """
        backend = await self.makeBackend()
        await backend.start()
        self.addCleanup(self._stop, backend)
        return backend, self.choose(backend.inventory.snapshot.devices)

    async def _stop(self, backend: IUsbBackend) -> None:
        for device in backend.inventory.snapshot.devices:
            if device.state is not DeviceState.FREE:
                await backend.unbind(device, DEADLINE)
        await backend.stop()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something is true."""
        from twisted.internet import reactor

        clock: Any = reactor
        end = clock.seconds() + self.patience
        while not condition():
            self.assertLess(clock.seconds(), end, f"still not so after {self.patience} s")
            await deferLater(clock, 0.01)

    async def untilState(self, backend: IUsbBackend, busId: str, state: DeviceState) -> None:
        """Wait until a device is shown in a state."""
        await self.until(lambda: getattr(backend.inventory.get(busId), "state", None) is state)

    async def failure(self, kind: type[Exception], awaitable: Any) -> Any:
        """What an operation that has to fail fails with."""
        try:
            result = await awaitable
        except kind as error:
            return error
        self.fail(f"it went well: {result}")

    async def test_interface(self) -> None:
        """It provides the interface."""
        verifyObject(IUsbBackend, await self.makeBackend())

    async def test_stopWithoutStart(self) -> None:
        """It can be stopped though it was never started."""
        await (await self.makeBackend()).stop()

    async def test_devices(self) -> None:
        """After the start the inventory has well-formed devices, in bus order."""
        backend, _ = await self.started()
        devices = backend.inventory.snapshot.devices
        self.assertGreaterEqual(len(devices), 2)
        self.assertIsNone(backend.inventory.trouble)
        self.assertEqual(list(devices), sorted(devices, key=lambda d: busOrder(d.busId)))
        for device in devices:
            self.assertTrue(isBusId(device.busId), device)
            self.assertRegex(device.vendorId + device.productId, re.compile(r"\A[0-9a-f]{8}\Z"))
            self.assertTrue(device.description.strip(), device)
            self.assertNotEqual(device.serial, "")
            self.assertNotEqual(device.deviceClass, "09")
            self.assertIs(backend.inventory.get(device.busId), device)

    async def test_bind(self) -> None:
        """A device that is bound is shown as bound, and so is what is returned."""
        backend, device = await self.started()
        bound = await backend.bind(device, DEADLINE)
        self.assertIs(bound.state, DeviceState.BOUND)
        self.assertEqual(bound.deviceNumber, device.deviceNumber)
        self.assertEqual(backend.inventory.get(device.busId), bound)

    async def test_bindAgain(self) -> None:
        """To bind what is bound changes nothing and tells nobody anything."""
        backend, device = await self.started()
        bound = await backend.bind(device, DEADLINE)
        before = backend.inventory.snapshot
        self.assertEqual(await backend.bind(bound, DEADLINE), bound)
        self.assertEqual(await backend.bind(device, DEADLINE), bound)
        self.assertIs(backend.inventory.snapshot, before)

    async def test_bindEvenMounted(self) -> None:
        """Whoever does not mind that this machine uses the device itself can say so."""
        backend, device = await self.started()
        bound = await backend.bind(device, DEADLINE, allowMounted=True)
        self.assertIs(bound.state, DeviceState.BOUND)

    async def test_unbind(self) -> None:
        """A device that is unbound is free, as it was before."""
        backend, device = await self.started()
        await backend.unbind(await backend.bind(device, DEADLINE), DEADLINE)
        await self.until(lambda: backend.inventory.get(device.busId) == device)

    async def test_unbindFree(self) -> None:
        """To unbind what is not bound changes nothing."""
        backend, device = await self.started()
        self.assertEqual(await backend.unbind(device, DEADLINE), device)
        self.assertEqual(backend.inventory.get(device.busId), device)

    async def test_changes(self) -> None:
        """Who subscribes is told of each change once, numbered without a gap."""
        backend, device = await self.started()
        heard: list[Change] = []
        first = backend.inventory.subscribe(heard.extend).seq
        await backend.unbind(await backend.bind(device, DEADLINE), DEADLINE)
        await self.until(lambda: ChangeKind.UNBOUND in [change.kind for change in heard[-2:]])
        self.assertEqual([c.seq for c in heard], [*range(first + 1, first + 1 + len(heard))])
        kinds = [c.kind for c in heard if c.kind is not ChangeKind.CHANGED]
        self.assertEqual(kinds, [ChangeKind.BOUND, ChangeKind.UNBOUND])

    async def test_twoDevices(self) -> None:
        """Two devices are bound at the same time."""
        backend, _ = await self.started()
        for device in backend.inventory.snapshot.devices[:2]:
            await backend.bind(device, DEADLINE)
        states = [device.state for device in backend.inventory.snapshot.devices[:2]]
        self.assertEqual(states, [DeviceState.BOUND] * 2)

    async def test_inUse(self) -> None:
        """A device that a client has imported is shown as such and is not disturbed."""
        backend, device = await self.started()
        bound = await backend.bind(device, DEADLINE)
        await self.importDevice(bound)
        await self.untilState(backend, device.busId, DeviceState.IN_USE)
        for known in (bound, backend.inventory.get(device.busId)):
            await self.failure(DeviceInUse, backend.bind(known, DEADLINE))
        now = backend.inventory.get(device.busId)
        self.assertIs(now and now.state, DeviceState.IN_USE)

    async def test_inUseUnannounced(self) -> None:
        """That a client has it is seen even before the inventory shows it."""
        backend, device = await self.started()
        bound = await backend.bind(device, DEADLINE)
        await self.importDevice(bound)
        error = await self.failure(DeviceInUse, backend.bind(bound, DEADLINE))
        self.assertIn("in use", str(error))

    async def test_unbindInUse(self) -> None:
        """To unbind a device takes it from its client."""
        backend, device = await self.started()
        await self.importDevice(await backend.bind(device, DEADLINE))
        await self.untilState(backend, device.busId, DeviceState.IN_USE)
        now = backend.inventory.get(device.busId)
        assert now is not None
        await backend.unbind(now, DEADLINE)
        await self.untilState(backend, device.busId, DeviceState.FREE)

    async def held(self) -> tuple[IUsbBackend, UsbDevice]:
        """
        A backend, and a device that a client has just imported, as it was before.
        """
        backend, device = await self.started()
        bound = await backend.bind(device, DEADLINE)
        await self.importDevice(bound)
        return backend, bound

    async def test_release(self) -> None:
        """
        A device that is released is not its client's any more; it stays bound, and is still
        the same.
        """
        backend, device = await self.held()
        await self.untilState(backend, device.busId, DeviceState.IN_USE)
        released = await backend.release(device, DEADLINE)
        self.assertIs(released.state, DeviceState.BOUND)
        self.assertIsNone(released.holder)
        self.assertEqual(released.deviceNumber, device.deviceNumber)
        self.assertEqual(backend.inventory.get(device.busId), released)

    async def test_importReleased(self) -> None:
        """
        A device that was released can be imported at once, and released before the
        inventory shows that.
        """
        backend, device = await self.held()
        await self.importDevice(await backend.release(device, DEADLINE))
        await self.failure(DeviceInUse, backend.bind(device, DEADLINE))
        released = await backend.release(device, DEADLINE)
        self.assertIs(released.state, DeviceState.BOUND)

    async def test_releaseUnused(self) -> None:
        """To release what nobody has imported changes nothing, be it bound or free."""
        backend, device = await self.started()
        self.assertEqual(await backend.release(device, DEADLINE), device)
        bound = await backend.bind(device, DEADLINE)
        before = backend.inventory.snapshot
        self.assertEqual(await backend.release(bound, DEADLINE), bound)
        self.assertIs(backend.inventory.snapshot, before)

    async def test_releaseGone(self) -> None:
        """What is unplugged cannot be released; another device at its place is let alone."""
        backend, device = await self.held()
        await self.unplug(device)
        await self.failure(OperationFailed, backend.release(device, DEADLINE))
        await self.plug(device)
        await self.failure(OperationFailed, backend.release(device, DEADLINE))

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """
        A client has connected to us.

        @return: our end and the client's.
        """
        with socket.create_server(("127.0.0.1", 0)) as listening:
            client = socket.create_connection(listening.getsockname())
            ours, _ = listening.accept()
        for end in (ours, client):
            end.setblocking(False)
            self.addCleanup(end.close)
        return ours, client

    def holder(self, number: int = 7) -> Holder:
        """A client, that has just connected."""
        return Holder(address=f"192.0.2.{number}", since=time.time())

    async def test_look(self) -> None:
        """To look at a device to which nothing has happened changes nothing."""
        backend, device = await self.started()
        bound = await backend.bind(device, DEADLINE)
        before = backend.inventory.snapshot
        await backend.refresh(bound)
        self.assertIs(backend.inventory.snapshot, before)

    async def test_traffic(self) -> None:
        """What a session moves is a number of bytes each way, or not known; what is free has
        none."""
        backend, device = await self.started()
        self.assertIsNone(backend.traffic(device))
        await self.importDevice(await backend.bind(device, DEADLINE))
        await self.untilState(backend, device.busId, DeviceState.IN_USE)
        traffic = backend.traffic(backend.inventory.get(device.busId))
        if traffic is not None:
            self.assertIsInstance(traffic, Traffic)
            self.assertGreaterEqual(min(traffic.bytesIn, traffic.bytesOut), 0)

    async def test_unplug(self) -> None:
        """What is unplugged is gone from the inventory, and cannot be bound."""
        backend, device = await self.started()
        await self.unplug(device)
        await self.failure(OperationFailed, backend.bind(device, DEADLINE))
        await self.until(lambda: backend.inventory.get(device.busId) is None)

    async def test_unplugBound(self) -> None:
        """A bound device that is unplugged is gone; plugged in again it is free."""
        backend, device = await self.started()
        await self.unplug(await backend.bind(device, DEADLINE))
        await self.until(lambda: backend.inventory.get(device.busId) is None)
        await self.plug(device)
        await self.untilState(backend, device.busId, DeviceState.FREE)

    async def test_replug(self) -> None:
        """Another device at the same place is not taken for the one that was meant."""
        backend, device = await self.started()
        await self.unplug(device)
        await self.plug(device)
        await self.failure(OperationFailed, backend.bind(device, DEADLINE))

        def isNew() -> bool:
            now = backend.inventory.get(device.busId)
            return now is not None and now.deviceNumber != device.deviceNumber

        await self.until(isNew)
        now = backend.inventory.get(device.busId)
        assert now is not None
        self.assertIs((await backend.bind(now, DEADLINE)).state, DeviceState.BOUND)
        self.assertIs((await backend.unbind(now, DEADLINE)).state, DeviceState.FREE)

    async def test_unbindReplugged(self) -> None:
        """The same for unbind."""
        backend, device = await self.started()
        bound = await backend.bind(device, DEADLINE)
        await self.unplug(bound)
        await self.plug(device)
        await self.failure(OperationFailed, backend.unbind(bound, DEADLINE))


class NoExportConformance(BackendConformance):
    """
    The same, for a backend that cannot give a device to a client whose connection it is
    handed.
    """

    async def test_exportNone(self) -> None:
        """It says that it cannot export, and nothing changes."""
        backend, device = await self.started()
        bound = await backend.bind(device, DEADLINE)
        ours, _ = self.connect()
        await self.failure(OperationFailed, backend.export(bound, ours, self.holder(), DEADLINE))
        self.assertEqual(backend.inventory.get(device.busId), bound)


class ExportConformance(BackendConformance):
    """
    The same, for a backend that can.
    """

    async def exported(self) -> tuple[IUsbBackend, UsbDevice, socket.socket]:
        """
        A backend, a device that it has given to a client, and the client's connection.
        """
        backend, device = await self.started()
        bound = await backend.bind(device, DEADLINE)
        ours, client = self.connect()
        return backend, await backend.export(bound, ours, self.holder(), DEADLINE), client

    async def untilShutDown(self, client: socket.socket) -> None:
        """Wait until the client hears that its session has ended."""

        def isShutDown() -> bool:
            try:
                return client.recv(4096) == b""
            except BlockingIOError:
                return False
            except ConnectionError:
                return True

        await self.until(isShutDown)

    async def test_export(self) -> None:
        """A device that is given to a client is in use by whom we have said."""
        backend, device = await self.started()
        bound = await backend.bind(device, DEADLINE)
        (ours, _), holder = self.connect(), self.holder()
        exported = await backend.export(bound, ours, holder, DEADLINE)
        self.assertEqual((exported.state, exported.holder), (DeviceState.IN_USE, holder))
        self.assertEqual(backend.inventory.get(device.busId), exported)
        await backend.refresh(exported)
        self.assertEqual(backend.inventory.get(device.busId), exported)
        await self.failure(DeviceInUse, backend.bind(bound, DEADLINE))

    async def test_exportAgain(self) -> None:
        """One that a client has is not given to another."""
        backend, exported, client = await self.exported()
        ours, _ = self.connect()
        await self.failure(DeviceInUse, backend.export(exported, ours, self.holder(8), DEADLINE))
        self.assertEqual(backend.inventory.get(exported.busId), exported)
        self.assertRaises(BlockingIOError, client.recv, 1)

    async def test_exportFree(self) -> None:
        """A device that is not bound cannot be given to anybody; the connection is let alone."""
        backend, device = await self.started()
        ours, client = self.connect()
        await self.failure(OperationFailed, backend.export(device, ours, self.holder(), DEADLINE))
        self.assertEqual(backend.inventory.get(device.busId), device)
        ours.send(b"no")
        await self.until(lambda: select.select([client], [], [], 0)[0])
        self.assertEqual(client.recv(3), b"no")

    async def test_exportGone(self) -> None:
        """What is unplugged cannot be exported, nor another device at its place."""
        backend, device = await self.started()
        bound = await backend.bind(device, DEADLINE)
        ours, _ = self.connect()
        await self.unplug(bound)
        await self.failure(OperationFailed, backend.export(bound, ours, self.holder(), DEADLINE))
        await self.plug(device)
        await self.failure(OperationFailed, backend.export(bound, ours, self.holder(), DEADLINE))
        await backend.refresh(bound)
        now = backend.inventory.get(device.busId)
        self.assertIsNot(now and now.state, DeviceState.BOUND)

    async def test_unbindExported(self) -> None:
        """A client whose device is unbound hears of it by its connection's being shut down."""
        backend, exported, client = await self.exported()
        self.assertIs((await backend.unbind(exported, DEADLINE)).state, DeviceState.FREE)
        await self.untilShutDown(client)

    async def test_unplugExported(self) -> None:
        """So does one whose device is unplugged."""
        backend, exported, client = await self.exported()
        await self.unplug(exported)
        await self.untilShutDown(client)
        await backend.refresh(exported)
        await self.until(lambda: backend.inventory.get(exported.busId) is None)

    async def test_releaseExported(self) -> None:
        """So does one whose session is ended. The device can be given to another at once."""
        backend, exported, client = await self.exported()
        released = await backend.release(exported, DEADLINE)
        self.assertEqual((released.state, released.holder), (DeviceState.BOUND, None))
        await self.untilShutDown(client)
        (ours, other), holder = self.connect(), self.holder(8)
        again = await backend.export(released, ours, holder, DEADLINE)
        self.assertEqual((again.state, again.holder), (DeviceState.IN_USE, holder))
        self.assertRaises(BlockingIOError, other.recv, 1)


class KernelConformance(BackendConformance):
    """
    The same, and what is so where the kernel carries the sessions: for backends of this
    machine's devices.
    """

    async def test_lookImported(self) -> None:
        """A look shows what nothing has announced: that a client has come."""
        backend, device = await self.held()
        await backend.refresh(device)
        now = backend.inventory.get(device.busId)
        self.assertIs(now and now.state, DeviceState.IN_USE)


class KernelExportConformance(ExportConformance, KernelConformance):
    """
    Both.
    """

    async def test_exportClosed(self) -> None:
        """A session goes on though we close the connection: the kernel has it."""
        backend, device = await self.started()
        bound = await backend.bind(device, DEADLINE)
        (ours, client), holder = self.connect(), self.holder()
        exporting = Deferred.fromCoroutine(backend.export(bound, ours, holder, DEADLINE))
        ours.close()
        exported = await exporting
        self.assertEqual(exported.holder, holder)
        await backend.refresh(exported)
        self.assertEqual(backend.inventory.get(device.busId), exported)
        self.assertRaises(BlockingIOError, client.recv, 1)
        await backend.release(exported, DEADLINE)
        await self.untilShutDown(client)


class HangingDeviceConformance(BackendConformance):
    """
    The same, and what has to be done about a device that does not answer, for backends
    that can be shown one.
    """

    async def hang(self, device: UsbDevice) -> None:
        """From now on the device does not answer."""
        raise NotImplementedError

    async def revive(self, device: UsbDevice) -> None:
        """It answers again."""
        raise NotImplementedError

    async def test_deadline(self) -> None:
        """
        A bind ends when its deadline has passed, and the device is shown as C{error} until
        it answers; another device is bound meanwhile.
        """
        backend, device = await self.started()
        other = next(d for d in backend.inventory.snapshot.devices if d != device)
        await self.hang(device)
        await self.failure(OperationTimedOut, backend.bind(device, 0.2))
        await self.failure(OperationTimedOut, backend.bind(device, 0.2))
        stuck = backend.inventory.get(device.busId)
        assert stuck is not None
        self.assertIs(stuck.state, DeviceState.ERROR)
        self.assertTrue(stuck.trouble)
        self.assertIs((await backend.bind(other, DEADLINE)).state, DeviceState.BOUND)
        await self.revive(device)
        await self.untilState(backend, device.busId, DeviceState.FREE)
        self.assertIs((await backend.bind(device, DEADLINE)).state, DeviceState.BOUND)
