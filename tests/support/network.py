"""
Servers and the network between them and a client, in memory and on a clock that stands still: what
is at the other ends are the daemon's own parts.
"""

from __future__ import annotations

import enum
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone, ConnectionLost, ConnectionRefusedError, UserError
from twisted.internet.interfaces import IReactorPluggableNameResolver
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.support.fixtures import EPOCH, EVERYBODY, MemoryTransport, PromptBackend, asked, changed
from usbip_server.client.imports import Imported
from usbip_server.client.servers import Server
from usbip_server.model.device import DeviceState, Encryption, Holder, UsbDevice
from usbip_server.model.errors import DeviceInUse, Unreachable
from usbip_server.model.policy import Principal
from usbip_server.model.usbip import NotGiven, OpStatus, decodeImport, encodeImport
from usbip_server.net.resolver import Resolver
from usbip_server.protocols.lines import CommandFactory
from usbip_server.server.config import LiveSettings, Settings
from usbip_server.server.core import Core
from usbip_server.server.responder import Responder
from usbip_server.testing.reactor import FakeReactor

US = Principal("192.0.2.200")


class Answer(enum.Enum):
    """
    What becomes of who connects.
    """

    ACCEPTS = "accepts"
    REFUSES = "refuses"
    SILENT = "silent"
    """Nothing comes back: there is no such machine, or the cable is out."""


class Backend(PromptBackend):
    """
    One that disturbs nobody who is not to be disturbed.
    """

    def __init__(self, devices: Sequence[UsbDevice], end: Callable[[str], None]) -> None:
        """
        @param end: ends the session of the client that has a device.
        """
        super().__init__(devices)
        self._end = end

    async def bind(
        self, device: UsbDevice, deadline: float, allowMounted: bool = False
    ) -> UsbDevice:
        now = self.inventory.same(device) or device
        if now.state is DeviceState.IN_USE:
            raise DeviceInUse(now)
        return await super().bind(device, deadline, allowMounted)

    async def unbind(self, device: UsbDevice, deadline: float) -> UsbDevice:
        self._end(device.busId)
        return await super().unbind(device, deadline)

    async def release(self, device: UsbDevice, deadline: float) -> UsbDevice:
        self._end(device.busId)
        return await super().release(device, deadline)


