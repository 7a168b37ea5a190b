"""
What several tests need: a connection in memory, devices, a backend that waits to be told.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, ITCPTransport
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from usbip_server.interfaces import IUsbBackend
from usbip_server.model.device import DeviceState, Holder, Traffic, UsbDevice
from usbip_server.model.inventory import Inventory
from usbip_server.model.policy import AccessPreset, Principal
from usbip_server.model.replies import Reply
from usbip_server.model.requests import WatchDevices
from usbip_server.net.caller import Caller
from usbip_server.runtime.eventlog import Subscription
from usbip_server.server.config import LiveSettings
from usbip_server.server.core import Core
from usbip_server.server.devices.desiredstate import DesiredState
from usbip_server.server.devices.events import DeviceEvents, Event
from usbip_server.server.devices.view import DeviceView, FlapDamper
from usbip_server.server.dispatcher import Watch
from usbip_server.server.sessions import SessionTable
from usbip_server.testing.reactor import FakeReactor

T = TypeVar("T")

EPOCH = 1_700_000_000.0
"""The time when a test's clock shows nothing: 2023-11-14T22:13:20Z."""

ALICE = Principal("192.0.2.7")
BOB = Principal("192.0.2.8")

EVERYBODY = AccessPreset.OPEN.policy
"""For tests that are not about access."""

UNO = UsbDevice(
    busId="1-1.4",
    vendorId="2341",
    productId="0043",
    description="Arduino SA Uno R3 (CDC ACM)",
    serial="75330303035351F0A1C1",
    deviceNumber=4,
    manufacturer="Arduino (www.arduino.cc)",
    product="Board with a U2",
    speed="12",
    deviceClass="02",
    interfaces=("02/02/01", "0a/00/00"),
    driver="usb",
)
STICK = UsbDevice(
    busId="1-2",
    vendorId="0781",
    productId="5581",
    description="SanDisk Corp. Ultra",
    serial="4C530001[23]",
    deviceNumber=5,
)
MOUSE = UsbDevice(
    busId="2-10",
    vendorId="046d",
    productId="c077",
    description="Logitech, Inc. Mouse",
    deviceNumber=2,
)
DEVICES = (UNO, STICK, MOUSE)


def everything(device: UsbDevice) -> bool:
    """What somebody may know who may know of every device."""
    return True


CONGESTION = 2**16
"""Bytes the transport takes before it asks the producer to pause, as Twisted's does."""


def changed(device: UsbDevice, **fields: Any) -> UsbDevice:
    """The device with other values in some fields."""
    return msgspec.structs.replace(device, **fields)


def manyDevices(count: int) -> tuple[UsbDevice, ...]:
    """Devices with names of the length that is usual."""
    return tuple(
        UsbDevice(
            busId=f"1-1.{number}",
            vendorId="0403",
            productId="6001",
            description="Future Technology Devices International, Ltd FT232 Serial (UART) IC",
            serial=f"A50285B{number}",
            deviceNumber=number + 1,
        )
        for number in range(1, count + 1)
    )


@implementer(ITCPTransport)
class MemoryTransport(StringTransport):
    """
    The server's end of a TCP connection.

    @ivar writes: what was written, call by call.
    @ivar reading: does the other end read?
    @ivar writeClosed: has our side been closed?
    @ivar aborted: was the connection cut off?
    """

    def __init__(self, peer: IAddress | None = None) -> None:
        super().__init__(peerAddress=peer, lenient=True)
        self.writes: list[bytes] = []
        self.reading = True
        self.writeClosed = False
        self.aborted = False
        self._unread = 0

    def write(self, data: bytes) -> None:
        if self.writeClosed or self.disconnecting:
            return  # as a real one
        super().write(data)
        self.writes.append(data)
        if not self.reading:
            self._unread += len(data)
            if self._unread > CONGESTION and self.producer is not None:
                self.producer.pauseProducing()

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def read(self) -> None:
        """The other end reads all there is, and goes on reading."""
        self.reading = True
        self._unread = 0
        if self.producer is not None:
            self.producer.resumeProducing()

    def swallow(self) -> None:
        """The other end reads all there is, and then no more."""
        self._unread = 0
        if self.producer is not None:
            self.producer.resumeProducing()

    def loseWriteConnection(self) -> None:
        self.writeClosed = True

    def abortConnection(self) -> None:
        self.aborted = True
        super().abortConnection()

    def getTcpNoDelay(self) -> bool:
        return False

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def getTcpKeepAlive(self) -> bool:
        return False

    def setTcpKeepAlive(self, enabled: bool) -> None:
        pass


