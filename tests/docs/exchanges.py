"""Executes the exchanges in documents.

A line that begins with C{>} is sent, and a line that begins with C{<} is expected next on that
connection; C{>>} and C{<<} are those of a second client. A line in brackets is an action: see
L{ExampleServer}. Times and numbers, which differ each time, are compared by their differences: see
L{Numbers}."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from twisted.internet.task import Clock

from tests.docs.documents import Block
from tests.support.childdaemon import SECONDS, ChildDaemon
from tests.support.fixtures import (
    ALICE,
    EVERYBODY,
    PatientBackend,
    PromptBackend,
    Wire,
    asked,
    changed,
)
from usbip_server.model.device import DeviceState, Holder, UsbDevice
from usbip_server.model.devicerules import Match, Rule
from usbip_server.model.errors import OperationFailed
from usbip_server.model.options import Timeouts
from usbip_server.model.policy import Grant, Policy, Principal, Right
from usbip_server.net.caller import Caller
from usbip_server.protocols.interfaces import Response
from usbip_server.protocols.lines import CommandFactory, CommandProtocol
from usbip_server.server.config import LiveSettings, Settings
from usbip_server.server.core import Core
from usbip_server.server.responder import Responder

HOST = "127.0.0.1"

NOW = 1795629360.123
"""Seconds since the epoch: the time at the start of a L{MemoryServer}."""

ECHO = UsbDevice(
    busId="1-1",
    vendorId="1209",
    productId="2303",
    description="usbipshare Echoing Serial Port",
    serial="ECHO1",
    deviceNumber=2,
)
DISK = UsbDevice(
    busId="1-2",
    vendorId="1209",
    productId="d15c",
    description="usbipshare Small Disk",
    serial="DISK1",
    deviceNumber=3,
)

VARYING = (
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "a time"),
    (r"\d+ bytes in, \d+ out", "some bytes"),
    (r'"bytes_(in|out)":\d+', r'"bytes_\1":0'),
    (r"for \d+ s more", "for a while"),
)
"""Patterns of texts that differ each time, and the text that replaces them in comparisons."""

NUMBER = re.compile(r"\b\d{16}\b")
"""The number of an event: microseconds since the epoch, at first."""


class Numbers:
    """Compares event numbers in one example by their distance from the first one."""

    def __init__(self) -> None:
        self._first: dict[str, int] = {}

    def same(self, came: str, shown: str) -> None:
        """Assert that a received line is the line in the document."""
        pair = self.settled("came", came), self.settled("shown", shown)
        if shown.startswith("{"):
            pair = json.loads(pair[0]), json.loads(pair[1])
        assert pair[0] == pair[1], f"received:\n{came}"

    def settled(self, side: str, text: str) -> str:
        """Replace the parts of a text that differ each time."""
        for pattern, instead in VARYING:
            text = re.sub(pattern, instead, text)
        return NUMBER.sub(lambda n: str(int(n[0]) - self._first.setdefault(side, int(n[0]))), text)

    def here(self, text: str) -> str:
        """Replace event numbers of the document in a request by those of this run."""
        return NUMBER.sub(
            lambda n: str(int(n[0]) - self._first["shown"] + self._first["came"]), text
        )


class Connection(Protocol):
    """A client's end of a connection."""

    def send(self, request: bytes) -> None: ...
    def line(self) -> str:
        """The next line; an empty string if the server has closed the connection."""

    def close(self) -> None: ...


class ExampleServer(Protocol):
    """A server that clients connect to, and the actions that can happen there."""

    def connect(self) -> Connection: ...
    def act(self, what: str) -> None:
        """Carry out an action: C{a client imports 1-2}, C{it gives 1-2 back}, C{15 s later}."""


