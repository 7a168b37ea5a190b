"""
Tests of L{usbip_server.protocols.lines}: watching. What the events contain is shown in
C{tests/server/devices/test_events.py}, and clients that do not read in C{test_watcher.py}.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.interfaces import ISSLTransport
from zope.interface import implementer

from tests.protocols.linescase import ATTACH, KEEP, LIST, LinesTestCase
from tests.support.fixtures import (
    EPOCH,
    MOUSE,
    STICK,
    UNO,
    MemoryTransport,
    PatientBackend,
    Wire,
    threeWays,
)
from usbip_server.model.device import DeviceState, Holder
from usbip_server.net.halfclose import LINGER
from usbip_server.net.liveness import PROBE_SECONDS

WATCH = b'{"command":"watch"}'
LEASE = b'{"command":"attach","id":"1-1.4","lease":{"owner":"ci-1","ttl":600},"keep_alive":true}'
BOUND, FREE, IN_USE = DeviceState.BOUND, DeviceState.FREE, DeviceState.IN_USE


@implementer(ISSLTransport)
class TlsTransport(MemoryTransport):
    """
    A transport with the interface of TLS.
    """

    transport = None

    def getPeerCertificate(self) -> object:
        return None


def watch(**more: object) -> bytes:
    """A watch command."""
    return json.dumps({"command": "watch", **more}).encode() + b"\n"


class WatchTestCase(LinesTestCase):
    """
    Connections that watch.
    """

    def watch(self, **more: object) -> Wire:
        """A new connection that watches, to a daemon of its own."""
        wire = self.connect()
        wire.send(watch(**more))
        return wire

    def alsoWatch(self, **more: object) -> Wire:
        """One more, to the same daemon."""
        wire = self.another()
        wire.send(watch(**more))
        return wire

    def kinds(self, wire: Wire) -> list[tuple[str, str]]:
        """The kinds of the events that a client got, and the bus ids."""
        return [(event["event"], event["data"]["bus_id"]) for event in wire.events]

    def toggle(self, times: int) -> None:
        """So many events."""
        for _ in range(times):
            now = self.backend.inventory.get("1-1.4")
            self.become(UNO, state=BOUND if now == UNO else FREE)

    def listed(self, detail: bool) -> Any:
        """The devices as C{list} shows them."""
        wire = self.another()
        wire.send(json.dumps({"command": "list", "detail": detail}).encode())
        return wire.data

    def assertComplete(self, wire: Wire) -> None:
        """The snapshot with the events applied to it is what C{list} shows now."""
        snapshot, *events = wire.answers
        devices = {device["bus_id"]: device for device in snapshot["data"]}
        for number, event in enumerate(events, snapshot["seq"] + 1):
            self.assertEqual(event["seq"], number)
            if event["event"] == "removed":
                del devices[event["data"]["bus_id"]]
            else:
                devices[event["data"]["bus_id"]] = event["data"]
        self.assertEqual(devices, {device["bus_id"]: device for device in self.listed(True)})

    def assertForgotten(self, wire: Wire) -> None:
        """Nothing is left of a watcher that has gone, and nothing is written to it."""
        self.assertEqual(self.clock.getDelayedCalls(), [])
        written = len(wire.transport.writes)
        self.toggle(4)
        self.clock.advance(60)
        self.assertEqual(len(wire.transport.writes), written)


class WatchTests(WatchTestCase):
    """
    The reply and the events.
    """

    def test_snapshot(self) -> None:
        """
        The reply to C{watch} contains the devices as C{list} shows them, and the number of the
        last event before it; each event is a line with its number, its time and the device.
        """
        for detail in (False, True):
            for request in (watch(detail=detail), watch(detail=detail).strip()):
                for way, segments in threeWays([request]):
                    wire = self.connect()
                    wire.send(*segments)
                    [answer] = wire.answers
                    self.assertEqual(set(answer), {"status", "seq", "data"}, way)
                    self.assertEqual(answer["status"], "success", way)
                    self.assertEqual(answer["data"], self.listed(detail), way)
                    self.become(UNO, state=BOUND)
                    [event] = wire.events
                    self.assertEqual((event["event"], event["seq"]), ("bound", answer["seq"] + 1))
                    self.assertIn("time", event)
                    self.assertEqual(event["data"], self.listed(detail)[0], way)
                    self.become(UNO)

    def test_kinds(self) -> None:
        """Each kind of change has an event of its own."""
        wire = self.watch(detail=True)
        self.become(UNO, state=BOUND)
        self.become(UNO, state=IN_USE, holder=Holder(address="192.0.2.9", since=EPOCH))
        self.become(UNO, state=BOUND)
        self.become(UNO)
        self.become(UNO, product="Renamed")
        self.backend.inventory.replace([], {"1-1.4"})
        self.become(UNO)
        self.another().send(LEASE)
        self.assertEqual(
            " ".join(kind for kind, _ in self.kinds(wire)),
            "bound imported released unbound changed removed added lease bound",
        )
        self.assertComplete(wire)
        self.clock.advance(600)
        leases = [event.get("lease") for event in wire.events if event["event"] == "lease"]
        until = "2023-11-14T22:23:20.000Z"
        owned = {"owner": "ci-1", "address": "192.0.2.7", "ttl": 600, "until": until}
        self.assertEqual(leases, [owned, None])

    def test_starting(self) -> None:
        """
        If the watch command had to wait for the daemon's start, no event is lost or sent twice
        either.
        """
        for way, segments in threeWays([watch(detail=True), ATTACH]):
            self.backend = PatientBackend(started=False)
            wire = self.connect()
            self.become(UNO, state=BOUND)
            wire.send(*segments)
            self.become(STICK, state=BOUND)
            self.assertEqual(wire.received, b"", way)
            self.backend.starting.callback(None)
            self.become(MOUSE, state=BOUND)
            wire.turn()
            states = [device["state"] for device in wire.answers[0]["data"]]
            self.assertEqual(states, ["bound", "bound", "free"], way)
            self.assertEqual(self.kinds(wire), [("bound", "2-10")], way)
            self.assertComplete(wire)
            self.assertEqual(self.backend.calls, [], way)

    def test_criteria(self) -> None:
        """
        Criteria select the devices of the reply and of the events. It is no error if none matches:
        a device may be plugged in later.
        """
        for criteria in (
            {"id": "1-1.*"},
            {"id": "2341:*"},
            {"bus": "1-1.4"},
            {"serial": UNO.serial},
            {"desc": "arduino"},
            {"id": "1-*", "desc": "arduino"},
        ):
            wire = self.watch(**criteria)
            self.assertEqual([d["bus_id"] for d in wire.answers[0]["data"]], ["1-1.4"], criteria)
            for device in (STICK, UNO, MOUSE):
                self.become(device, state=BOUND)
            self.assertEqual(self.kinds(wire), [("bound", "1-1.4")], criteria)
            for device in (STICK, UNO, MOUSE):
                self.become(device)
        wire = self.watch(serial="L1")
        self.assertEqual((wire.answers[0]["status"], wire.answers[0]["data"]), ("success", []))
        self.become(MOUSE, serial="L1")
        self.assertEqual(self.kinds(wire), [("changed", "2-10")])

    def test_refused(self) -> None:
        """
        An invalid watch command, one for events that are not remembered, and any in a daemon that
        stops, is an error, and no events are sent.
        """
        begin = self.watch().answers[0]["seq"]
        for request, reason in (
            (watch(sinec=1), "sinec"),
            (watch(since=-1), "since"),
            (watch(since="1"), "since"),
            (watch(id=""), "`id` is empty"),
            (watch(first=True), "first"),
            *(
                (watch(since=since), 'watch without "since"')
                for since in (0, 1, begin - 100, begin + 100, begin * 2)
            ),
            (WATCH, "stopping"),
        ):
            wire = self.another()
            if reason == "stopping":
                self.successResultOf(self.stopped())
            wire.send(request)
            [answer] = wire.answers
            self.assertEqual(answer["status"], "error", request)
            self.assertIn(reason, answer["message"])
            self.toggle(1)
            self.assertEqual(len(wire.answers), 1)
            wire.closeWrite()
            self.assertTrue(wire.lost)

    def test_since(self) -> None:
        """
        With C{since}, the events after that one are sent as they were, without a snapshot;
        criteria and detail apply to them too.
        """
        first = self.watch()
        begin = first.answers[0]["seq"]
        self.toggle(5)
        lines = first.received.splitlines(keepends=True)
        for missed in range(6):
            wire = self.alsoWatch(since=begin + 5 - missed)
            answer, rest = wire.received.split(b"\n", 1)
            self.assertEqual(json.loads(answer), {"status": "success", "seq": begin + 5 - missed})
            self.assertEqual(rest, b"".join(lines[6 - missed :]))
        self.become(STICK, state=BOUND)
        self.assertEqual(wire.received.splitlines()[-1], first.received.splitlines()[-1])
        wire = self.alsoWatch(since=begin, id="1-2", detail=True)
        self.become(STICK)
        self.assertEqual([event["seq"] for event in wire.events], [begin + 6, begin + 7])
        self.assertEqual([event["data"]["state"] for event in wire.events], ["bound", "free"])


class PipeliningTests(WatchTestCase):
    """
    Requests before and behind a watch command on its connection.
    """

    def test_pipelined(self) -> None:
        """
        Requests before a watch command are answered first, and do not close the connection;
        what comes behind it is ignored, and not stored.
        """
        wire = self.connect()
        wire.send(LIST + WATCH)
        self.toggle(1)
        self.assertEqual(len(wire.events), 1)
        self.assertFalse(wire.closed)
        wire.drop()
        before = [KEEP, KEEP + b"\n"]
        for behind in (
            [ATTACH],
            [ATTACH + b"\n", LIST],
            [b"\n", b"garbage\n", ATTACH],
            [b"x" * 60_000],
            [b"{" * 60_000 + b"\n"],
            [(KEEP + b"\n") * 3000],
        ):
            for request in (WATCH, WATCH + b"\n", watch(keep_alive=True)):
                for way, segments in threeWays([*before, request, *behind]):
                    if way == "byte by byte" and sum(map(len, behind)) > 1000:
                        continue
                    wire = self.connect()
                    wire.send(*segments)
                    for _ in range(3):
                        wire.send(b"x" * 2**16, (KEEP + b"\n") * 100)
                    self.toggle(2)
                    self.assertEqual(len(wire.answers), 5, (way, behind[0][:20]))
                    self.assertEqual(len(wire.events), 2, way)
                    self.assertEqual(self.backend.calls, [], way)
                    self.assertFalse(wire.closed)
                    self.assertEqual(wire.transport.producerState, "producing")
                    wire.drop()
                    self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_behindSlow(self) -> None:
        """A watch command waits for the replies before it, and its snapshot is taken then."""
        for way, segments in threeWays([ATTACH, watch(detail=True), ATTACH]):
            wire = self.patiently()
            wire.send(*segments)
            self.assertEqual(wire.received, b"", way)
            self.backend.calls[0].succeed()
            wire.turn()
            self.assertEqual(wire.answers[1]["data"][0]["state"], "bound", way)
            self.assertEqual(len(self.backend.calls), 1, way)
            self.become(UNO)
            self.assertEqual(self.kinds(wire), [("unbound", "1-1.4")], way)

    def test_behindUnread(self) -> None:
        """A watch command behind many unread replies begins when they are read."""
        wire = self.connect()
        wire.transport.reading = False
        wire.send((KEEP + b"\n") * 1000 + WATCH)
        self.toggle(1)
        self.assertEqual(wire.events, [])
        wire.transport.read()
        wire.turn()
        self.toggle(1)
        self.clock.pump([15] * 4)
        self.assertEqual(len(wire.answers), 1001 + 1 + 4)
        self.assertFalse(wire.closed)


class LastingTests(WatchTestCase):
    """
    How long events are sent.
    """

    def test_heartbeats(self) -> None:
        """
        Heartbeats contain the number of the last event; a watching client needs to send nothing.
        """
        wire = self.watch()
        begin = wire.answers[0]["seq"]
        self.clock.advance(14.9)
        self.assertEqual(wire.events, [])
        self.clock.advance(0.2)
        self.toggle(1)
        self.clock.pump([15] * 4)
        beats = [event for event in wire.events if event["event"] == "heartbeat"]
        self.assertEqual([beat["seq"] for beat in beats], [begin] + [begin + 1] * 4)
        self.assertEqual(set(beats[0]), {"event", "seq", "time"})
        self.assertFalse(wire.closed)

    def test_halfClosed(self) -> None:
        """
        A client that has closed its side still receives events, as netcat does, also if it did
        before the reply. It gets two heartbeats soon, which show whether it was killed.
        """
        for way, segments in threeWays([WATCH]):
            wire = self.connect()
            wire.send(*segments)
            wire.closeWrite()
            self.toggle(1)
            self.clock.advance(PROBE_SECONDS)
            told = ["heartbeat", "bound", "heartbeat"]
            self.assertEqual([event["event"] for event in wire.events], told, way)
            self.clock.pump([15] * 4)
            self.assertEqual(len(wire.events), 7, way)
            self.assertFalse(wire.closed, way)
            self.become(UNO)
            wire.drop()
            self.assertForgotten(wire)
        self.backend = PatientBackend(started=False)
        wire = self.watch()
        wire.closeWrite()
        self.backend.starting.callback(None)
        self.toggle(1)
        self.assertEqual(wire.events[-1]["event"], "bound")
        self.assertFalse(wire.closed)

    def test_goes(self) -> None:
        """A client that disconnects, also before the reply, leaves nothing behind."""
        for started in (True, False):
            self.backend = PatientBackend(started=started)
            wire = self.watch()
            self.toggle(1)
            wire.drop()
            if not started:
                self.backend.starting.callback(None)
                self.assertEqual(wire.received, b"")
            self.assertForgotten(wire)

    def test_daemonStops(self) -> None:
        """
        A daemon that stops sends all events and closes its side, once; the client has time to
        close its own.
        """
        wire = self.watch()
        self.toggle(3)
        wire.protocol.close()
        wire.protocol.close()
        self.assertTrue(wire.transport.writeClosed)
        self.assertIsNone(wire.transport.producer)
        self.assertEqual(len(wire.events), 3)
        wire.turn()
        self.clock.advance(LINGER)
        wire.turn()
        self.assertTrue(wire.lost)
        self.assertForgotten(wire)

    def test_daemonStopsBothSides(self) -> None:
        """
        If the client has closed its side already, or one side cannot be closed alone, as with TLS,
        the connection ends at once.
        """
        for transport in (MemoryTransport(), TlsTransport()):
            self.connect().drop()
            wire = self.another(transport=transport)
            wire.send(WATCH)
            self.toggle(1)
            if not isinstance(transport, TlsTransport):
                wire.closeWrite()
            wire.protocol.close()
            self.assertFalse(wire.transport.writeClosed)
            wire.turn()
            self.assertTrue(wire.lost)
            self.assertForgotten(wire)
