"""
Tests of L{usbip_server.backends.remote.backend}: a gateway to servers in this process, over real
connections.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase

from tests.backends.remote.remotecase import DEVICES, SETTINGS, HesitantBackend, RemoteCase
from tests.support.fixtures import EVERYBODY, UNO, asked, changed
from tests.support.remoteserver import FarServer
from tests.support.scriptedserver import REQUEST, Play, ScriptedServer, received, says
from tests.support.timedreactor import OVER, TimedReactor
from usbip_server.backends import softdevice
from usbip_server.backends.remote import backend as remote
from usbip_server.backends.remote import requests
from usbip_server.backends.remote.backend import RemoteBackend
from usbip_server.backends.remote.config import Host
from usbip_server.backends.virtual import VirtualDevice
from usbip_server.client.servers import Server
from usbip_server.model.device import DeviceState, Holder, UsbDevice
from usbip_server.model.errors import (
    DeviceInUse,
    OperationFailed,
    OperationTimedOut,
)
from usbip_server.model.inventory import ChangeKind
from usbip_server.model.options import Timeouts
from usbip_server.model.policy import Grant, Policy, Right
from usbip_server.model.usbip import OpStatus, encodeImport, encodeRefusal
from usbip_server.server.config import Settings

DEADLINE = 300.0
"""Seconds, for what is not to be late."""

SOON = 0.1

CLIENT = Holder(address="192.0.2.7", since=1000.0)


class RemoteTestCase(RemoteCase):
    """
    A gateway that has started.
    """

    timeout = 300

    async def started(self, *more: Host) -> UsbDevice:
        """
        Start it.

        @param more: servers besides.
        @return: the first device.
        """
        await self.makeBackend()
        self.patch(remote, "FIRST_SECONDS", DEADLINE)
        self.patch(requests, "SECONDS", DEADLINE)
        self.timed = TimedReactor()
        self.backend = RemoteBackend(self.timed, [*self.hosts(), *more], lambda: 0.0)
        self.addCleanup(self.backend.stop)
        await self.backend.start()
        return self.shown[0]

    def hosts(self) -> list[Host]:
        """The servers of the gateway."""
        return [self.server.host()]

    @property
    def shown(self) -> tuple[UsbDevice, ...]:
        """The devices that the gateway shows."""
        return self.backend.inventory.snapshot.devices

    def deviceThere(self, busId: str = "1-1") -> UsbDevice:
        """A device as its server shows it."""
        device = self.far.inventory.get(busId)
        assert device is not None
        return device

    async def until(self, condition: Any) -> None:
        """Poll a condition until it holds."""
        while not condition():
            await deferLater(reactor, 0.01)

    async def bindTooLong(self, device: UsbDevice) -> None:
        """A bind hangs at the server until after its deadline."""
        binding = asked(self.backend.bind(device, OVER))
        await self.until(lambda: self.far.isHanging(device))
        self.timed.timeIsOver()
        await self.failure(OperationTimedOut, binding)

    async def failure(self, kind: type[Exception], awaitable: Any) -> str:
        """The text of the expected error."""
        try:
            result = await awaitable
        except kind as error:
            return str(error)
        self.fail(f"no error: {result}")

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """A client's connection: the gateway's end, and the client's."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            client = socket.create_connection(listening.getsockname())
            ours, _ = listening.accept()
        for end in (ours, client):
            end.setblocking(False)
            self.addCleanup(end.close)
        return ours, client

    async def exported(self, device: UsbDevice) -> tuple[UsbDevice, socket.socket]:
        """A device that a client has imported, and the client's connection."""
        bound = await self.backend.bind(device, DEADLINE)
        ours, client = self.connect()
        return await self.backend.export(bound, ours, CLIENT, DEADLINE), client

    async def untilShutDown(self, client: socket.socket) -> None:
        """Wait until the connection of a client is closed."""

        def isShutDown() -> bool:
            try:
                return client.recv(4096) == b""
            except BlockingIOError:
                return False
            except ConnectionError:
                return True

        await self.until(isShutDown)


