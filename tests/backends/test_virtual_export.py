"""
Tests of how L{usbip_server.backends.virtual} takes connections, and gives them back.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.support.importclient import untilShutDown
from tests.support.scriptedserver import received
from usbip_server.backends import softdevice
from usbip_server.backends.virtual import makeBackend
from usbip_server.model.device import DeviceState, Holder, UsbDevice
from usbip_server.model.errors import DeviceInUse, OperationFailed, OperationTimedOut
from usbip_server.model.inventory import Change

if softdevice.installed:
    from usbip import USBDevice  # type: ignore[import-untyped]
    from usbip.classes.host.cdc_acm import CDCDriver  # type: ignore[import-untyped]
    from usbip.classes.host.msc import MSCDriver  # type: ignore[import-untyped]
    from usbip.host import Connection, Handle  # type: ignore[import-untyped]

DEVICES = [
    {"bus_id": "1-1", "kind": "serial"},
    {"bus_id": "1-2", "kind": "disk", "size": 1024},
]

SECONDS = 60.0
"""For what is waited for."""

HOLDER = Holder(address="192.0.2.9", since=5.0)


def handle(client: socket.socket) -> Any:
    """A client's end of a session, as the package's drivers want to have it."""
    return Handle(Connection(client), None)


class ExportCase(TestCase):
    """
    The caller's end of a connection, and the client's.
    """

    timeout = 300

    if not softdevice.installed:
        skip = "the package usbip is not installed"

    async def setUp(self) -> None:  # type: ignore[override]
        self.backend = makeBackend({"devices": DEVICES}, reactor)
        await self.backend.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.backend.stop()))
        for device in self.backend.inventory.snapshot.devices:
            await self.backend.bind(device, 5)

    def device(self, busId: str) -> UsbDevice:
        """A device, as it is now."""
        device = self.backend.inventory.get(busId)
        assert device is not None
        return device

    def connection(self) -> tuple[socket.socket, socket.socket]:
        """The caller's end, which does not block, and the client's, which does."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.settimeout(SECONDS)
            self.addCleanup(end.close)
        ours.setblocking(False)
        return ours, theirs

    async def export(self, busId: str, seconds: float = SECONDS) -> tuple[socket.socket, ...]:
        """Give a device to a client."""
        ours, theirs = self.connection()
        exported = await self.backend.export(self.device(busId), ours, HOLDER, seconds)
        self.assertEqual(exported, self.device(busId))
        self.assertIs(exported.state, DeviceState.IN_USE)
        self.assertEqual(exported.holder, HOLDER)
        return ours, theirs

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

    async def echoes(self, client: socket.socket) -> None:
        """A client's serial port echoes."""
        driver = CDCDriver(handle(client))
        await deferToThread(driver.write, b"hello")
        self.assertEqual(await deferToThread(driver.read), b"hello")


class OrderTests(ExportCase):
    """
    What a client is told first.
    """

    IN, OUT = 1, 0

    def submit(self, number: int, direction: int, data: bytes = b"", length: int = 64) -> bytes:
        """A C{USBIP_CMD_SUBMIT} to the port's first endpoint."""
        size = len(data) or length
        return struct.pack(">10I8x", 1, number, 0, direction, 1, 0, size, 0, 0, 0) + data

    async def test_acknowledged(self) -> None:
        """That a port has taken what it echoes: then the echo, though it was asked for before.
        There are clients that wait for them in this order."""
        _, theirs = await self.export("1-1")
        for number in range(1, 10, 2):
            theirs.sendall(self.submit(number, self.IN))
            theirs.sendall(self.submit(number + 1, self.OUT, b"hello"))
            for expected, data in ((number + 1, b""), (number, b"hello")):
                answer = await deferToThread(received, theirs, 48 + len(data))
                self.assertEqual(struct.unpack_from(">II", answer), (3, expected))
                self.assertEqual(answer[48:], data)


