"""
Tests of L{usbip_server.client.core.following} and L{usbip_server.client.terminal.appearing}.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase

from tests.client.scripted import SECONDS, ScriptedServer
from tests.support import STICK, UNO
from usbip_server.client.core.asking import Notice
from usbip_server.client.core.choosing import SeveralFound
from usbip_server.client.core.devices import Found
from usbip_server.client.core.following import Following
from usbip_server.client.core.servers import Server
from usbip_server.client.terminal.appearing import Appearing
from usbip_server.client.terminal.picking import Meant, meant
from usbip_server.client.terminal.running import run
from usbip_server.device import UsbDevice
from usbip_server.errors import DeviceNotFound, ShareError
from usbip_server.replies import encodeDevices

TIME = "2026-11-25T17:56:00.123Z"


def raw(device: UsbDevice) -> Any:
    """A device as servers tell of it."""
    return json.loads(bytes(encodeDevices(device, detail=True)))


def event(kind: str, seq: int, device: UsbDevice = UNO) -> Notice:
    """Something that happens."""
    return {"event": kind, "seq": seq, "time": TIME, "data": raw(device)}


class Watched:
    """
    What a server does: of each connection the first line is read, and these are answered.

    @ivar asked: the requests.
    """

    def __init__(self, *connections: list[dict[str, Any]]) -> None:
        self.asked: list[dict[str, Any]] = []
        self._connections = [*connections]

    def __call__(self, peer: socket.socket) -> None:
        """Answer what comes over a connection; after that of the last it stays open."""
        lines = peer.makefile("rb")
        self.asked.append(json.loads(lines.readline()))
        for line in self._connections.pop(0) if self._connections else ():
            peer.sendall(json.dumps(line).encode() + b"\n")
        if not self._connections:
            lines.read()


class FollowingTests(SynchronousTestCase):
    """
    What is heard of one server.
    """

    def follow(
        self, watched: Watched, isEnough: Callable[[list[str]], bool], **criteria: str
    ) -> list[str]:
        """
        Follow it, until enough was heard.
        """
        heard: list[str] = []

        async def work(reactor: Any) -> None:
            enough: Deferred[None] = Deferred()

            def hear(text: str) -> None:
                heard.append(text)
                if isEnough(heard) and not enough.called:
                    enough.callback(None)

            def begun(server: Server, devices: list[Any]) -> None:
                hear(f"begun {len(devices)}")

            def told(server: Server, notice: Notice) -> None:
                hear(f"{notice['event']} {notice['seq']}")

            def lost(server: Server, error: ShareError) -> None:
                hear("lost")

            following = Following(scripted.server, dict(criteria), begun, told, lost)
            working = Deferred.fromCoroutine(following.follow(reactor, SECONDS))
            working.addErrback(lambda failure: None)
            enough.addTimeout(SECONDS, reactor)
            await enough
            await deferLater(reactor, 0, lambda: None)  # it is not at it any more
            working.cancel()

        with ScriptedServer(watched) as scripted:
            run(work)
        return heard

    def test_follow(self) -> None:
        """All devices come first, and then each event; signs of life are not told."""
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

    def test_absence(self) -> None:
        """After an absence it goes on behind the last event."""
        watched = Watched(
            [{"status": "success", "seq": 5, "data": []}, event("bound", 6)],
            [{"status": "success", "seq": 9}, event("unbound", 8)],
        )
        heard = self.follow(watched, lambda heard: len(heard) == 4)
        self.assertEqual(heard, ["begun 0", "bound 6", "lost", "unbound 8"])
        self.assertEqual(watched.asked[1]["since"], 6)

    def test_forgotten(self) -> None:
        """If its server does not go back that far all devices come anew."""
        watched = Watched(
            [{"status": "success", "seq": 5, "data": []}],
            [{"status": "error", "message": "what happened since 5 is not known any more"}],
            [{"status": "success", "seq": 100, "data": [raw(UNO)]}],
        )
        heard = self.follow(watched, lambda heard: len(heard) == 3)
        self.assertEqual(heard, ["begun 0", "lost", "begun 1"])
        self.assertEqual([asked.get("since") for asked in watched.asked], [None, 5, None])

    def test_refused(self) -> None:
        """A server that refuses is asked again."""
        watched = Watched(
            [{"status": "error", "message": "you may not watch"}],
            [{"status": "success", "seq": 5, "data": []}],
        )
        heard = self.follow(watched, lambda heard: len(heard) == 2)
        self.assertEqual(heard, ["lost", "begun 0"])


class AppearingTests(SynchronousTestCase):
    """
    A device that is waited for.
    """

    def appears(
        self, *lines: dict[str, Any], word: str = "uno", patience: float = SECONDS
    ) -> Found:
        """What comes, of a server that says this."""
        which = meant(word, False)
        assert isinstance(which, Meant)
        appearing = Appearing(which)
        with ScriptedServer(Watched([*lines])) as scripted:
            servers = [scripted.server]
            return run(lambda reactor: appearing.wait(reactor, servers, SECONDS, patience))

    def test_there(self) -> None:
        """It may be there when it is asked for."""
        found = self.appears({"status": "success", "seq": 5, "data": [raw(STICK), raw(UNO)]})
        self.assertEqual(found.device.busId, UNO.busId)

    def test_comes(self) -> None:
        """Or it comes, or becomes what is meant."""
        nothing = {"status": "success", "seq": 5, "data": []}
        for kind in ("added", "changed"):
            found = self.appears(nothing, event("added", 6, STICK), event(kind, 7))
            self.assertEqual(found.device.busId, UNO.busId)

    def test_several(self) -> None:
        """Several are not one; one that has gone does not count."""
        there = {"status": "success", "seq": 5, "data": []}
        lines = (there, event("added", 6), event("removed", 7), event("added", 8, STICK))
        found = self.appears(*lines, word="ultra")
        self.assertEqual(found.device.busId, STICK.busId)
        both = {"status": "success", "seq": 5, "data": [raw(STICK), raw(UNO)]}
        self.assertRaises(SeveralFound, self.appears, both, word="1-*")

    def test_never(self) -> None:
        """It may not come at all, and what makes no sense is none."""
        there = {"status": "success", "seq": 5, "data": []}
        nonsense = {"event": "added", "seq": 6, "time": TIME, "data": {"bus_id": "x"}}
        self.assertRaises(DeviceNotFound, self.appears, there, nonsense, patience=0.2)