class DevicesTests(RemoteTestCase):
    """
    The devices that a gateway shows.
    """

    devices = (*DEVICES, VirtualDevice(bus_id="100-1"), VirtualDevice(bus_id="100-2"))

    async def test_busIdsAndDescriptions(self) -> None:
        """A device has another bus number, and its server's name in the description; all else is
        as at the server. Devices on buses above the range are left out, with one warning for each
        bus."""
        with capturedLogs() as events:
            await self.started()
            await self.unplug(self.shown[1])
            await self.plug(self.shown[1])
            await self.until(lambda: self.shown[1].deviceNumber > 5)
        self.assertEqual(
            [(device.busId, device.description, device.sysfsPath) for device in self.shown],
            [("101-1", "Port at far", "far:1-1"), ("101-2.3", "Disk at far", "far:1-2.3")],
        )
        there_, here = self.deviceThere(), self.shown[0]
        for name in ("serial", "deviceNumber", "product", "speed", "interfaces", "driver", "state"):
            self.assertEqual(getattr(here, name), getattr(there_, name), name)
        left = [each["bus"] for each in events if "is left out" in each["log_format"]]
        self.assertEqual(left, ["100"])

    async def test_importReply(self) -> None:
        """What only the reply to an import contains is shown during the session: above all the
        numbers that USB traffic addresses the device by."""
        device = await self.started()
        exported, _ = await self.exported(device)
        there_ = self.deviceThere()
        self.assertEqual(exported.numbers, (1, there_.deviceNumber))
        self.assertEqual((exported.release, exported.subclass), (there_.release, there_.subclass))
        self.assertEqual(encodeImport(exported)[296:304].hex(), f"00000001{2:08x}")
        released = await self.backend.release(exported, DEADLINE)
        self.assertIsNone(released.numbers)

    async def test_holderIsTheClient(self) -> None:
        """Each change is reported once, with the client as holder, though the server reports the
        gateway."""
        device = await self.started()
        heard: list[Any] = []
        self.backend.inventory.subscribe(heard.extend)
        _, client = await self.exported(device)
        client.close()
        await self.until(lambda: heard and heard[-1].kind is ChangeKind.RELEASED)
        self.assertEqual(
            [change.kind for change in heard],
            [ChangeKind.BOUND, ChangeKind.IMPORTED, ChangeKind.RELEASED],
        )
        self.assertEqual(heard[1].device.holder, CLIENT)
        self.assertEqual(heard[2].before.holder, CLIENT)

    async def test_traffic(self) -> None:
        """The traffic of the gateway's sessions is counted by itself; that of others is what their
        server reports."""
        device = await self.started()
        exported, client = await self.exported(device)
        client.send(b"the beginning of something")
        client.shutdown(socket.SHUT_WR)
        await self.untilShutDown(client)
        traffic = self.backend.traffic(exported)
        self.assertEqual(traffic and traffic.bytesIn, 26)
        await self.until(lambda: self.shown[0].state is DeviceState.BOUND)
        self.assertEqual(self.backend.traffic(self.shown[0]), traffic)
        await self.importFrom(self.server.exportPort, "1-1")
        await self.until(lambda: self.shown[0].state is DeviceState.IN_USE)
        traffic = self.backend.traffic(self.shown[0])
        self.assertEqual(traffic and traffic.bytesIn, 40)
        self.assertEqual(str(self.shown[0].holder and self.shown[0].holder.address), "127.0.0.1")


