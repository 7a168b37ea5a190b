"""
The part of the conformance suite about the export of devices.
"""

from __future__ import annotations

import select
import socket

from twisted.internet.defer import Deferred

from usbip_server.interfaces import IUsbBackend
from usbip_server.model.device import DeviceState, UsbDevice
from usbip_server.model.errors import DeviceInUse, OperationFailed
from usbip_server.testing.conformance import DEADLINE, BackendConformance, KernelConformance


class NoExportConformance(BackendConformance):
    """
    Further tests of a backend that cannot export devices.
    """

    async def test_exportNone(self) -> None:
        """An export fails, and changes nothing."""
        backend, device = await self.started()
        bound = await backend.bind(device, DEADLINE)
        ours, _ = self.connect()
        await self.failure(OperationFailed, backend.export(bound, ours, self.holder(), DEADLINE))
        self.assertEqual(backend.inventory.get(device.busId), bound)


class ExportConformance(BackendConformance):
    """
    Further tests of a backend that can export devices.
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
        """Wait until the connection is shut down at the client's end."""

        def isShutDown() -> bool:
            try:
                return client.recv(4096) == b""
            except BlockingIOError:
                return False
            except ConnectionError:
                return True

        await self.until(isShutDown)

    async def test_export(self) -> None:
        """After an export the device is in use by the client that was given."""
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
        """A device in use is not exported to another client."""
        backend, exported, client = await self.exported()
        ours, _ = self.connect()
        await self.failure(DeviceInUse, backend.export(exported, ours, self.holder(8), DEADLINE))
        self.assertEqual(backend.inventory.get(exported.busId), exported)
        self.assertRaises(BlockingIOError, client.recv, 1)

    async def test_exportFree(self) -> None:
        """A free device cannot be exported; the connection stays as it is."""
        backend, device = await self.started()
        ours, client = self.connect()
        await self.failure(OperationFailed, backend.export(device, ours, self.holder(), DEADLINE))
        self.assertEqual(backend.inventory.get(device.busId), device)
        ours.send(b"no")
        await self.until(lambda: select.select([client], [], [], 0)[0])
        self.assertEqual(client.recv(3), b"no")

    async def test_exportGone(self) -> None:
        """A device that was unplugged, or replaced by another one, cannot be exported."""
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
        """An unbind shuts down the client's connection."""
        backend, exported, client = await self.exported()
        self.assertIs((await backend.unbind(exported, DEADLINE)).state, DeviceState.FREE)
        await self.untilShutDown(client)

    async def test_unplugExported(self) -> None:
        """So does unplugging the device."""
        backend, exported, client = await self.exported()
        await self.unplug(exported)
        await self.untilShutDown(client)
        await backend.refresh(exported)
        await self.until(lambda: backend.inventory.get(exported.busId) is None)

    async def test_releaseExported(self) -> None:
        """So does a release; the device can be exported to another client at once."""
        backend, exported, client = await self.exported()
        released = await backend.release(exported, DEADLINE)
        self.assertEqual((released.state, released.holder), (DeviceState.BOUND, None))
        await self.untilShutDown(client)
        (ours, other), holder = self.connect(), self.holder(8)
        again = await backend.export(released, ours, holder, DEADLINE)
        self.assertEqual((again.state, again.holder), (DeviceState.IN_USE, holder))
        self.assertRaises(BlockingIOError, other.recv, 1)


class KernelExportConformance(ExportConformance, KernelConformance):
    """
    Further tests of a backend of this machine's devices that can export them.
    """

    async def test_exportClosed(self) -> None:
        """A session continues after the caller has closed the connection: the kernel has a
        reference."""
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