class EndTests(ExportCase):
    """
    However a session ends, the caller sees that its connection has been shut down.
    """

    async def ends(self, busId: str, how: Callable[[], Awaitable[object]]) -> None:
        """A session that is ended so ends."""
        ours, theirs = await self.export(busId)
        self.assertFalse(untilShutDown(ours, 0))
        await how()
        self.assertTrue(await deferToThread(untilShutDown, ours, SECONDS))
        self.assertEqual(await deferToThread(theirs.recv, 1), b"")

    async def test_released(self) -> None:
        """A client that has it taken from it."""
        await self.ends("1-1", lambda: self.backend.release(self.device("1-1"), 5))
        self.assertIs(self.device("1-1").state, DeviceState.BOUND)

    async def test_unbound(self) -> None:
        """The device is unbound."""
        await self.ends("1-1", lambda: self.backend.unbind(self.device("1-1"), 5))
        self.assertIs(self.device("1-1").state, DeviceState.FREE)

    async def test_unplugged(self) -> None:
        """It is pulled out."""

        async def unplug() -> None:
            self.backend.unplug("1-1")

        await self.ends("1-1", unplug)
        self.assertIsNone(self.backend.inventory.get("1-1"))

    async def test_stopped(self) -> None:
        """The backend is stopped."""
        await self.ends("1-1", self.backend.stop)
        await self.until("1-1", DeviceState.BOUND)

    async def test_clientGone(self) -> None:
        """The client closes its side, or sends what is no USB traffic before that."""
        for sent in (b"", b"\xff" * 47, b"\xff" * 500, b"GET / HTTP/1.1\r\n\r\n"):
            ours, theirs = await self.export("1-1")
            await deferToThread(theirs.sendall, sent)
            theirs.shutdown(socket.SHUT_WR)
            await self.until("1-1", DeviceState.BOUND)
            with self.assertRaises(BrokenPipeError):
                ours.send(b"x")
            self.flushLoggedErrors()
        await self.echoes((await self.export("1-1"))[1])


class CarryTests(ExportCase):
    """
    What goes over the connection that was given.
    """

    async def test_quiet(self) -> None:
        """Nothing is sent to the client before it has sent something: the answer to its
        request is the first thing that it hears."""
        ours, theirs = await self.export("1-1")
        ours.send(b"answer")
        self.assertEqual(await deferToThread(theirs.recv, 100), b"answer")
        await self.echoes(theirs)

    async def test_blocking(self) -> None:
        """It carries traffic whether the caller's connection blocks or not, for however long
        the caller would wait, and leaves that as it is."""
        for seconds in (0, None, 0.001):
            ours, theirs = self.connection()
            ours.settimeout(seconds)
            before = os.get_blocking(ours.fileno())
            await self.backend.export(self.device("1-1"), ours, HOLDER, 5)
            for _ in range(3):
                await self.echoes(theirs)
            self.assertEqual(os.get_blocking(ours.fileno()), before)
            self.assertEqual(ours.gettimeout(), seconds)
            await self.backend.release(self.device("1-1"), 5)

    async def test_large(self) -> None:
        """More than a connection holds gets to the other end whole, each way."""
        content = os.urandom(512 * 1024)
        driver = MSCDriver(handle((await self.export("1-2"))[1]))
        await deferToThread(driver.write_blocks, 0, content, 512)
        self.assertEqual(await deferToThread(driver.read_blocks, 0, 1024, 512), content)

    async def test_reference(self) -> None:
        """The caller may close its connection: the session goes on."""
        ours, theirs = await self.export("1-1")
        ours.close()
        await self.echoes(theirs)

    async def test_noTraffic(self) -> None:
        """What it moves is for the caller to count."""
        await self.export("1-1")
        self.assertIsNone(self.backend.traffic(self.device("1-1")))