class OperationsTests(RemoteTestCase):
    """
    Operations at a server.
    """

    async def test_longerThanAnswer(self) -> None:
        """An operation that takes the server longer than C{timeouts.answer} is asked for again."""
        device = await self.started()
        await self.hang(device)
        binding = asked(self.backend.bind(device, DEADLINE))
        await self.until(lambda: self.far.isHanging(device))
        later(4 * SETTINGS.timeouts.answer, lambda: self.revive(device))
        self.assertIs((await binding).state, DeviceState.BOUND)
        # Twice, if it has ended just before it was asked for again; that changes nothing.
        self.assertLessEqual(self.far.binds, 2)

    async def test_undoneAfterDeadline(self) -> None:
        """A bind that ends after its deadline is undone."""
        device = await self.started()
        await self.hang(device)
        await self.bindTooLong(device)
        self.assertIs(self.shown[0].state, DeviceState.ERROR)
        await self.revive(device)
        await self.until(lambda: self.shown[0].state is DeviceState.FREE)
        self.assertIs(self.deviceThere().state, DeviceState.FREE)

    async def test_boundAgainAfterDeadline(self) -> None:
        """But not if there is another bind by then."""
        device = await self.started()
        await self.hang(device)
        await self.bindTooLong(device)
        later(SOON, lambda: self.revive(device))
        bound = await self.backend.bind(device, DEADLINE)
        await deferLater(reactor, SOON)
        self.assertEqual((bound.state, self.shown[0]), (DeviceState.BOUND, bound))

    async def test_serverLost(self) -> None:
        """Without the server the operation fails, and the devices are removed."""
        device = await self.started()
        await self.hang(device)
        later(SOON, self.server.cutOff)
        said = await self.failure(OperationFailed, self.backend.bind(device, DEADLINE))
        self.assertIn("far (127.0.0.1:", said)
        await self.until(lambda: not self.shown or self.backend.inventory.trouble is None)
        await self.revive(device)

    async def test_stopped(self) -> None:
        """When the gateway stops, operations fail and sessions end; devices stay bound."""
        device = await self.started()
        exported, client = await self.exported(self.shown[1])
        await self.hang(device)
        later(SOON, self.backend.stop)
        said = await self.failure(OperationFailed, self.backend.bind(device, DEADLINE))
        self.assertIn("is stopping", said)
        await self.untilShutDown(client)
        await self.until(lambda: self.deviceThere("1-2.3").state is DeviceState.BOUND)
        await self.backend.refresh(exported)
        await self.revive(device)


class ForbiddenTests(RemoteTestCase):
    """
    A server that does not allow C{attach}.
    """

    settings = Settings(
        access=Policy(
            allow=EVERYBODY.allow,
            deny=(Grant(who="anyone", commands=Right.ATTACH),),
        ),
        timeouts=Timeouts(answer=0.05),
    )

    async def test_attach(self) -> None:
        """The text of its refusal is passed on."""
        device = await self.started()
        said = await self.failure(OperationFailed, self.backend.bind(device, DEADLINE))
        self.assertIn("101-1 (Port at far): its server says: 127.0.0.1 may not attach", said)


class ExportTests(RemoteTestCase):
    """
    A server whose export port sends scripted bytes.
    """

    async def refused(self, play: Play, kind: type[Exception], deadline: float = DEADLINE) -> str:
        """The export fails, and the client's connection is untouched; return the error."""
        self.scripted = ScriptedServer(play)
        self.scripted.__enter__()
        self.addCleanup(deferToThread, self.scripted.__exit__, None, None, None)
        device = await self.started()
        bound = await self.backend.bind(device, DEADLINE)
        ours, client = self.connect()
        said = await self.failure(kind, self.backend.export(bound, ours, CLIENT, deadline))
        self.assertEqual(self.shown[0], bound)
        self.assertRaises(BlockingIOError, client.recv, 1)
        return said

    def hosts(self) -> list[Host]:
        port, exportPort = self.server.port, self.scripted.port
        server = Server(name="far", host="127.0.0.1", port=port, exportPort=exportPort)
        return [Host(server=server, bus=100)]

    async def test_busy(self) -> None:
        """C{DEV_BUSY} means that the device is in use."""
        said = await self.refused(says(encodeRefusal(OpStatus.DEV_BUSY)), DeviceInUse)
        self.assertIn("in use", said)

    async def test_refused(self) -> None:
        """Another status, bytes that are not USB/IP, and an import that is confirmed although the
        server does not show the device as in use, are errors."""
        device = changed(UNO, busId="1-1")
        for answer, text in (
            (encodeRefusal(OpStatus.NODEV), "cannot export 101-1"),
            (b"SSH-2.0-OpenSSH_9.2", r"far \(127.0.0.1:[0-9]+\): "),
            (encodeImport(device), "was taken away again at once"),
        ):
            self.assertRegex(await self.refused(says(answer), OperationFailed), text)

    async def test_silent(self) -> None:
        """Without an answer the export fails at its deadline."""
        isAsked, isOver = threading.Event(), threading.Event()

        def play(connection: socket.socket) -> None:
            received(connection, REQUEST)
            isAsked.set()
            isOver.wait(DEADLINE)

        refusing = asked(self.refused(play, OperationTimedOut, OVER))
        await self.until(isAsked.is_set)
        self.timed.timeIsOver()
        try:
            self.assertIn("has not answered the import within 1000 s", await refusing)
        finally:
            isOver.set()