class Wire:
    """
    A client, and the connection between it and a protocol.

    @ivar lost: has the protocol been told that the connection is gone?
    """

    def __init__(self, protocol: Any, transport: MemoryTransport | None = None) -> None:
        self.protocol = protocol
        self.transport = transport or MemoryTransport()
        self.lost = False
        self._toldClosed = False
        self._underWay: list[bytes] = []
        protocol.makeConnection(self.transport)

    def send(self, *segments: bytes) -> None:
        """Send; what the protocol does not want to read yet stays under way."""
        self._underWay.extend(segments)
        self.turn()

    def turn(self) -> None:
        """What a turn of the reactor does: deliver, and end what is to be ended."""
        while self._underWay and self.transport.producerState == "producing" and not self.ended:
            self.protocol.dataReceived(self._underWay.pop(0))
        if self.transport.writeClosed and self.transport.reading and not self._toldClosed:
            self._toldClosed = True
            IHalfCloseableProtocol(self.protocol).writeConnectionLost()
        if self.ended and not self.lost:
            self.lost = True
            self.protocol.connectionLost(
                Failure(ConnectionAborted() if self.transport.aborted else ConnectionDone())
            )

    def closeWrite(self) -> None:
        """The client closes its side."""
        self.turn()
        if not self.ended:
            IHalfCloseableProtocol(self.protocol).readConnectionLost()
        self.turn()

    def drop(self) -> None:
        """The connection breaks."""
        self.lost = True
        self.protocol.connectionLost(Failure(ConnectionDone()))

    @property
    def ended(self) -> bool:
        """Has the server closed both directions?"""
        return bool(self.transport.disconnecting)

    @property
    def closed(self) -> bool:
        """Has the server closed its side at least?"""
        return self.transport.writeClosed or self.ended

    @property
    def received(self) -> bytes:
        """All the client got."""
        value: bytes = self.transport.value()
        return value

    @property
    def answers(self) -> list[dict[str, Any]]:
        """The JSON lines that the client got."""
        return [json.loads(line) for line in self.received.splitlines()]

    @property
    def events(self) -> list[dict[str, Any]]:
        """Those of them that answer nothing."""
        return [line for line in self.answers if "event" in line]

    @property
    def data(self) -> Any:
        """What its only answer holds."""
        [answer] = self.answers
        return answer["data"]

    @property
    def statuses(self) -> list[str]:
        """How each request went."""
        return [answer["status"] for answer in self.answers]