class RefusalTests(ExportCase):
    """
    Exports that fail leave the connection as it is.
    """

    async def refused(self, kind: type[OperationFailed], busId: str, seconds: float = 5) -> str:
        """To export a device fails."""
        ours, theirs = self.connection()
        with self.assertRaises(kind) as caught:
            await self.backend.export(self.device(busId), ours, HOLDER, seconds)
        ours.send(b"no")
        self.assertEqual(theirs.recv(100), b"no")
        return str(caught.exception)

    async def test_free(self) -> None:
        """What is not bound cannot be imported."""
        await self.backend.unbind(self.device("1-1"), 5)
        self.assertIn("not bound", await self.refused(OperationFailed, "1-1"))
        self.assertIs(self.device("1-1").state, DeviceState.FREE)

    async def test_replugged(self) -> None:
        """Nor another one than was meant."""
        before = self.device("1-1")
        self.backend.unplug("1-1")
        self.backend.plug("1-1")
        await self.backend.bind(self.device("1-1"), 5)
        with self.assertRaises(OperationFailed):
            await self.backend.export(before, self.connection()[0], HOLDER, 5)
        self.assertIs(self.device("1-1").state, DeviceState.BOUND)

    async def test_inUse(self) -> None:
        """Nor what a client has; that one is not disturbed."""
        _, theirs = await self.export("1-1")
        self.assertIn("in use by 192.0.2.9", await self.refused(DeviceInUse, "1-1"))
        await self.echoes(theirs)

    async def test_closed(self) -> None:
        """Over a connection that is closed nothing is exported."""
        ours, _ = self.connection()
        ours.close()
        with self.assertRaises(OperationFailed):
            await self.backend.export(self.device("1-1"), ours, HOLDER, 5)
        self.assertIs(self.device("1-1").state, DeviceState.BOUND)


class StuckTests(ExportCase):
    """
    A device that does not answer while a client has it.
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
        self.ours, theirs = await self.export("1-1")
        theirs.sendall(bytes(48))
        await deferToThread(hangs.wait)

    async def test_released(self) -> None:
        """That it does not end is an error until it does, whoever looks meanwhile; its client
        has lost it at once."""
        with self.assertRaises(OperationTimedOut):
            await self.backend.release(self.device("1-1"), 0.05)
        self.assertTrue(untilShutDown(self.ours, 0))
        await self.backend.refresh(self.device("1-1"))
        self.assertIs(self.device("1-1").state, DeviceState.ERROR)
        with self.assertRaises(DeviceInUse):
            await self.export("1-1")
        self.goOn.set()
        await self.until("1-1", DeviceState.BOUND)

    async def test_unbound(self) -> None:
        """Unbound and bound again, it is not given to the next client, until the last one's
        session has ended, but it is not shown as that one's."""
        await self.backend.unbind(self.device("1-1"), 5)
        await self.backend.bind(self.device("1-1"), 5)
        for _ in range(2):
            with self.assertRaises(DeviceInUse):
                await self.export("1-1", 0.05)
            self.assertIs(self.device("1-1").state, DeviceState.BOUND)

    async def test_waits(self) -> None:
        """An export waits for that."""
        await self.backend.unbind(self.device("1-1"), 5)
        await self.backend.bind(self.device("1-1"), 5)
        exporting = Deferred.fromCoroutine(self.export("1-1"))
        self.assertNoResult(exporting)
        self.goOn.set()
        await exporting

    async def test_unboundMeanwhile(self) -> None:
        """If it is unbound while it waits, it fails."""
        await self.backend.unbind(self.device("1-1"), 5)
        await self.backend.bind(self.device("1-1"), 5)
        exporting = Deferred.fromCoroutine(self.export("1-1"))
        await self.backend.unbind(self.device("1-1"), 5)
        self.goOn.set()
        with self.assertRaises(OperationFailed):
            await exporting
        self.assertIs(self.device("1-1").state, DeviceState.FREE)

    async def test_unplugged(self) -> None:
        """Plugged in anew it is another device, which does not wait for the last one."""
        self.backend.unplug("1-1")
        self.backend.plug("1-1")
        await self.backend.bind(self.device("1-1"), 5)
        await self.export("1-1")
        self.goOn.set()
