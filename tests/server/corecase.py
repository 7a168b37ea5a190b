"""
A L{usbip_server.server.core.Core} on a fake clock and a fake backend, for tests.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import (
    ALICE,
    BOB,
    EVERYBODY,
    UNO,
    PatientBackend,
    PromptBackend,
    asked,
    changed,
    watching,
)
from usbip_server.model.device import DeviceState, Holder, UsbDevice
from usbip_server.model.devicerules import Match, Rule, Share
from usbip_server.model.errors import OperationFailed
from usbip_server.model.options import Timeouts
from usbip_server.model.policy import LOCAL, Principal
from usbip_server.model.replies import Devices
from usbip_server.model.requests import Command, WatchDevices, decode
from usbip_server.net.caller import Caller
from usbip_server.net.onlink import Networks, OnLink
from usbip_server.runtime.latch import Latch
from usbip_server.server.config import LiveSettings, Settings
from usbip_server.server.core import Core
from usbip_server.server.devices.desireddevice import State
from usbip_server.testing.reactor import FakeReactor

EPOCH = 1_700_000_000.0
"""The time of day when the clock shows 0: 2023-11-14T22:13:20Z."""

FREE, BOUND, IN_USE = DeviceState.FREE, DeviceState.BOUND, DeviceState.IN_USE
ERROR = DeviceState.ERROR
ALWAYS = Rule(match=Match(bus="*"), share=Share.ALWAYS)
NEVER = Rule(match=Match(bus="*"), share=Share.NEVER)
ON_IMPORT = Rule(match=Match(bus="*"), share=Share.ON_IMPORT)


def lease(owner: str, ttl: float | str = 600) -> dict[str, object]:
    """A lease as a request contains it."""
    return {"owner": owner, "ttl": ttl}


class MemoryStateFile:
    """
    A state file in memory.

    @ivar onDisk: if set, states are on the disk when it fires.
    """

    def __init__(self) -> None:
        self.state = State()
        self.onDisk: Latch | None = None

    def open(self) -> State:
        return self.state

    def save(self, state: State) -> None:
        self.state = state

    async def written(self, seconds: float) -> None:
        if self.onDisk is not None:
            await self.onDisk.within(seconds)

    async def close(self, seconds: float) -> None:
        pass


class Client(Caller):
    """
    A client's connection.

    @ivar told: the lines it has received besides replies.
    """

    def __init__(self, principal: Principal = ALICE, lasts: bool = True) -> None:
        self.told: list[dict[str, Any]] = []
        super().__init__(principal, lambda line: self.told.append(json.loads(line)), lasts)


class LogTestCase(SynchronousTestCase):
    """
    Captures the log.
    """

    def captureLogs(self) -> list[LogEvent]:
        """The list to which events of the log are added until the end of the test."""
        capture = capturedLogs()
        events: Any = capture.__enter__()
        self.addCleanup(capture.__exit__, None, None, None)
        return events  # type: ignore[no-any-return]


class CoreTestCase(LogTestCase):
    """
    A core whose backend carries out everything at once.

    @ivar heard: kind and bus id of the events there were.
    @ivar clockSetBy: by how many seconds the system clock was set.
    """

    backendClass: type[PatientBackend] = PromptBackend
    devices: Sequence[UsbDevice] = (UNO,)
    networks: Networks = ()

    def setUp(self) -> None:
        self.clock = FakeReactor()
        self.file = MemoryStateFile()
        self.backend = self.backendClass(self.devices)
        self.numbers = 100
        self.patch(OnLink, "networks", lambda _: self.networks)
        self.clockSetBy = 0.0

    def begin(self, *rules: Rule, **settings: Any) -> Deferred[None]:
        """Build the core, and begin to start it."""
        self.core = Core(
            self.backend,
            self.clock,
            LiveSettings(self.settings(*rules, **settings)),
            self.file,  # type: ignore[arg-type]
            now=self.now,
        )
        return asked(self.core.start())

    def start(self, *rules: Rule, **settings: Any) -> None:
        """Build the core and start it."""
        self.successResultOf(self.begin(*rules, **settings))
        self.heard: list[tuple[str, str]] = []
        _, events = watching(self.core, WatchDevices(), Caller(Principal(LOCAL)))
        events.begin(lambda event, line: self.heard.append((event.kind.value, event.device.busId)))

    def startAnew(self, *rules: Rule, **settings: Any) -> None:
        """Start another daemon, with nothing left of the one before."""
        self.cancelTimers()
        self.file = MemoryStateFile()
        self.backend = self.backendClass(self.devices)
        self.start(*rules, **settings)

    def settings(self, *rules: Rule, **settings: Any) -> Settings:
        """A configuration."""
        given = {"access": EVERYBODY, "timeouts": Timeouts(answer=1.8, bind=30, stop=5), **settings}
        return Settings(devices=rules, **given)

    def reload(self, *rules: Rule, **settings: Any) -> None:
        """Put another configuration in force."""
        self.core.reload(self.settings(*rules, **settings))

    def restart(self, *rules: Rule, **settings: Any) -> None:
        """Start another daemon on the devices as they are, as after C{kill -9}."""
        self.backend = type(self.backend)(self.backend.inventory.snapshot.devices)
        self.cancelTimers()
        self.start(*rules, **settings)

    def now(self) -> float:
        """The system clock."""
        return EPOCH + self.clock.seconds() + self.clockSetBy

    def cancelTimers(self) -> None:
        """Stop the clock of the daemon, as when it is killed."""
        for call in tuple(self.clock.getDelayedCalls()):
            call.cancel()

    def stop(self) -> None:
        """Stop the daemon; no timer may be left."""
        self.successResultOf(asked(self.core.stop()))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def become(self, device: UsbDevice = UNO, **fields: Any) -> None:
        """Change a device in the backend, or add it."""
        self.backend.inventory.replace([changed(device, **fields)], {device.busId})

    def plug(self, device: UsbDevice = UNO, **fields: Any) -> UsbDevice:
        """Plug a device in."""
        self.numbers += 1
        plugged = changed(device, deviceNumber=self.numbers, state=FREE, **fields)
        self.become(plugged)
        return plugged

    def unplug(self, busId: str = UNO.busId) -> None:
        """Unplug a device."""
        self.backend.inventory.replace([], {busId})

    def take(self, busId: str = UNO.busId, address: str = BOB.address) -> None:
        """A client imports a bound device."""
        device = self.present(busId)
        assert device.state is BOUND
        holder = Holder(address=address, since=EPOCH + self.clock.seconds())
        self.become(device, state=IN_USE, holder=holder)

    def giveBack(self, busId: str = UNO.busId) -> None:
        """The client ends its session."""
        device = self.present(busId)
        assert device.state is IN_USE
        self.become(device, state=BOUND, holder=None)

    def present(self, busId: str = UNO.busId) -> UsbDevice:
        """A device as the backend has it."""
        device = self.backend.inventory.get(busId)
        assert device is not None
        return device

    def state(self, busId: str = UNO.busId) -> DeviceState:
        """The state of a device in the backend."""
        return self.present(busId).state

    @property
    def verbs(self) -> list[str]:
        """The operations of the backend, in the order in which they began."""
        return [call.verb for call in self.backend.calls]

    def succeed(self, *numbers: int) -> None:
        """End operations of a patient backend; without a number the last one."""
        for number in numbers or (-1,):
            self.backend.calls[number].succeed()

    def fail_(self, number: int = -1, error: Exception | None = None) -> None:
        """End an operation of a patient backend with an error."""
        call = self.backend.calls[number]
        call.fail(error or OperationFailed(call.device, "no"))

    def command(self, command: str, **keys: object) -> Command:
        """A request, about L{UNO} unless it contains criteria."""
        if not keys.keys() & {"id", "bus", "serial", "desc"} and command not in ("list", "watch"):
            keys["id"] = UNO.busId
        return decode(json.dumps({"command": command, **keys}).encode())

    def ask(self, command: str, caller: Caller | None = None, **keys: object) -> Deferred[Devices]:
        """Carry out a request."""
        coroutine = self.core.dispatcher.perform(self.command(command, **keys), caller or Client())
        return asked(coroutine)  # type: ignore[arg-type]

    def device(self, result: Deferred[Devices]) -> UsbDevice:
        """The device that a request has returned."""
        device = self.successResultOf(result)
        assert isinstance(device, UsbDevice)
        return device

    def error(self, kind: type[Exception], result: Deferred[Any]) -> str:
        """The message of the error that a request has failed with."""
        return str(self.failureResultOf(result, kind).value)

    def done(self, command: str, caller: Caller | None = None, **keys: object) -> UsbDevice:
        """The device that a request returns at once."""
        return self.device(self.ask(command, caller, **keys))

    def refused(
        self, kind: type[Exception], command: str, caller: Caller | None = None, **keys: object
    ) -> str:
        """The message of the error that a request fails with at once."""
        return self.error(kind, self.ask(command, caller, **keys))

    def listed(self) -> tuple[UsbDevice, ...]:
        """The devices that clients see."""
        devices = self.successResultOf(self.ask("list"))
        assert isinstance(devices, tuple)
        return devices

    def shown(self, busId: str = UNO.busId) -> UsbDevice:
        """A device as clients see it."""
        return self.done("find", id=busId)

    def owner(self, busId: str = UNO.busId) -> str | None:
        """The owner of the lease on a device."""
        lease = self.shown(busId).lease
        return None if lease is None else lease.owner

    def sleep(self, seconds: float, step: float = 0.5) -> None:
        """Let time pass."""
        self.clock.pump([step] * round(seconds / step))


class PatientCoreTestCase(CoreTestCase):
    """
    A core whose backend carries out operations when the test ends them.
    """

    backendClass = PatientBackend