class SeveralTests(TestCase):
    """
    A gateway to two servers.
    """

    timeout = 300

    if not softdevice.installed:
        skip = "the package usbip is not installed"

    async def make(self) -> None:
        """Not started."""
        self.patch(remote, "FIRST_SECONDS", DEADLINE)
        self.patch(requests, "SECONDS", DEADLINE)
        self.servers = [await self.serve() for _ in range(2)]
        hosts = [
            server.host(bus, name)
            for server, bus, name in zip(
                self.servers, (100, 200), ("kitchen", "cellar"), strict=True
            )
        ]
        self.backend = RemoteBackend(reactor, hosts, lambda: 0.0)
        self.addCleanup(self.backend.stop)

    async def serve(self, port: int = 0) -> FarServer:
        """Another server."""
        server = FarServer(HesitantBackend(DEVICES), reactor, SETTINGS)
        self.addCleanup(server.stop)
        await server.start(port)
        return server

    @property
    def busIds(self) -> list[str]:
        """The devices shown."""
        return [device.busId for device in self.backend.inventory.snapshot.devices]

    async def until(self, *busIds: str) -> None:
        """Wait until these devices are shown."""
        while self.busIds != [*busIds]:
            await deferLater(reactor, 0.01)

    async def test_oneLost(self) -> None:
        """The devices of a server are shown while it is connected, each time; those of another
        server are shown meanwhile."""
        both = ("101-1", "101-2.3", "201-1", "201-2.3")
        await self.make()
        kitchen, _ = self.servers
        await kitchen.stop()
        await self.backend.start()
        self.assertEqual(self.busIds, ["201-1", "201-2.3"])
        self.assertIsNone(self.backend.inventory.trouble)
        for _ in range(2):
            again = await self.serve(kitchen.port)
            await self.until(*both)
            await again.stop()
            await self.until("201-1", "201-2.3")

    async def test_noServer(self) -> None:
        """When no server is connected, the trouble of the inventory gives the reason for each."""
        await self.make()
        for server in self.servers:
            await server.stop()
        await self.backend.start()
        self.assertEqual(self.busIds, [])
        self.assertRegex(
            str(self.backend.inventory.trouble),
            r"\Ano server is connected: kitchen \(.*\): Connection refused; "
            r"cellar \(.*\): Connection refused\Z",
        )
        await self.serve(self.servers[1].port)
        await self.until("201-1", "201-2.3")
        self.assertIsNone(self.backend.inventory.trouble)

    async def test_slowServer(self) -> None:
        """A server that does not answer does not delay the start for long."""
        await self.make()
        self.patch(remote, "FIRST_SECONDS", SOON)
        scripted = ScriptedServer(isSilent)
        scripted.__enter__()
        self.addCleanup(deferToThread, scripted.__exit__, None, None, None)
        slow = Host(server=scripted.server, bus=300)
        backend = RemoteBackend(reactor, [slow], lambda: 0.0)
        self.addCleanup(backend.stop)
        await backend.start()
        self.assertRegex(str(backend.inventory.trouble), "raspi .*: it has not answered yet")


def isSilent(connection: socket.socket) -> None:
    """A server that never answers."""
    while connection.recv(4096):
        pass


def later(seconds: float, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine later."""
    clock: Any = reactor
    clock.callLater(seconds, lambda: Deferred.fromCoroutine(work()))
