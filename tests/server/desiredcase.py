"""
A daemon's core on a backend that does at once what it is asked, and on a clock that stands
still, for the tests of what it does by itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
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
from usbip_server.model.options import Timeouts
from usbip_server.model.policy import LOCAL, Principal
from usbip_server.model.replies import Devices
from usbip_server.model.requests import Command, WatchDevices, decode
from usbip_server.net.caller import Caller
from usbip_server.server.config import LiveSettings, Settings
from usbip_server.server.core import Core
from usbip_server.server.devices.desiredstate import State
from usbip_server.testing.reactor import FakeReactor

EPOCH = 1_700_000_000.0
"""When the clock shows nothing."""

ALWAYS = Rule(match=Match(bus="*"), share=Share.ALWAYS)
NEVER = Rule(match=Match(bus="*"), share=Share.NEVER)


class MemoryStateFile:
    """
    Remembers as long as the test lasts.
    """

    def __init__(self) -> None:
        self.state = State()

    def open(self) -> State:
        return self.state

    def save(self, state: State) -> None:
        self.state = state

    async def close(self, seconds: float) -> None:
        pass


class Client(Caller):
    """
    A connection.

    @ivar told: the lines that answer nothing.
    """

    def __init__(self, principal: Principal = ALICE, lasts: bool = True) -> None:
        self.told: list[dict[str, Any]] = []
        super().__init__(principal, lambda line: self.told.append(json.loads(line)), lasts)


class DesiredTestCase(SynchronousTestCase):
    """
    @ivar heard: the events there were, kind and bus id.
    """

    devices: Sequence[UsbDevice] = (UNO,)

    def setUp(self) -> None:
        self.clock = FakeReactor()
        self.file = MemoryStateFile()
        self.backend: PatientBackend = PromptBackend(self.devices)
        self.numbers = 100
        self.clockSetBy = 0.0

    def start(self, *rules: Rule, **settings: Any) -> None:
        """Begin."""
        self.core = Core(
            self.backend,
            self.clock,
            LiveSettings(self.settings(*rules, **settings)),
            self.file,  # type: ignore[arg-type]
            now=self.now,
        )
        self.successResultOf(asked(self.core.start()))
        _, stream = watching(self.core, WatchDevices(), Caller(Principal(LOCAL)))
        self.heard: list[tuple[str, str]] = []
        stream.begin(lambda event, line: self.heard.append((event.kind.value, event.device.busId)))

    def settings(self, *rules: Rule, **settings: Any) -> Settings:
        """A configuration."""
        given = {"access": EVERYBODY, "timeouts": Timeouts(answer=1.8, bind=30), **settings}
        return Settings(devices=rules, **given)

    def now(self) -> float:
        """The system clock."""
        return EPOCH + self.clock.seconds() + self.clockSetBy

    def kill(self) -> None:
        """As after kill -9: no timer of the daemon runs any more."""
        for call in tuple(self.clock.getDelayedCalls()):
            call.cancel()

    def restart(self, *rules: Rule, **settings: Any) -> None:
        """Kill the daemon; another one finds the devices as they are."""
        devices = self.backend.inventory.snapshot.devices
        self.backend = type(self.backend)(devices)
        self.kill()
        self.start(*rules, **settings)

    def plug(self, device: UsbDevice = UNO, **fields: Any) -> UsbDevice:
        """Plug a device in."""
        self.numbers += 1
        plugged = changed(device, deviceNumber=self.numbers, state=DeviceState.FREE, **fields)
        self.backend.inventory.replace([plugged], {plugged.busId})
        return plugged

    def unplug(self, busId: str = UNO.busId) -> None:
        """Pull it out."""
        self.backend.inventory.replace([], {busId})

    def take(self, busId: str = UNO.busId, address: str = BOB.address) -> None:
        """A client imports a device."""
        device = self.backend.inventory.get(busId)
        assert device is not None and device.state is DeviceState.BOUND
        holder = Holder(address=address, since=EPOCH + self.clock.seconds())
        self.backend.inventory.replace(
            [changed(device, state=DeviceState.IN_USE, holder=holder)], {busId}
        )

    def giveBack(self, busId: str = UNO.busId) -> None:
        """It gives it back."""
        device = self.backend.inventory.get(busId)
        assert device is not None and device.state is DeviceState.IN_USE
        self.backend.inventory.replace(
            [changed(device, state=DeviceState.BOUND, holder=None)], {busId}
        )

    def state(self, busId: str = UNO.busId) -> DeviceState | None:
        """What the backend has become of a device."""
        device = self.backend.inventory.get(busId)
        return None if device is None else device.state

    def command(self, command: str, **keys: object) -> Command:
        """A request, about the first device unless it says otherwise."""
        if not keys.keys() & {"id", "bus", "serial", "desc"} and command != "list":
            keys["id"] = UNO.busId
        return decode(json.dumps({"command": command, **keys}).encode())

    def ask(self, command: str, caller: Caller | None = None, **keys: object) -> Deferred[Devices]:
        """Have a request carried out."""
        coroutine = self.core.dispatcher.perform(self.command(command, **keys), caller or Client())
        return asked(coroutine)  # type: ignore[arg-type]

    def done(self, command: str, caller: Caller | None = None, **keys: object) -> UsbDevice:
        """A request that has to succeed at once."""
        device = self.successResultOf(self.ask(command, caller, **keys))
        assert isinstance(device, UsbDevice)
        return device

    def refused(
        self, kind: type[Exception], command: str, caller: Caller | None = None, **keys: object
    ) -> str:
        """A request that has to fail at once: why."""
        return str(self.failureResultOf(self.ask(command, caller, **keys), kind).value)

    def listed(self) -> tuple[UsbDevice, ...]:
        """What clients see."""
        devices = self.successResultOf(self.ask("list"))
        assert isinstance(devices, tuple)
        return devices

    def shown(self, busId: str = UNO.busId) -> UsbDevice:
        """A device as clients see it."""
        return self.done("find", id=busId)

    def sleep(self, seconds: float, step: float = 0.5) -> None:
        """Let time pass."""
        self.clock.pump([step] * round(seconds / step))
