"""
Tests of L{usbip_server.client.watch}.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from functools import partial
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

    @ivar raises: the errors of the callback, by the text that it is called with.
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

            class Listener:
                def watchBegun(self, server: Server, reply: ReceivedReply) -> None:
                    hear("goes on" if reply.data is None else f"begun {len(reply.data)}")

                def watchEvent(self, server: Server, notice: ReceivedNotice) -> None:
                    hear(f"{notice['event']} {notice['seq']}")

                def watchLost(self, server: Server, error: Exception) -> None:
                    hear(f"lost: {str(error).rpartition('): ')[2]}")

            pauses = Backoff(BackoffOptions(first=0.1, longest=0.1))
            watch = ServerWatch(scripted.server, reactor, Listener(), pauses, criteria, SECONDS)
            watch.start()
            enough.addTimeout(SECONDS, reactor)
            await enough

        with ScriptedServer(watched) as scripted:
            run(work)
        return heard

    def test_watches(self) -> None:
        """First all devices, then each event but heartbeats. After a lost connection the watch
        resumes after the last event, or, if the server no longer has these, begins again; a server
        that refuses is asked again. An error of a callback ends the connection."""
        begun, more = {"status": "success", "seq": 5, "data": []}, event("unbound", 7)
        heartbeat = {"event": "heartbeat", "seq": 6, "time": TIME}
        again = {**begun, "data": [raw(UNO)]}
        goesOn = {"status": "success", "seq": 9}
        gone = {"status": "error", "message": "the events since 5 are not stored any more"}
        refusal = {"status": "error", "message": "you may not watch"}
        nonsense, bug = Unreachable("nonsense"), ZeroDivisionError("a bug")
        for connections, raises, wanted, since in (
            (
                [[again, event("bound", 6), heartbeat, more]],
                {},
                ["begun 1", "bound 6", "unbound 7"],
                [None],
            ),
            (
                [[begun, event("bound", 6)], [goesOn, more]],
                {},
                ["begun 0", "bound 6", LOST, "goes on", "unbound 7"],
                [None, 6],
            ),
            ([[begun], [gone, again]], {}, ["begun 0", LOST, "begun 1"], [None, 5, None]),
            ([[refusal], [begun]], {}, ["lost: you may not watch", "begun 0"], [None, None]),
            (
                [[begun, event("bound", 6), more], [goesOn]],
                {"bound 6": nonsense},
                ["begun 0", "bound 6", "lost: nonsense", "goes on"],
                [None, 6],
            ),
            (
                [[begun], [again]],
                {"begun 0": bug},
                ["begun 0", "lost: a bug", "begun 1"],
                [None, None],
            ),
        ):
            self.raises = {**raises}
            watched = Watched(*connections)
            isEnough = partial(_isLong, len(wanted))
            self.assertEqual(self.follow(watched, isEnough, serial="7533*"), wanted)
            self.assertEqual([asked.get("since") for asked in watched.asked], since)
            for asked in watched.asked:
                self.assertEqual((asked["command"], asked["serial"]), ("watch", "7533*"))

    def test_stopped(self) -> None:
        """The watch can be stopped by any callback."""
        for text in ("begun 0", "bound 6", LOST):
            lines = [{"status": "success", "seq": 5, "data": []}, event("bound", 6)]
            watched = Watched([*lines, event("unbound", 6)], [])
            heard = self.follow(watched, lambda heard: heard[-1] == text)  # noqa: B023
            self.assertEqual((heard[-1], heard.count(text)), (text, 1))


def _isLong(length: int, heard: list[str]) -> bool:
    return len(heard) == length


class SteadyTests(SynchronousTestCase):
    """
    A server whose connections are lost again and again.
    """

    def test_pauses(self) -> None:
        """Pauses grow while connections are short, and not after a long one."""
        network = Network()
        room = network.room(HOST, UNO)
        begun: list[float] = []

        class Listener:
            def watchBegun(self, server: Server, reply: ReceivedReply) -> None:
                begun.append(network.seconds())

            def watchEvent(self, server: Server, notice: ReceivedNotice) -> None:
                pass

            def watchLost(self, server: Server, error: Exception) -> None:
                pass

        watch = ServerWatch(
            Server(name=HOST, host=HOST),
            network,
            Listener(),
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