class ExampleClient:
    """A client with one connection at a time."""

    def __init__(self, server: ExampleServer) -> None:
        self._server = server
        self._connection: Connection | None = None
        self._request = ""

    def ask(self, request: str) -> None:
        """Send a request, on the same connection if that is still open."""
        if not self._staysOpen:
            self.leave()
        self._request = request
        self._connection = self._connection or self._server.connect()
        self._connection.send(request.encode() + b"\n")

    def line(self) -> str:
        """The next line."""
        assert self._connection is not None, "no request was sent"
        return self._connection.line()

    def leave(self) -> None:
        """Close the connection, if the server has not."""
        if self._connection is None:
            return
        if not (self._staysOpen or '"command":"watch"' in self._request):
            assert self._connection.line() == "", "the connection is not closed"
        self._connection.close()
        self._connection = None
        self._request = ""

    @property
    def _staysOpen(self) -> bool:
        return any(so in self._request for so in ('"keep_alive":true', '"ttl":"connection"'))


def execute(block: Block, server: ExampleServer) -> None:
    """Execute an exchange."""
    numbers = Numbers()
    clients = {">": ExampleClient(server), ">>": ExampleClient(server)}
    for mark, text in block.steps():
        if mark in clients:
            clients[mark].ask(numbers.here(text))
        elif mark:
            numbers.same(clients[mark.replace("<", ">")].line(), text)
        elif text == "the connection breaks":
            clients[">"].leave()
        else:
            server.act(text)
    for client in clients.values():
        client.leave()