class Room:
    """
    A server.

    @ivar answer: to those who connect.
    @ivar tries: when somebody has tried to, by the clock.
    @ivar refuse: what an import is refused with; C{None}: it is not.
    @ivar isMute: says it nothing any more, over the connections it has?
    @ivar commands: what it was asked to do, as far as it changes anything.
    """

    def __init__(self, network: Network, host: str, devices: Sequence[UsbDevice]) -> None:
        self.host = host
        self.answer = Answer.ACCEPTS
        self.tries: list[float] = []
        self.isMute = False
        self.refuse: OpStatus | None = None
        self.backend: PromptBackend = Backend(devices, self._end)
        self._network = network
        self._pipes: list[Pipe] = []
        self._sessions: dict[str, socket.socket] = {}
        self._numbers = 100
        self._begin()

    def _begin(self) -> None:
        settings = LiveSettings(Settings(access=EVERYBODY))
        self._core = Core(self.backend, self._network, settings, now=self._network.now)
        self._settings = settings
        self.answers = Responder(self._core.dispatcher, self._core.requests)
        asked(self._core.start())

    @property
    def commands(self) -> list[tuple[str, str]]:
        """What its backend was told."""
        return [(call.verb, call.device.busId) for call in self.backend.calls]

    @property
    def watchers(self) -> int:
        """How many connections there are."""
        return sum(1 for pipe in self._pipes if not pipe.isOver)

    def accept(self, protocol: Any) -> None:
        """Somebody connects, and is let."""
        lines = CommandFactory(self.answers, self._settings, self._network).make(US)
        self._pipes.append(Pipe(protocol, lines))

    def hush(self, isMute: bool = True) -> None:
        """Say nothing any more over the connections that there are now; or say it after all."""
        for pipe in self._pipes:
            pipe.isMute = isMute

    def turn(self) -> bool:
        """
        Carry what is under way.

        @return: was there anything?
        """
        moved = [pipe.turn(self.isMute) for pipe in tuple(self._pipes)]  # all of them
        return any(moved)

    # What happens to a machine.

    def plug(self, device: UsbDevice) -> UsbDevice:
        """Plug a device in."""
        self._numbers += 1
        plugged = changed(device, deviceNumber=self._numbers, state=DeviceState.FREE)
        self.backend.inventory.replace([plugged], {plugged.busId})
        return plugged

    def unplug(self, busId: str) -> None:
        """Pull it out: its client notices."""
        self._end(busId)
        self.backend.inventory.replace([], {busId})

    def become(self, busId: str, state: DeviceState, address: str | None = None) -> None:
        """Somebody else binds a device, imports it, or gives it back."""
        device = self.backend.inventory.get(busId)
        assert device is not None
        holder = Holder(address=address, since=self._network.now()) if address else None
        now = changed(device, state=state, holder=holder)
        self.backend.inventory.replace([now], {busId})

    def release(self, busId: str) -> None:
        """A session ends."""
        self._end(busId)
        self.become(busId, DeviceState.BOUND)

    def forget(self, busId: str) -> None:
        """The client's end of a session ends, and the server does not notice."""
        self._end(busId)

    def cut(self, answer: Answer = Answer.SILENT) -> None:
        """
        The connections for requests break, and there will be no others.

        @param answer: to those who try.
        """
        self.answer = answer
        for pipe in self._pipes:
            pipe.cut()
        self._pipes = [pipe for pipe in self._pipes if not pipe.isOver]

    def restart(self) -> None:
        """As after kill -9: a new daemon finds the devices as they are."""
        self.cut(Answer.ACCEPTS)
        devices = self.backend.inventory.snapshot.devices
        self.backend = Backend(devices, self._end)
        self._begin()

    def importDevice(self, server: Server, busId: str) -> Imported:
        """Somebody wants to have a device."""
        device = self.backend.inventory.get(busId)
        if self.answer is not Answer.ACCEPTS:
            raise Unreachable(f"{server}: no answer in time")
        if self.refuse is not None:
            raise NotGiven(self.refuse)
        if device is None or device.state is not DeviceState.BOUND:
            isBusy = device is not None and device.state is DeviceState.IN_USE
            raise NotGiven(OpStatus.DEV_BUSY if isBusy else OpStatus.NODEV)
        given, theirs = socket.socketpair()
        self._sessions[busId] = theirs
        self.become(busId, DeviceState.IN_USE, US.address)
        exported = decodeImport(encodeImport(device))
        assert exported is not None
        return Imported(device=exported, connection=given, encryption=Encryption.NONE)

    def notice(self) -> None:
        """See which clients have gone."""
        for busId, connection in tuple(self._sessions.items()):
            try:
                isOver = connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
            except BlockingIOError:
                isOver = False
            if isOver:
                self.release(busId)

    def close(self) -> None:
        """The end."""
        for busId in tuple(self._sessions):
            self._end(busId)

    def _end(self, busId: str) -> None:
        if busId in self._sessions:
            connection = self._sessions.pop(busId)
            connection.shutdown(socket.SHUT_RDWR)
            connection.close()


class Pipe:
    """
    A connection between a client's protocol and a server's.

    @ivar isMute: does nothing come that the server says?
    """

    def __init__(self, client: Any, server: Any) -> None:
        self.isOver = self.isMute = False
        self._ends = [(client, MemoryTransport()), (server, MemoryTransport())]
        self._carried = [0, 0]
        for (protocol, transport), _ in zip(reversed(self._ends), range(2), strict=True):
            protocol.makeConnection(transport)

    def turn(self, isMute: bool) -> bool:
        """
        Carry what is under way.

        @param isMute: but not what the server says.
        @return: was there anything?
        """
        moved = False
        for index, (_, transport) in enumerate(self._ends):
            data = transport.value()[self._carried[index] :]
            if data and not self.isOver and not ((isMute or self.isMute) and index):
                self._carried[index] += len(data)
                self._ends[1 - index][0].dataReceived(data)
                moved = True
        if not self.isOver and any(transport.disconnecting for _, transport in self._ends):
            self._end(ConnectionDone())
            moved = True
        return moved

    def cut(self) -> None:
        """It breaks."""
        if not self.isOver:
            self._end(ConnectionLost())

    def _end(self, error: Exception) -> None:
        self.isOver = True
        for protocol, _ in self._ends:
            protocol.connectionLost(Failure(error))


