"""
Tests of L{usbip_server.backends.virtual}: clients that import its devices.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Awaitable, Callable

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.backends.virtualcase import (
    DEVICES,
    DISK,
    HOLDER,
    IN,
    OUT,
    PORT,
    SECONDS,
    ExportCase,
    handle,
    submit,
)
from tests.support.importclient import Door, untilShutDown
from tests.support.scriptedserver import received
from usbip_server.backends import softdevice
from usbip_server.backends.virtual import VirtualBackend, makeBackend
from usbip_server.interfaces import IUsbBackend
from usbip_server.model.device import DeviceState, UsbDevice
from usbip_server.model.errors import DeviceInUse, OperationFailed, OperationTimedOut
from usbip_server.testing import ExportConformance

if softdevice.installed:
    from usbip import USBDevice, protocol  # type: ignore[import-untyped]
    from usbip.classes.host.msc import MSCDriver  # type: ignore[import-untyped]
    from usbip.host import DeviceDescriptor  # type: ignore[import-untyped]


class VirtualConformanceTests(ExportConformance, TestCase):
    """
    The conformance suite, with a client that imports over loopback.
    """

    backend: VirtualBackend
    door: Door

    if not softdevice.installed:
        skip = "the package usbip is not installed"

    async def makeBackend(self) -> IUsbBackend:
        self.backend = makeBackend({"devices": DEVICES}, reactor)
        self.door = Door(self.backend)
        self.addCleanup(self.door.close)
        return self.backend

    async def importDevice(self, device: UsbDevice) -> None:
        client = socket.socket()
        self.addCleanup(client.close)
        await deferToThread(client.connect, ("127.0.0.1", self.door.port))
        await deferToThread(protocol.client_import, client, device.busId.encode())

    async def unplug(self, device: UsbDevice) -> None:
        self.backend.unplug(device.busId)

    async def plug(self, device: UsbDevice) -> None:
        self.backend.plug(device.busId)


class TrafficTests(ExportCase):
    """
    The traffic of a session.
    """

    async def test_descriptors(self) -> None:
        """The inventory describes a device as its descriptors do."""
        self.assertEqual(self.device(DISK).interfaces, ("08/06/50",))
        self.assertEqual((self.device().deviceClass, len(self.device().interfaces)), ("02", 2))
        for busId in (PORT, DISK):
            _, theirs = await self.export(busId)
            request = (0x80, 0x06, 0x0100, 0, 18)  # GET_DESCRIPTOR
            told = DeviceDescriptor.parse(await deferToThread(handle(theirs).control, *request))
            shown = self.device(busId)
            self.assertEqual(
                (shown.vendorId, shown.productId, shown.release, shown.configurations),
                (
                    f"{told.idVendor:04x}",
                    f"{told.idProduct:04x}",
                    told.bcdDevice,
                    told.bNumConfigurations,
                ),
            )
            self.assertEqual(
                bytes.fromhex(shown.deviceClass + shown.subclass + shown.protocol),
                bytes((told.bDeviceClass, told.bDeviceSubClass, told.bDeviceProtocol)),
            )

    async def test_writeAcknowledgedFirst(self) -> None:
        """A serial port acknowledges a write before it sends the echo, even if the read was
        requested earlier: some clients wait for the replies in this order."""
        _, theirs = await self.export()
        for number in range(1, 10, 2):
            theirs.sendall(submit(number, IN))
            theirs.sendall(submit(number + 1, OUT, b"hello"))
            for expected, data in ((number + 1, b""), (number, b"hello")):
                answer = await deferToThread(received, theirs, 48 + len(data))
                self.assertEqual(struct.unpack_from(">II", answer), (3, expected))
                self.assertEqual(answer[48:], data)

    async def test_replyFirst(self) -> None:
        """The backend sends nothing before the client has: the caller's reply to the import comes
        first. The caller does not lose its connection to the session, and may close it."""
        ours, theirs = await self.export()
        ours.send(b"answer")
        self.assertEqual(await deferToThread(theirs.recv, 100), b"answer")
        self.assertIsNone(self.backend.traffic(self.device()))  # counted by the caller
        ours.close()
        await self.echoes(theirs)

    async def test_blockingModes(self) -> None:
        """A session works whether the caller's connection blocks or not, and leaves the mode as it
        is."""
        for seconds in (0, None, 0.001):
            ours, theirs = self.connection()
            ours.settimeout(seconds)
            before = os.get_blocking(ours.fileno())
            await self.backend.export(self.device(), ours, HOLDER, 5)
            await self.echoes(theirs)
            self.assertEqual((os.get_blocking(ours.fileno()), ours.gettimeout()), (before, seconds))
            await self.backend.release(self.device(), 5)

    async def test_disk(self) -> None:
        """A disk keeps its content over sessions; more than a socket buffers is carried both
        ways."""
        content = os.urandom(1024 * 1024)
        driver = MSCDriver(handle((await self.export(DISK))[1]))
        await deferToThread(driver.write_blocks, 0, content, 512)
        await self.backend.release(self.device(DISK), 5)
        driver = MSCDriver(handle((await self.export(DISK))[1]))
        self.assertEqual(await deferToThread(driver.read_blocks, 0, 2048, 512), content)


class EndTests(ExportCase):
    """
    The end of a session, and exports that fail; see also the conformance suite.
    """

    async def test_shutDown(self) -> None:
        """However the backend ends a session, the connection is shut down for both ends."""

        async def unplug() -> None:
            self.backend.unplug(PORT)
            self.backend.plug(PORT)

        ways: list[tuple[Callable[[], Awaitable[object]], DeviceState]] = [
            (lambda: self.backend.release(self.device(), 5), DeviceState.BOUND),
            (lambda: self.backend.unbind(self.device(), 5), DeviceState.FREE),
            (unplug, DeviceState.FREE),
            (self.backend.stop, DeviceState.BOUND),
        ]
        for end, state in ways:
            await self.backend.bind(self.device(), 5)
            ours, theirs = await self.export()
            self.assertFalse(untilShutDown(ours, 0))
            await end()
            self.assertTrue(await deferToThread(untilShutDown, ours, SECONDS))
            self.assertEqual(await deferToThread(theirs.recv, 1), b"")
            await self.until(state)

    async def test_clientGone(self) -> None:
        """A client that closes its connection, or sends what is not USB/IP before that, ends its
        own session only."""
        for sent in (b"", b"\xff" * 47, b"\xff" * 500, b"GET / HTTP/1.1\r\n\r\n"):
            ours, theirs = await self.export()
            await deferToThread(theirs.sendall, sent)
            theirs.shutdown(socket.SHUT_WR)
            await self.until(DeviceState.BOUND)
            self.assertRaises(BrokenPipeError, ours.send, b"x")
            self.flushLoggedErrors()
        await self.echoes((await self.export())[1])

    async def test_againAtOnce(self) -> None:
        """A device whose session was ended can be exported at once, every time."""
        for _ in range(20):
            await self.export()
            await self.backend.release(self.device(), 5)
            await self.export()
            await self.backend.unbind(self.device(), 5)
            await self.backend.bind(self.device(), 5)
        await self.echoes((await self.export())[1])

    async def test_onlyOne(self) -> None:
        """Of simultaneous exports of a device one succeeds; the other connections are left as they
        are, and the session is not disturbed."""
        await self.export()
        await self.backend.unbind(self.device(), 5)
        bound = await self.backend.bind(self.device(), 5)
        ends = [self.connection() for _ in range(8)]
        exports = [self.backend.export(bound, ours, HOLDER, SECONDS) for ours, _ in ends]
        results = await DeferredList(
            [Deferred.fromCoroutine(export) for export in exports], consumeErrors=True
        )
        (winner,) = [at for at, (isExported, _) in enumerate(results) if isExported]
        for at, (ours, theirs) in enumerate(ends):
            if at == winner:
                await self.echoes(theirs)
            else:
                ours.send(b"no")
                self.assertEqual(theirs.recv(100), b"no")

    async def test_closed(self) -> None:
        """An export over a closed connection fails."""
        ours, _ = self.connection()
        ours.close()
        with self.assertRaises(OperationFailed):
            await self.backend.export(self.device(), ours, HOLDER, 5)
        self.assertIs(self.device().state, DeviceState.BOUND)


class StuckTests(ExportCase):
    """
    A device that hangs while a client has it.
    """

    async def setUp(self) -> None:  # type: ignore[override]
        await super().setUp()
        self.goOn = threading.Event()
        self.addCleanup(self.goOn.set)
        hangs = threading.Event()

        def hang(*arguments: object) -> None:
            hangs.set()
            self.goOn.wait()

        self.patch(USBDevice, "handle_urb", hang)
        self.ours, theirs = await self.export()
        theirs.sendall(submit(1, IN))
        await deferToThread(hangs.wait)

    async def rebind(self) -> None:
        """Unbind and bind the device."""
        await self.backend.unbind(self.device(), 5)
        await self.backend.bind(self.device(), 5)

    async def test_released(self) -> None:
        """After a release that times out the device is shown as C{error} until the session has
        ended; the client's connection is shut down at once."""
        for _ in range(2):
            with self.assertRaises(OperationTimedOut) as caught:
                await self.backend.release(self.device(), 0.05)
            self.assertIn("has not ended within 0.05 s", str(caught.exception))
            self.assertTrue(untilShutDown(self.ours, 0))
            await self.backend.refresh(self.device())
            self.assertIs(self.device().state, DeviceState.ERROR)
            with self.assertRaises(DeviceInUse):
                await self.export()
        self.goOn.set()
        await self.until(DeviceState.BOUND)
        self.assertIsNone(self.device().trouble)

    async def test_rebound(self) -> None:
        """Unbound and bound again, the device is shown as bound, but cannot be exported until the
        last session has ended."""
        await self.rebind()
        for _ in range(2):
            with self.assertRaises(DeviceInUse):
                await self.export(seconds=0.05)
            self.assertIs(self.device().state, DeviceState.BOUND)

    async def test_waits(self) -> None:
        """An export waits for the end of the last session."""
        await self.rebind()
        exporting = Deferred.fromCoroutine(self.export())
        self.assertNoResult(exporting)
        self.goOn.set()
        await exporting

    async def test_unboundMeanwhile(self) -> None:
        """An export that waits fails if the device is unbound."""
        await self.rebind()
        exporting = Deferred.fromCoroutine(self.export())
        await self.backend.unbind(self.device(), 5)
        self.goOn.set()
        with self.assertRaises(OperationFailed):
            await exporting
        self.assertIs(self.device().state, DeviceState.FREE)

    async def test_replugged(self) -> None:
        """A replugged device is another one: it can be exported at once."""
        self.backend.unplug(PORT)
        self.backend.plug(PORT)
        await self.backend.bind(self.device(), 5)
        await self.export()
        self.goOn.set()
