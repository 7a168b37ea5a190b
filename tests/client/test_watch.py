"""
Tests of L{usbip_server.client.watch} and L{usbip_server.client.cli.discovery}.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import UNO
from tests.support.network import Network
from tests.support.scriptedserver import SECONDS, ScriptedServer
from usbip_server.client.cli.eventprinter import run
from usbip_server.client.servers import Server
from usbip_server.client.watch import ServerWatch
from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import Unreachable
from usbip_server.model.replies import ReceivedNotice, ReceivedReply, encodeDevices
from usbip_server.runtime.backoff import Backoff, BackoffOptions

TIME = "2026-11-25T17:56:00.123Z"
HOST = "192.0.2.1"
LOST = "lost: the connection is lost"


def raw(device: UsbDevice) -> Any:
    """The JSON of a device."""
    return json.loads(bytes(encodeDevices(device, detail=True)))


def event(kind: str, seq: int, device: UsbDevice = UNO) -> ReceivedNotice:
    """An event."""
    return {"event": kind, "seq": seq, "time": TIME, "data": raw(device)}


class Watched:
    """
    A server: reads a line of each connection, and writes these lines; after a refusal it reads
    another one.

    @ivar asked: the requests.
    """

    def __init__(self, *connections: list[dict[str, Any]]) -> None:
        self.asked: list[dict[str, Any]] = []
        self._connections = [*connections]

    def __call__(self, peer: socket.socket) -> None:
        """Serve a connection; the last one stays open."""
        lines = peer.makefile("rb")
        self.asked.append(json.loads(lines.readline()))
        for line in self._connections.pop(0) if self._connections else ():
            peer.sendall(json.dumps(line).encode() + b"\n")
            if line.get("status") == "error" and (again := lines.readline()):
                self.asked.append(json.loads(again))
        if not self._connections:
            lines.read()


class WatchTests(SynchronousTestCase):
    """
    A watch of one server.

    @ivar raises: what goes wrong when something is heard.
    """

    def setUp(self) -> None:
        self.raises: dict[str, Exception] = {}

    def follow(
        self, watched: Watched, isEnough: Callable[[list[str]], bool], **criteria: str
    ) -> list[str]:
        """Watch until so much was received; after that nothing is."""
        heard: list[str] = []

        async def work(reactor: Any) -> None:
            enough: Deferred[None] = Deferred()

            def hear(text: str) -> None:
                heard.append(text)
                if isEnough(heard):
                    watch.stop()
                    enough.callback(None)
                if text in self.raises:
                    raise self.raises.pop(text)

            def begun(server: Server, answer: ReceivedReply) -> None:
                hear("goes on" if answer.data is None else f"begun {len(answer.data)}")

            def told(server: Server, notice: ReceivedNotice) -> None:
                hear(f"{notice['event']} {notice['seq']}")

            def lost(server: Server, error: Exception) -> None:
                hear(f"lost: {str(error).rpartition('): ')[2]}")

            pauses = Backoff(BackoffOptions(first=0.1, longest=0.1))
            watch = ServerWatch(
                scripted.server, reactor, begun, told, lost, pauses, criteria, SECONDS
            )
            watch.start()
            enough.addTimeout(SECONDS, reactor)
            await enough

        with ScriptedServer(watched) as scripted:
            run(work)
        return heard

    def test_devicesThenEvents(self) -> None:
        """First all devices, then each event; heartbeats are not passed on."""
        watched = Watched(
            [
                {"status": "success", "seq": 5, "data": [raw(UNO)]},
                event("bound", 6),
                {"event": "heartbeat", "seq": 6, "time": TIME},
                event("unbound", 7),
            ]
        )
        heard = self.follow(watched, lambda heard: len(heard) == 3, serial="7533*")
        self.assertEqual(heard, ["begun 1", "bound 6", "unbound 7"])
        [asked] = watched.asked
        self.assertEqual((asked["command"], asked["serial"]), ("watch", "7533*"))
        self.assertNotIn("since", asked)

    def test_resumes(self) -> None:
        """After a lost connection the watch resumes after the last event."""
        watched = Watched(
            [{"status": "success", "seq": 5, "data": []}, event("bound", 6)],
            [{"status": "success", "seq": 9}, event("unbound", 8)],
        )
        heard = self.follow(watched, lambda heard: len(heard) == 5)
        self.assertEqual(heard, ["begun 0", "bound 6", LOST, "goes on", "unbound 8"])
        self.assertEqual(watched.asked[1]["since"], 6)

    def test_tooLateToResume(self) -> None:
        """If the server no longer has these events, all devices are listed again."""
        watched = Watched(
            [{"status": "success", "seq": 5, "data": []}],
            [
                {"status": "error", "message": "the events since 5 are not stored any more"},
                {"status": "success", "seq": 100, "data": [raw(UNO)]},
            ],
        )
        heard = self.follow(watched, lambda heard: len(heard) == 3)
        self.assertEqual(heard, ["begun 0", LOST, "begun 1"])
        self.assertEqual([asked.get("since") for asked in watched.asked], [None, 5, None])

    def test_refusedThenAccepted(self) -> None:
        """A server that refuses is asked again."""
        watched = Watched(
            [{"status": "error", "message": "you may not watch"}],
            [{"status": "success", "seq": 5, "data": []}],
        )
        heard = self.follow(watched, lambda heard: len(heard) == 2)
        self.assertEqual(heard, ["lost: you may not watch", "begun 0"])

    def test_callbackRaisesShareError(self) -> None:
        """If a callback raises a C{ShareError} the watch reconnects, and resumes before that
        event."""
        self.raises["bound 6"] = Unreachable("nonsense")
        watched = Watched(
            [{"status": "success", "seq": 5, "data": []}, event("bound", 6), event("unbound", 7)],
            [{"status": "success", "seq": 7}],
        )
        heard = self.follow(watched, lambda heard: len(heard) == 4)
        self.assertEqual(heard, ["begun 0", "bound 6", "lost: nonsense", "goes on"])
        self.assertEqual(watched.asked[1]["since"], 6)

    def test_callbackRaisesOtherError(self) -> None:
        """Another error of a callback is reported, and the event repeated."""
        self.raises["begun 0"] = ZeroDivisionError("a bug")
        watched = Watched(
            [{"status": "success", "seq": 5, "data": []}],
            [{"status": "success", "seq": 5, "data": [raw(UNO)]}],
        )
        heard = self.follow(watched, lambda heard: len(heard) == 3)
        self.assertEqual(heard, ["begun 0", "lost: a bug", "begun 1"])

    def test_stopped(self) -> None:
        """The watch can be stopped by any callback."""
        for text in ("begun 0", "bound 6", LOST):
            watched = Watched(
                [
                    {"status": "success", "seq": 5, "data": []},
                    event("bound", 6),
                    event("unbound", 6),
                ],
                [],
            )
            heard = self.follow(watched, lambda heard: heard[-1] == text)  # noqa: B023
            self.assertEqual((heard[-1], heard.count(text)), (text, 1))


class SteadyTests(SynchronousTestCase):
    """
    A server whose connections are lost again and again.
    """

    def test_pauses(self) -> None:
        """Pauses grow while connections are short, and not after a long one."""
        network = Network()
        room = network.room(HOST, UNO)
        begun: list[float] = []
        watch = ServerWatch(
            Server(name=HOST, host=HOST),
            network,
            lambda server, answer: begun.append(network.seconds()),
            lambda server, notice: None,
            lambda server, error: None,
            Backoff(BackoffOptions(first=1, longest=100), lambda: 1.0),
            steady=5.0,
        )
        self.addCleanup(watch.stop)
        watch.start()
        away: list[float] = []
        for there in (1.0, 1.0, 6.0):
            network.sleep(there)
            room.restart()
            times = len(begun)
            away.append(network.until(lambda: len(begun) > times, 20))  # noqa: B023
        self.assertEqual([round(each) for each in away], [2, 8, 1])
