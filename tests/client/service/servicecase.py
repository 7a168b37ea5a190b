"""
The parts of the client service on a clock that stands still, with servers and a kernel in memory.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import STICK, UNO, asked, changed
from tests.support.network import Network
from usbip_server.client import attach
from usbip_server.client.attach import Attaching
from usbip_server.client.service.authorization import Peer
from usbip_server.client.service.config import LiveSettings, ServiceFile
from usbip_server.client.service.core import Core, Kernel
from usbip_server.client.service.devices.attachments import Attachment
from usbip_server.client.service.devices.desiredstate import Requests
from usbip_server.client.service.devices.events import ServiceEventKind
from usbip_server.model.device import DeviceState
from usbip_server.model.policy import LOCAL
from usbip_server.net.caller import Caller
from usbip_server.protocols.interfaces import Response
from usbip_server.runtime.latch import Latch
from usbip_server.testing import FakeVhci

RASPI, BENCH = "192.0.2.1", "192.0.2.2"

OTHER = "192.0.2.99"
"""The address of another client."""

SERVERS = f"servers: {{raspi: {{host: {RASPI}}}, bench: {{host: {BENCH}}}}}\n"

RULE = f"devices: [{{name: uno, serial: {UNO.serial}}}]\n"
"""A rule for the board."""

PORT = "devices/platform/vhci_hcd.0/detach"

ROOT = Peer(LOCAL, uid=0, gids=(0,))


class SleepClock:
    """
    A clock that advances only by C{sleep}.
    """

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


class MemoryKernel(Kernel):
    """
    A kernel that takes no time.
    """

    def attaching(self) -> Attaching:
        clock = SleepClock()

        def relay(*args: object) -> None:
            raise AssertionError("no connection is encrypted")

        return Attaching(self.vhci, self.nodes, self.records, relay, clock.now, clock.sleep)


class MemoryFile:
    """
    A state file in memory.

    @ivar onDisk: if set, states are on the disk when it fires.
    """

    def __init__(self) -> None:
        self.state = Requests()
        self.onDisk: Latch | None = None

    def open(self) -> Requests:
        return self.state

    def save(self, state: Requests) -> None:
        self.state = state

    async def written(self, seconds: float) -> None:
        if self.onDisk is not None:
            await self.onDisk.within(seconds)

    async def close(self, seconds: float) -> None:
        pass


class ServiceCase(SynchronousTestCase):
    """
    Two servers; one has a board C{1-1.4} and a stick C{1-2}.

    @ivar core: the service.
    @ivar events: those that it has recorded.
    """

    def setUp(self) -> None:
        self.network = Network()
        self.addCleanup(self.network.close)
        self.patch(attach, "importDevice", self.network.importDevice)
        self.raspi = self.network.room(RASPI, UNO, changed(STICK, speed="480"))
        self.bench = self.network.room(BENCH)
        self.vhci = FakeVhci()
        self.addCleanup(self.vhci.close)
        self.file = MemoryFile()
        self.folder = Path(self.mktemp()).absolute()
        (self.folder / "dev").mkdir(parents=True)
        for name in ("ttyUSB0", "sda", "sda1", "sg0"):
            (self.folder / "dev" / name).touch()

    def kernel(self) -> MemoryKernel:
        """This machine."""
        return MemoryKernel(
            self.vhci, str(self.folder / "dev"), str(self.folder / "records"), self.network.spawn
        )

    def begin(self, config: str = RULE, isSettled: bool = True) -> Core:
        """
        Start the service.

        @param config: its configuration without the servers.
        """
        self.core = Core(
            self.network,
            self.kernel(),
            self.read(config),
            self.file,  # type: ignore[arg-type]
            lambda: 1.0,
            self.network.now,
        )
        self.events: list[dict[str, Any]] = []
        self.core.events.listen(lambda event: self.events.append(json.loads(event.line(False))))
        asked(self.core.start())
        if isSettled:
            self.network.settle()
        return self.core

    def end(self) -> None:
        """Stop the service; devices stay attached."""
        asked(self.core.stop())
        for attachment in self.core.attachments:
            if attachment.connection is not None:
                attachment.connection.close()
        self.network.settle()

    def reload(self, config: str, servers: str = SERVERS) -> None:
        """Reload the configuration."""
        settings = self.read(config, servers)
        self.core.reload(settings.config, settings.servers)
        self.network.settle()

    def read(self, text: str, servers: str = SERVERS) -> LiveSettings:
        """Read a configuration."""
        file = ServiceFile("s.yaml", f"{servers}links: {self.folder}/links\n{text}")
        config = file.config()
        return LiveSettings(config, file.known(config))

    @property
    def attached(self) -> list[str]:
        """The attached devices: server and bus id."""
        return sorted(f"{each.server} {each.device.busId}" for each in self.core.attachments)

    def attachment(self, name: str = "uno") -> Attachment:
        """The attachment of a rule."""
        attachment = self.core.attachments.of(name)
        assert attachment is not None, self.attached
        return attachment

    @property
    def kinds(self) -> list[str]:
        """The kinds of the recorded events that are not those of servers."""
        ours = {kind.value for kind in ServiceEventKind}
        return [event["event"] for event in self.events if event["event"] in ours]

    def last(self, kind: str) -> dict[str, Any]:
        """The last event of a kind."""
        return next(event for event in reversed(self.events) if event["event"] == kind)

    @property
    def symlinks(self) -> dict[str, str]:
        """The symlinks, and their targets."""
        folder = self.folder / "links"
        prefix = f"{self.folder}/dev/"
        found = sorted(folder.iterdir()) if folder.exists() else []
        return {path.name: os.readlink(path).removeprefix(prefix) for path in found}

    def soon(self, condition: Any, most: float = 2.0) -> float:
        """Let time pass until a condition holds; return the seconds."""
        return self.network.until(condition, most)

    def ask(self, command: str, caller: Caller | None = None, /, **keys: object) -> dict[str, Any]:
        """The reply to a request, which has to take no time."""
        responses = self.asking(command, caller, **keys)
        self.network.settle()
        (response,) = responses
        reply: dict[str, Any] = json.loads(response.encoded)
        return reply

    def asking(
        self, command: str, caller: Caller | None = None, /, **keys: object
    ) -> list[Response]:
        """Send a request; its response is in the list as soon as there is one."""
        responses: list[Response] = []
        raw = json.dumps({"command": command, **keys}).encode()
        asked(self.core.responder.to(raw, caller or Caller(ROOT))).addCallback(responses.append)
        return responses

    def assertReply(self, status: str, text: str, command: str, **keys: object) -> None:
        """A request is answered with this status and a message that contains the text."""
        reply = self.ask(command, **keys)
        self.assertEqual(reply["status"], status, reply)
        self.assertIn(text, reply.get("message", ""))

    def takeByOther(self, busId: str = "1-1.4") -> None:
        """Another client imports a device."""
        self.raspi.become(busId, DeviceState.BOUND)
        self.raspi.become(busId, DeviceState.IN_USE, OTHER)
        self.network.settle()

    def giveBack(self, busId: str = "1-1.4") -> None:
        """It ends its session."""
        self.raspi.become(busId, DeviceState.BOUND)
        self.network.settle()
