"""
The conformance suite of L{usbip_server.interfaces.IUsbBackend}: tests that every backend passes.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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
"""The longest time for an operation, in seconds."""


class BackendConformance(Base):
    """
    Tests of a backend: a mixin for a C{twisted.trial.unittest.TestCase}, which implements the four
    methods below. Each test makes one backend.

    @cvar patience: how long to wait for changes that the backend only observes, in seconds.
    """

    patience = DEADLINE

    async def makeBackend(self) -> IUsbBackend:
        """
        Make a backend with at least two devices that are free. It is not started.
        """
        raise NotImplementedError

    async def importDevice(self, device: UsbDevice) -> None:
        """Have a client import a bound device."""
        raise NotImplementedError

    async def unplug(self, device: UsbDevice) -> None:
        """Unplug a device."""
        raise NotImplementedError

    async def plug(self, device: UsbDevice) -> None:
        """Plug a device into the place from which it was unplugged."""
        raise NotImplementedError

    def choose(self, devices: tuple[UsbDevice, ...]) -> UsbDevice:
        """The device that the tests use."""
        return devices[0]

    async def started(self) -> tuple[IUsbBackend, UsbDevice]:
        """
        A backend that has started, and the device that the tests use.
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
        """Wait until a condition is true."""
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
        """The error of an operation that has to fail."""
        try:
            result = await awaitable
        except kind as error:
            return error
        self.fail(f"no error: {result}")

    async def test_interface(self) -> None:
        """The backend provides the interface."""
        verifyObject(IUsbBackend, await self.makeBackend())

    async def test_stopWithoutStart(self) -> None:
        """A backend can be stopped without having been started."""
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
        """After a bind the device returned, and that in the inventory, are bound."""
        backend, device = await self.started()
        bound = await backend.bind(device, DEADLINE)
        self.assertIs(bound.state, DeviceState.BOUND)
        self.assertEqual(bound.deviceNumber, device.deviceNumber)
        self.assertEqual(backend.inventory.get(device.busId), bound)

    async def test_bindAgain(self) -> None:
        """A bind of a bound device changes nothing, and reports no change."""
        backend, device = await self.started()
        bound = await backend.bind(device, DEADLINE)
        before = backend.inventory.snapshot
        self.assertEqual(await backend.bind(bound, DEADLINE), bound)
        self.assertEqual(await backend.bind(device, DEADLINE), bound)
        self.assertIs(backend.inventory.snapshot, before)

    async def test_bindAllowMounted(self) -> None:
        """C{allowMounted} is accepted."""
        backend, device = await self.started()
        bound = await backend.bind(device, DEADLINE, allowMounted=True)
        self.assertIs(bound.state, DeviceState.BOUND)

    async def test_unbind(self) -> None:
        """After an unbind the device is as it was before the bind."""
        backend, device = await self.started()
        await backend.unbind(await backend.bind(device, DEADLINE), DEADLINE)
        await self.until(lambda: backend.inventory.get(device.busId) == device)

    async def test_unbindFree(self) -> None:
        """An unbind of a free device changes nothing."""
        backend, device = await self.started()
        self.assertEqual(await backend.unbind(device, DEADLINE), device)
        self.assertEqual(backend.inventory.get(device.busId), device)

    async def test_changes(self) -> None:
        """Each change is reported once, numbered without a gap."""
        backend, device = await self.started()
        changes: list[Change] = []
        first = backend.inventory.subscribe(changes.extend).seq
        await backend.unbind(await backend.bind(device, DEADLINE), DEADLINE)
        await self.until(lambda: ChangeKind.UNBOUND in [change.kind for change in changes[-2:]])
        self.assertEqual([c.seq for c in changes], [*range(first + 1, first + 1 + len(changes))])
        kinds = [c.kind for c in changes if c.kind is not ChangeKind.CHANGED]
        self.assertEqual(kinds, [ChangeKind.BOUND, ChangeKind.UNBOUND])

    async def test_twoDevices(self) -> None:
        """Two devices can be bound at the same time."""
        backend, _ = await self.started()
        for device in backend.inventory.snapshot.devices[:2]:
            await backend.bind(device, DEADLINE)
        states = [device.state for device in backend.inventory.snapshot.devices[:2]]
        self.assertEqual(states, [DeviceState.BOUND] * 2)

    async def test_inUse(self) -> None:
        """A device that a client has imported is shown as in use; a bind of it fails, and does not
        disturb the session."""
        backend, device = await self.started()
        bound = await backend.bind(device, DEADLINE)
        await self.importDevice(bound)
        await self.untilState(backend, device.busId, DeviceState.IN_USE)
        for known in (bound, backend.inventory.get(device.busId)):
            await self.failure(DeviceInUse, backend.bind(known, DEADLINE))
        now = backend.inventory.get(device.busId)
        self.assertIs(now and now.state, DeviceState.IN_USE)

    async def test_inUseNotShown(self) -> None:
        """A bind notices that a device is in use before the inventory shows it."""
        backend, device = await self.started()
        bound = await backend.bind(device, DEADLINE)
        await self.importDevice(bound)
        error = await self.failure(DeviceInUse, backend.bind(bound, DEADLINE))
        self.assertIn("in use", str(error))

    async def test_unbindInUse(self) -> None:
        """An unbind ends the session of a client."""
        backend, device = await self.started()
        await self.importDevice(await backend.bind(device, DEADLINE))
        await self.untilState(backend, device.busId, DeviceState.IN_USE)
        now = backend.inventory.get(device.busId)
        assert now is not None
        await backend.unbind(now, DEADLINE)
        await self.untilState(backend, device.busId, DeviceState.FREE)

    async def held(self) -> tuple[IUsbBackend, UsbDevice]:
        """
        A backend, and a device that a client has just imported, in its state before that.
        """
        backend, device = await self.started()
        bound = await backend.bind(device, DEADLINE)
        await self.importDevice(bound)
        return backend, bound

    async def test_release(self) -> None:
        """After a release the device is bound, and has no holder."""
        backend, device = await self.held()
        await self.untilState(backend, device.busId, DeviceState.IN_USE)
        released = await backend.release(device, DEADLINE)
        self.assertIs(released.state, DeviceState.BOUND)
        self.assertIsNone(released.holder)
        self.assertEqual(released.deviceNumber, device.deviceNumber)
        self.assertEqual(backend.inventory.get(device.busId), released)

    async def test_importReleased(self) -> None:
        """After a release the device can be imported at once, and released again before the
        inventory shows that it is in use."""
        backend, device = await self.held()
        await self.importDevice(await backend.release(device, DEADLINE))
        await self.failure(DeviceInUse, backend.bind(device, DEADLINE))
        released = await backend.release(device, DEADLINE)
        self.assertIs(released.state, DeviceState.BOUND)

    async def test_releaseUnused(self) -> None:
        """A release of a device that is not in use changes nothing."""
        backend, device = await self.started()
        self.assertEqual(await backend.release(device, DEADLINE), device)
        bound = await backend.bind(device, DEADLINE)
        before = backend.inventory.snapshot
        self.assertEqual(await backend.release(bound, DEADLINE), bound)
        self.assertIs(backend.inventory.snapshot, before)

    async def test_releaseGone(self) -> None:
        """A release of a device that was unplugged, or replaced by another one, fails."""
        backend, device = await self.held()
        await self.unplug(device)
        await self.failure(OperationFailed, backend.release(device, DEADLINE))
        await self.plug(device)
        await self.failure(OperationFailed, backend.release(device, DEADLINE))

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """
        A connection from a client.

        @return: the daemon's end and the client's.
        """
        with socket.create_server(("127.0.0.1", 0)) as listening:
            client = socket.create_connection(listening.getsockname())
            ours, _ = listening.accept()
        for end in (ours, client):
            end.setblocking(False)
            self.addCleanup(end.close)
        return ours, client

    def holder(self, number: int = 7) -> Holder:
        """A client that has just connected."""
        return Holder(address=f"192.0.2.{number}", since=time.time())

    async def test_refresh(self) -> None:
        """A refresh without a change reports no change."""
        backend, device = await self.started()
        bound = await backend.bind(device, DEADLINE)
        before = backend.inventory.snapshot
        await backend.refresh(bound)
        self.assertIs(backend.inventory.snapshot, before)

    async def test_traffic(self) -> None:
        """The traffic of a session is a number of bytes each way, or unknown; that of a device
        without a session is unknown."""
        backend, device = await self.started()
        self.assertIsNone(backend.traffic(device))
        await self.importDevice(await backend.bind(device, DEADLINE))
        await self.untilState(backend, device.busId, DeviceState.IN_USE)
        traffic = backend.traffic(backend.inventory.get(device.busId))
        if traffic is not None:
            self.assertIsInstance(traffic, Traffic)
            self.assertGreaterEqual(min(traffic.bytesIn, traffic.bytesOut), 0)

    async def test_unplug(self) -> None:
        """A device that was unplugged cannot be bound, and is removed from the inventory."""
        backend, device = await self.started()
        await self.unplug(device)
        await self.failure(OperationFailed, backend.bind(device, DEADLINE))
        await self.until(lambda: backend.inventory.get(device.busId) is None)

    async def test_unplugBound(self) -> None:
        """A bound device that was unplugged is removed; plugged in again it is free."""
        backend, device = await self.started()
        await self.unplug(await backend.bind(device, DEADLINE))
        await self.until(lambda: backend.inventory.get(device.busId) is None)
        await self.plug(device)
        await self.untilState(backend, device.busId, DeviceState.FREE)

    async def test_replug(self) -> None:
        """A bind of a device that was replaced by another one fails."""
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


class KernelConformance(BackendConformance):
    """
    Further tests of a backend of this machine's devices, whose sessions are in the kernel.
    """

    async def test_refreshImported(self) -> None:
        """A refresh shows that a client has imported a device, which no uevent announces."""
        backend, device = await self.held()
        await backend.refresh(device)
        now = backend.inventory.get(device.busId)
        self.assertIs(now and now.state, DeviceState.IN_USE)


class HangingDeviceConformance(BackendConformance):
    """
    Further tests of a backend with a device that hangs.
    """

    async def hang(self, device: UsbDevice) -> None:
        """Make a device hang."""
        raise NotImplementedError

    async def revive(self, device: UsbDevice) -> None:
        """Make it answer again."""
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