def threeWays(messages: Sequence[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """
    The segments that messages can come in: each in one, byte by byte, all in one.
    """
    together = b"".join(messages)
    yield "whole", list(messages)
    yield "byte by byte", [bytes([byte]) for byte in together]
    yield "in one chunk", [together]


class Call:
    """
    A bind, unbind, release or export that waits for the test to end it.
    """

    def __init__(
        self,
        inventory: Inventory,
        verb: str,
        device: UsbDevice,
        deadline: float,
        holder: Holder | None = None,
    ) -> None:
        self.verb = verb
        self.holder = holder
        self.device = device
        self.deadline = deadline
        self.result: Deferred[UsbDevice] = Deferred()
        self._inventory = inventory

    def succeed(self) -> UsbDevice:
        """It went well."""
        states = {"unbind": DeviceState.FREE, "export": DeviceState.IN_USE}
        state = states.get(self.verb, DeviceState.BOUND)
        device = changed(self.device, state=state, holder=self.holder, name=None, lease=None)
        self._inventory.replace([device], {device.busId})
        self.result.callback(device)
        return device

    def fail(self, error: Exception) -> None:
        """It went wrong."""
        self.result.errback(Failure(error))


@implementer(IUsbBackend)
class PatientBackend:
    """
    A backend that notes what is asked of it and does it when it is told to.

    @ivar calls: the binds, unbinds, releases and exports, in their order.
    @ivar refreshed: the bus ids it was to look at, in their order.
    @ivar starting: fires when C{start} is to be over.
    @ivar stopped: how often it was stopped.
    @ivar allowMounted: what the last bind said of disks that are mounted.
    @ivar moved: what holders have moved, by bus id.
    """

    def __init__(
        self, devices: Sequence[UsbDevice] = DEVICES, started: bool = True, seq: int = 0
    ) -> None:
        self.inventory = Inventory(seq)
        self.inventory.replace(devices)
        self.calls: list[Call] = []
        self.refreshed: list[str] = []
        self.starting: Deferred[None] = Deferred()
        self.stopped = 0
        self.allowMounted = False
        self.moved: dict[str, Traffic] = {}
        if started:
            self.starting.callback(None)

    async def start(self) -> None:
        await self.starting

    async def stop(self) -> None:
        self.stopped += 1

    async def bind(
        self, device: UsbDevice, deadline: float, allowMounted: bool = False
    ) -> UsbDevice:
        self.allowMounted = allowMounted
        return await self._call("bind", device, deadline)

    async def unbind(self, device: UsbDevice, deadline: float) -> UsbDevice:
        return await self._call("unbind", device, deadline)

    async def release(self, device: UsbDevice, deadline: float) -> UsbDevice:
        return await self._call("release", device, deadline)

    async def export(
        self, device: UsbDevice, connection: socket.socket, holder: Holder, deadline: float
    ) -> UsbDevice:
        return await self._call("export", device, deadline, holder)

    async def refresh(self, device: UsbDevice) -> None:
        self.refreshed.append(device.busId)

    def traffic(self, device: UsbDevice) -> Traffic | None:
        return self.moved.get(device.busId)

    async def _call(
        self, verb: str, device: UsbDevice, deadline: float, holder: Holder | None = None
    ) -> UsbDevice:
        call = Call(self.inventory, verb, device, deadline, holder)
        self.calls.append(call)
        return await call.result


class PromptBackend(PatientBackend):
    """
    A backend that does at once what is asked of it.
    """

    async def _call(
        self, verb: str, device: UsbDevice, deadline: float, holder: Holder | None = None
    ) -> UsbDevice:
        call = Call(self.inventory, verb, device, deadline, holder)
        self.calls.append(call)
        return call.succeed()


def watching(
    core: Core, request: WatchDevices, caller: Caller
) -> tuple[Reply, Subscription[Event]]:
    """The outcome of a watch command: the reply, and the events that follow."""
    watch = core.dispatcher.atOnce(request, caller)
    assert isinstance(watch, Watch)
    return watch.reply, watch.subscription


def eventsOf(
    backend: PatientBackend, now: Callable[[], float], settings: LiveSettings
) -> DeviceEvents:
    """The events of a backend's devices, without the rest of a daemon."""
    clock, inventory = FakeReactor(), backend.inventory
    desired = DesiredState(
        clock, now, settings, inventory.get, lambda busId: None, lambda desired: None
    )
    damper = FlapDamper(clock, lambda busId: None)
    sessions = SessionTable(clock)
    seq = inventory.snapshot.seq - len(inventory.snapshot.devices)
    view = DeviceView(backend, settings, desired, damper, sessions, seq)
    events = DeviceEvents(view, now)
    inventory.subscribe(view.update)
    view.inventory.subscribe(events.update)
    return events


def asked(coroutine: Coroutine[Any, Any, T]) -> Deferred[T]:
    """Start a coroutine."""
    return Deferred.fromCoroutine(coroutine)
