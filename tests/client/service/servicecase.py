"""
The client service's parts on a clock that stands still, with servers and a kernel in memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import STICK, UNO, asked, changed
from tests.support.network import Network, Room
from usbip_server.client import attach
from usbip_server.client.attach import Attaching
from usbip_server.client.service.authorization import Peer
from usbip_server.client.service.config import LiveSettings, ServiceFile
from usbip_server.client.service.core import Core, Kernel
from usbip_server.client.service.devices.attachments import Attachment
from usbip_server.client.service.devices.desired import Requests
from usbip_server.model.policy import LOCAL
from usbip_server.net.caller import Caller
from usbip_server.protocols.interfaces import Response
from usbip_server.runtime.eventlog import Told
from usbip_server.testing import FakeVhci

RASPI, BENCH = "192.0.2.1", "192.0.2.2"

SERVERS = f"servers: {{raspi: {{host: {RASPI}}}, bench: {{host: {BENCH}}}}}\n"

UNO_RULE = f"devices: [{{name: uno, serial: {UNO.serial}}}]\n"

ROOT = Caller(Peer(LOCAL, uid=0, gids=(0,)))


class Turned:
    """
    A clock that goes only while somebody sleeps.
    """

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


class MemoryKernel(Kernel):
    """
    One that takes no time.
    """

    def attaching(self) -> Attaching:
        clock = Turned()

        def relay(*args: object) -> None:
            raise AssertionError("nothing is encrypted here")

        return Attaching(self.vhci, self.nodes, self.records, relay, clock.now, clock.sleep)


class MemoryFile:
    """
    Remembers as long as the test lasts.
    """

    def __init__(self) -> None:
        self.state = Requests()

    def open(self) -> Requests:
        return self.state

    def save(self, state: Requests) -> None:
        self.state = state

    async def close(self, seconds: float) -> None:
        pass


class ServiceCase(SynchronousTestCase):
    """
    Two servers, each with a board and a stick.

    @ivar parts: those of the service.
    @ivar told: what watchers are told.
    """

    chance = 1.0

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

    def begin(self, text: str = UNO_RULE, settled: bool = True) -> Core:
        """
        The service starts.

        @param text: of its configuration, less the servers.
        """
        kernel = MemoryKernel(
            self.vhci, str(self.folder / "dev"), str(self.folder / "records"), self.network.spawn
        )
        self.parts = Core(
            self.network,
            kernel,
            LiveSettings(*self.read(text)),
            self.file,  # type: ignore[arg-type]
            lambda: self.chance,
            self.network.now,
        )
        self.told: list[dict[str, Any]] = []
        self.parts.events.listen(lambda item: self.told.append(json.loads(item.line(False))))
        asked(self.parts.start())
        if settled:
            self.network.settle()
        return self.parts

    def end(self, kills: bool = False) -> None:
        """
        It stops, and leaves what is plugged in.

        @param kills: it has no time for anything.
        """
        asked(self.parts.stop())
        for attachment in self.parts.attachments:
            if attachment.connection is not None:
                attachment.connection.close()
        self.network.settle()

    def reload(self, text: str, servers: str = SERVERS) -> None:
        """It reads its configuration anew."""
        self.parts.reload(*self.read(text, servers))
        self.network.settle()

    def read(self, text: str, servers: str = SERVERS) -> Any:
        """A configuration."""
        file = ServiceFile("s.yaml", f"{servers}links: {self.folder}/links\n{text}")
        config = file.config()
        return config, file.known(config)

    @property
    def plugged(self) -> list[str]:
        """What is plugged in: server and bus id."""
        return sorted(f"{plug.server} {plug.device.busId}" for plug in self.parts.attachments)

    def plug(self, name: str = "uno") -> Attachment:
        """What a rule has."""
        plug = self.parts.attachments.of(name)
        assert plug is not None, self.plugged
        return plug

    @property
    def words(self) -> list[str]:
        """What watchers were told, less what servers tell."""
        ours = ("attached", "nodes", "lost", "failed", "connected", "disconnected")
        return [item["event"] for item in self.told if item["event"] in ours]

    def last(self, word: str) -> dict[str, Any]:
        """The last of these events."""
        return next(item for item in reversed(self.told) if item["event"] == word)

    @property
    def links(self) -> dict[str, str]:
        """The links there are, and where they lead."""
        folder = self.folder / "links"
        if not folder.exists():
            return {}
        prefix = f"{self.folder}/dev/"
        return {
            path.name: os.readlink(path).removeprefix(prefix) for path in sorted(folder.iterdir())
        }

    def ask(self, command: str, caller: Caller = ROOT, **keys: object) -> dict[str, Any]:
        """What a program is answered, which has to be at once."""
        answers = self.asking(command, caller, **keys)
        self.network.settle()
        (answer,) = answers
        value: dict[str, Any] = json.loads(answer.encoded)
        return value

    def asking(self, command: str, caller: Caller = ROOT, **keys: object) -> list[Response]:
        """Ask; what is answered is in here as soon as it is."""
        answers: list[Response] = []
        raw = json.dumps({"command": command, **keys}).encode()
        asked(self.parts.responder.to(raw, caller)).addCallback(answers.append)
        return answers

    def streamed(self, answer: Response) -> list[dict[str, Any]]:
        """What comes behind an answer, as it comes."""
        lines: list[dict[str, Any]] = []
        assert answer.stream is not None

        def tell(told: Told, line: bytes) -> None:
            lines.append(json.loads(line))

        missed: Iterator[tuple[Told, bytes]] = answer.stream.begin(tell)
        lines += [json.loads(line) for _, line in missed]
        return lines

    def soon(self, condition: Callable[[], Any], most: float = 2.0) -> float:
        """It is so before long."""
        return self.network.until(condition, most)

    def has(self, room: Room, busId: str) -> bool:
        """Is a device of a server plugged in here?"""
        name = {RASPI: "raspi", BENCH: "bench"}[room.host]
        return f"{name} {busId}" in self.plugged