class SocketConnection:
    """A connection over TCP."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((HOST, port), SECONDS)
        self._reader = self._socket.makefile("r", encoding="utf-8")

    def send(self, request: bytes) -> None:
        self._socket.sendall(request)

    def line(self) -> str:
        return self._reader.readline().rstrip("\n")

    def close(self) -> None:
        self._reader.close()
        self._socket.close()


class DaemonServer:
    """A daemon in a child process, with the two standard virtual devices."""

    def __init__(self, daemon: ChildDaemon) -> None:
        self._daemon = daemon
        self._clients: dict[str, contextlib.ExitStack] = {}

    def connect(self) -> SocketConnection:
        return SocketConnection(self._daemon.port)

    def act(self, what: str) -> None:
        verb, _, busId = what.removesuffix(" back").rpartition(" ")
        if verb == "a client imports":
            self._clients[busId] = contextlib.ExitStack()
            self._clients[busId].enter_context(self.imported(busId))
        else:
            assert verb == "it gives", f"an unknown action: {what!r}"
            self._clients.pop(busId).close()

    @contextlib.contextmanager
    def imported(self, busId: str) -> Iterator[None]:
        """Import a device until the C{with} ends: C{OP_REQ_IMPORT}, as in Documentation/usb/
        usbip_protocol.rst of Linux."""
        with socket.create_connection((HOST, self._daemon.exportPort), SECONDS) as client:
            client.sendall(struct.pack(">HHI32s", 0x0111, 0x8003, 0, busId.encode()))
            self._until(busId, _isImported)
            yield
        self._until(busId, lambda device: device["state"] != "in_use")

    @contextlib.contextmanager
    def inUse(self, busId: str) -> Iterator[None]:
        """Attach and import a device until the C{with} ends."""
        assert self._daemon.ask("attach", id=busId)["status"] == "success"
        with self.imported(busId):
            yield
        assert self._daemon.ask("detach", id=busId)["status"] == "success"

    def _until(self, busId: str, isSo: Callable[[dict[str, Any]], bool]) -> None:
        end = time.monotonic() + SECONDS
        while not isSo(self._daemon.ask("find", id=busId, detail=True)["data"]):
            assert time.monotonic() < end, f"{busId} has not got the expected state"


def _isImported(device: dict[str, Any]) -> bool:
    """Return whether a client has imported the device, and its byte count is known."""
    holder = device["holder"] or {}
    return device["state"] == "in_use" and holder.get("bytes_out") is not None


class MemoryConnection:
    """A connection to a L{MemoryServer}, in memory."""

    def __init__(self, protocol: CommandProtocol) -> None:
        self._wire = Wire(protocol)
        self._seen = 0

    def send(self, request: bytes) -> None:
        self._wire.send(request)

    def line(self) -> str:
        self._wire.turn()
        lines = self._wire.received.decode().splitlines()
        self._seen += 1
        return lines[self._seen - 1] if self._seen <= len(lines) else ""

    def close(self) -> None:
        if not self._wire.lost:
            self._wire.drop()


class MemoryServer:
    """The parts of a daemon without network, with a clock that tests advance."""

    def __init__(self, *rules: Rule, access: Policy = EVERYBODY) -> None:
        self._clock: Any = Clock()
        self._backend = PromptBackend([ECHO, DISK])
        settings = Settings(access=access, devices=rules)
        self._settings = LiveSettings(settings)
        core = Core(self._backend, self._clock, self._settings, now=self._now)
        self._answers = Responder(core.dispatcher, core.requests)
        asked(core.start())

    def connect(self) -> MemoryConnection:
        principal = Principal(HOST)
        return MemoryConnection(
            CommandFactory(self._answers, self._settings, self._clock).make(principal)
        )

    def act(self, what: str) -> None:
        if later := re.fullmatch(r"(\d+) s later", what):
            for _ in range(int(later[1])):
                self._clock.advance(1)
            return
        assert what == "a client imports 1-2", f"an unknown action: {what!r}"
        holder = Holder(address=HOST, since=self._now())
        device = changed(DISK, state=DeviceState.IN_USE, holder=holder)
        self._backend.inventory.replace([device], {"1-2"})

    def _now(self) -> float:
        return NOW + float(self._clock.seconds())


MEMORY_SERVERS: dict[str, Callable[[], ExampleServer]] = {
    "memory": MemoryServer,
    "named": lambda: MemoryServer(Rule(match=Match(serial="DISK1"), name="scratch-disk")),
    "access": lambda: MemoryServer(
        access=Policy(
            allow=(
                Grant(who="local", commands=Right.LIST, devices=Match(bus="1-1")),
                Grant(who="local", commands=Right.ATTACH, devices=Match(bus="1-3")),
            )
        )
    ),
}
"""Exchanges that need a clock, devices with names, or restricted rights."""


def _succeed(backend: PatientBackend) -> None:
    backend.calls[0].succeed()


def _fail(backend: PatientBackend) -> None:
    backend.calls[0].fail(OperationFailed(DISK, f"usbip-host did not take {DISK}"))


def _nothing(backend: PatientBackend) -> None:
    pass


class SlowBackend(PatientBackend):
    """A backend whose operations end when a test ends them, except binds of bound devices."""

    async def bind(
        self, device: UsbDevice, deadline: float, allowMounted: bool = False
    ) -> UsbDevice:
        if device.state is DeviceState.BOUND:
            return device
        return await super().bind(device, deadline, allowMounted)


OUTCOMES = {"slow": _succeed, "slow-refused": _fail, "stuck": _nothing, "starting": _nothing}
"""Exchanges that a real daemon does not produce on demand, and what follows the first answer."""


def answersInMemory(circumstance: str, requests: Sequence[bytes]) -> Iterator[Response]:
    """Send requests to the parts of a daemon, without network and with a clock of its own."""
    clock: Any = Clock()
    backend = SlowBackend([DISK], started=circumstance != "starting")
    core = Core(backend, clock, LiveSettings(Settings(access=EVERYBODY)))
    answers = Responder(core.dispatcher, core.requests)
    asked(core.start())
    for number, request in enumerate(requests):
        answered: list[Response] = []
        asked(answers.to(request, Caller(ALICE))).addCallback(answered.append)
        clock.advance(Timeouts().answer)
        yield answered[0]
        if number == 0:
            OUTCOMES[circumstance](backend)