class Attempt:
    """
    To connect: a connector.
    """

    def __init__(self, factory: Any, address: IPv4Address) -> None:
        self.isOver = False
        self._factory = factory
        self._address = address

    def getDestination(self) -> IPv4Address:
        """Where to."""
        return self._address

    def succeed(self, room: Room) -> None:
        """It works."""
        self.isOver = True
        room.accept(self._factory.buildProtocol(self._address))

    def stopConnecting(self) -> None:
        """Whoever has begun it gives it up."""
        self.fail(UserError())

    def fail(self, error: Exception) -> None:
        """It does not work."""
        if not self.isOver:
            self.isOver = True
            self._factory.clientConnectionFailed(self, Failure(error))


@implementer(IReactorPluggableNameResolver)
class Network(FakeReactor):
    """
    All of it, and the client's reactor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nameResolver = Resolver(self, self.spawn)
        self.rooms: dict[str, Room] = {}
        self._attempts: list[tuple[Room, Attempt]] = []

    def now(self) -> float:
        """The time."""
        return EPOCH + float(self.seconds())

    def room(self, host: str, *devices: UsbDevice) -> Room:
        """One more server."""
        self.rooms[host] = Room(self, host, devices)
        return self.rooms[host]

    def installNameResolver(self, resolver: Any) -> Any:
        """As of the interface."""
        before, self.nameResolver = self.nameResolver, resolver
        return before

    def connectTCP(self, host: str, port: int, factory: Any, *args: Any, **more: Any) -> Attempt:
        """As of C{IReactorTCP}; what comes of it is known a moment later."""
        room = self.rooms[host]
        room.tries.append(float(self.seconds()))
        attempt = Attempt(factory, IPv4Address("TCP", host, port))
        factory.startedConnecting(attempt)
        self._attempts.append((room, attempt))
        return attempt

    def importDevice(self, server: Server, busId: str, *args: Any) -> Imported:
        """In place of L{usbip_server.client.imports.importDevice}."""
        return self.rooms[server.host].importDevice(server, busId)

    def settle(self) -> None:
        """Let everything happen that takes no time."""
        while True:
            moved = self._connect()
            turned = [room.turn() for room in self.rooms.values()]
            moved = any(turned) or moved
            for room in self.rooms.values():
                room.notice()
            self.deliver()
            due = [call for call in self.getDelayedCalls() if call.getTime() <= self.seconds()]
            self.advance(0)
            if not (moved or due):
                return

    def sleep(self, seconds: float, step: float = 0.05) -> None:
        """Let time pass."""
        for _ in range(round(seconds / step)):
            self.advance(step)
            self.settle()

    def until(self, condition: Callable[[], Any], most: float) -> float:
        """
        Let time pass until something is so.

        @return: how long that took.
        @raise AssertionError: it was longer than C{most}.
        """
        begin = self.seconds()
        self.settle()
        while not condition():
            assert self.seconds() - begin < most, f"not within {most} s"
            self.sleep(0.05)
        return float(self.seconds() - begin)

    def close(self, others: Iterable[Any] = ()) -> None:
        """The end."""
        for room in self.rooms.values():
            room.close()

    def _connect(self) -> bool:
        attempts, self._attempts = self._attempts, []
        moved = False
        for room, attempt in attempts:
            if attempt.isOver:
                continue
            if room.answer is Answer.SILENT:
                self._attempts.append((room, attempt))
                continue
            moved = True
            if room.answer is Answer.REFUSES:
                attempt.fail(ConnectionRefusedError())
            else:
                attempt.succeed(room)
        return moved
