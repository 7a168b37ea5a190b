"""
Tests of L{usbip_server.protocols.lines}: watching.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.interfaces import ISSLTransport
from zope.interface import implementer

from tests.protocols.linescase import ATTACH, KEEP, LIST, LinesTestCase
from tests.support.fixtures import (
    DEVICES,
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
    One with TLS on a connection that is none.
    """

    transport = None

    def getPeerCertificate(self) -> object:
        return None


def watch(**more: object) -> bytes:
    """A request to watch."""
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
        """What it was told: the kinds of the events, and the bus ids."""
        return [(event["event"], event["data"]["bus_id"]) for event in wire.events]

    def seqs(self, wire: Wire) -> list[int]:
        """The numbers of the events it was told."""
        return [event["seq"] for event in wire.events]

    def toggle(self, times: int) -> None:
        """So many events."""
        for _ in range(times):
            now = self.backend.inventory.get("1-1.4")
            self.become(UNO, state=BOUND if now == UNO else FREE)

    def assertComplete(self, wire: Wire) -> None:
        """Whoever applies the events to the snapshot has what there is."""
        snapshot, *events = wire.answers
        devices = {device["bus_id"]: device for device in snapshot["data"]}
        for number, event in enumerate(events, snapshot["seq"] + 1):
            self.assertEqual(event["seq"], number)
            if event["event"] == "removed":
                del devices[event["data"]["bus_id"]]
            else:
                devices[event["data"]["bus_id"]] = event["data"]
        asking = self.another()
        asking.send(b'{"command":"list","detail":true}')
        now = {device["bus_id"]: device for device in asking.answers[0]["data"]}
        self.assertEqual(devices, now)


class WatchTests(WatchTestCase):
    """
    What a watcher is told.
    """

    def test_snapshot(self) -> None:
        """
        The reply to C{watch} contains the devices as C{list} shows them, and the number of
        the last event before it.
        """
        for detail in (False, True):
            request = watch(detail=detail)
            for way, segments in threeWays([request]):
                wire = self.connect()
                wire.send(*segments)
                asking = self.another()
                asking.send(json.dumps({"command": "list", "detail": detail}).encode())
                [answer] = wire.answers
                self.assertEqual(set(answer), {"status", "seq", "data"}, way)
                self.assertEqual((answer["status"], answer["data"]), ("success", asking.data), way)
                self.become(MOUSE, state=BOUND)
                self.assertEqual(wire.events[0]["seq"], answer["seq"] + 1, way)
                self.become(MOUSE)

    def test_noLineFeed(self) -> None:
        """A watch command needs no line feed."""
        wire = self.connect()
        wire.send(WATCH)
        self.toggle(2)
        self.assertEqual(self.kinds(wire), [("bound", "1-1.4"), ("unbound", "1-1.4")])

    def test_events(self) -> None:
        """Each event is a line with its number, its time and the device as C{list} shows it."""
        wire = self.watch()
        [answer] = wire.answers
        self.clock.advance(1.25)
        self.become(UNO, state=BOUND)
        self.assertEqual(
            wire.events,
            [
                {
                    "event": "bound",
                    "seq": answer["seq"] + 1,
                    "time": "2023-11-14T22:13:21.250Z",
                    "data": answer["data"][0],
                }
            ],
        )

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
        asking = self.another()
        asking.send(LEASE)
        self.assertEqual(
            " ".join(kind for kind, _ in self.kinds(wire)),
            "bound imported released unbound changed removed added lease bound",
        )
        self.assertComplete(wire)

    def test_holder(self) -> None:
        """
        Events of an import and a release contain the holder, with and without detail, and
        also if nothing is known of it.
        """
        for detail in (False, True):
            wire = self.watch(detail=detail)
            self.become(UNO, state=IN_USE, holder=Holder(address="192.0.2.9", since=EPOCH))
            self.become(UNO, state=BOUND)
            self.become(UNO, state=IN_USE)
            self.become(UNO, state=BOUND)
            holder: dict[str, Any] = dict.fromkeys(("bytes_in", "bytes_out", "encryption"))
            known = {**holder, "address": "192.0.2.9", "since": "2023-11-14T22:13:20.000Z"}
            unknown = {**holder, "address": None, "since": None}
            self.assertEqual(
                [(e["event"], e["holder"]) for e in wire.events if "holder" in e],
                [
                    ("imported", known),
                    ("released", known),
                    ("imported", unknown),
                    ("released", unknown),
                ],
            )

    def test_lease(self) -> None:
        """An event contains the new lease, and none when the lease has ended."""
        wire = self.watch()
        asking = self.another()
        asking.send(LEASE)
        self.clock.advance(600)
        leases = [event for event in wire.events if event["event"] == "lease"]
        self.assertEqual(
            leases[0]["lease"],
            {
                "owner": "ci-1",
                "address": "192.0.2.7",
                "ttl": 600,
                "until": "2023-11-14T22:23:20.000Z",
            },
        )
        self.assertEqual(len(leases), 2)
        self.assertNotIn("lease", leases[1])

    def test_oneStepAfterStart(self) -> None:
        """
        If the watch command had to wait for the daemon's start, no event is lost or sent
        twice either.
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
        """Criteria select the devices of the reply and of the events."""
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
            self.become(STICK, state=BOUND)
            self.become(UNO, state=BOUND)
            self.become(MOUSE, state=BOUND)
            self.assertEqual(self.kinds(wire), [("bound", "1-1.4")], criteria)
            self.backend.inventory.replace(DEVICES)

    def test_nothingMatches(self) -> None:
        """Criteria that no device matches are no error: a device may be plugged in later."""
        wire = self.watch(serial="L1")
        self.assertEqual((wire.answers[0]["status"], wire.answers[0]["data"]), ("success", []))
        self.backend.inventory.replace([*DEVICES[:2], MOUSE], None)
        self.become(MOUSE, serial="L1")
        self.assertEqual(self.kinds(wire), [("changed", "2-10")])

    def test_bad(self) -> None:
        """An invalid watch command is an error, and no events are sent."""
        for request, reason in (
            (watch(sinec=1), "sinec"),
            (watch(since=-1), "since"),
            (watch(since="1"), "since"),
            (watch(id=""), "`id` is empty"),
            (watch(first=True), "first"),
        ):
            wire = self.connect()
            wire.send(request)
            [answer] = wire.answers
            self.assertEqual(answer["status"], "error", request)
            self.assertIn(reason, answer["message"])
            self.toggle(1)
            self.assertEqual(len(wire.answers), 1)
            self.assertAllEnds(wire)


class SinceTests(WatchTestCase):
    """
    Watching on where an earlier watch has ended.
    """

    def test_goesOn(self) -> None:
        """With C{since}, the events after that one are sent as they were, without a snapshot."""
        first = self.watch()
        begin = first.answers[0]["seq"]
        self.toggle(5)
        lines = first.received.splitlines(keepends=True)
        for missed in range(6):
            wire = self.alsoWatch(since=begin + 5 - missed)
            answer, rest = wire.received.split(b"\n", 1)
            self.assertEqual(json.loads(answer), {"status": "success", "seq": begin + 5 - missed})
            self.assertEqual(rest, b"".join(lines[6 - missed :]))
        self.toggle(1)
        self.assertEqual(wire.received.splitlines()[-1], first.received.splitlines()[-1])
        self.assertEqual(self.seqs(wire), list(range(begin + 1, begin + 7)))

    def test_criteria(self) -> None:
        """Criteria and detail apply to the missed events too."""
        begin = self.watch().answers[0]["seq"]
        self.become(UNO, state=BOUND)
        self.become(STICK, state=BOUND)
        wire = self.alsoWatch(since=begin, id="1-2", detail=True)
        self.become(UNO)
        self.become(STICK)
        self.assertEqual(self.seqs(wire), [begin + 2, begin + 4])
        self.assertEqual([e["data"]["state"] for e in wire.events], ["bound", "free"])

    def assertImpossible(self, wire: Wire) -> None:
        """The watcher is told to begin anew."""
        [answer] = wire.answers
        self.assertEqual(answer["status"], "error")
        self.assertIn('watch without "since"', answer["message"])
        self.toggle(1)
        self.assertEqual(len(wire.answers), 1)

    def test_unknown(self) -> None:
        """A number of an earlier daemon, or one that is still to come, is refused."""
        begin = self.watch().answers[0]["seq"]
        self.toggle(2)
        for since in (0, 1, begin - 100, begin + 100, begin * 2):
            self.assertImpossible(self.alsoWatch(since=since))

    def test_keepAlive(self) -> None:
        """A client that is refused can send another request if it has sent C{keep_alive}."""
        wire = self.connect()
        wire.send(watch(since=1, keep_alive=True), watch(), ATTACH)
        self.assertEqual(wire.statuses, ["error", "success"])
        self.assertEqual(self.backend.calls, [])


class BehindTests(WatchTestCase):
    """
    What comes before a watch on its connection, and behind it.
    """

    def test_pipelined(self) -> None:
        """Requests before a watch command are answered first; requests behind it are ignored."""
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

    def test_behindLastOne(self) -> None:
        """A request before it without C{keep_alive} does not close the connection."""
        wire = self.connect()
        wire.send(LIST + WATCH)
        self.toggle(1)
        self.assertEqual(len(wire.events), 1)
        self.assertFalse(wire.closed)

    def test_flood(self) -> None:
        """
        A watching client that keeps sending still receives events, and its data is not
        stored.
        """
        wire = self.watch()
        for _ in range(100):
            wire.send(b"x" * 2**16)
            wire.send((KEEP + b"\n") * 100)
        self.toggle(1)
        self.assertEqual(len(wire.answers), 2)
        self.assertEqual(wire.transport.producerState, "producing")

    def test_congestedBefore(self) -> None:
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
    How long a watcher is told.
    """

    def test_heartbeats(self) -> None:
        """
        Heartbeats contain the number of the last event; a watching client needs to send
        nothing.
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
        A client that has closed its side still receives events, as netcat does. It gets two
        heartbeats soon, which show whether it was killed.
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
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_halfClosedThenGone(self) -> None:
        """If it was killed, the connection ends, and nothing is left."""
        wire = self.watch()
        wire.closeWrite()
        self.assertEqual(len(wire.events), 1)
        wire.drop()
        self.assertForgotten(wire)

    def test_halfClosedWhileStarting(self) -> None:
        """A client that closes its side before the reply receives events too."""
        self.backend = PatientBackend(started=False)
        wire = self.watch()
        wire.closeWrite()
        self.backend.starting.callback(None)
        self.toggle(1)
        self.assertEqual(wire.events[-1]["event"], "bound")
        self.assertFalse(wire.closed)

    def assertForgotten(self, wire: Wire) -> None:
        """Nothing is left of a watcher that has gone: nobody tells it anything."""
        self.assertEqual(self.clock.getDelayedCalls(), [])
        written = len(wire.transport.writes)
        self.toggle(4)
        self.clock.advance(60)
        self.assertEqual(len(wire.transport.writes), written)

    def test_goes(self) -> None:
        """A watching client that disconnects leaves nothing behind."""
        wire = self.watch()
        self.toggle(1)
        wire.drop()
        self.assertForgotten(wire)

    def test_goesWhileStarting(self) -> None:
        """Nor does a client that disconnects before the reply."""
        self.backend = PatientBackend(started=False)
        wire = self.watch()
        wire.drop()
        self.backend.starting.callback(None)
        self.assertEqual(wire.received, b"")
        self.assertForgotten(wire)

    def test_daemonStops(self) -> None:
        """
        A daemon that stops sends all events and closes its side; the client has time to
        close its own.
        """
        wire = self.watch()
        self.toggle(3)
        wire.protocol.close()
        self.assertTrue(wire.transport.writeClosed)
        self.assertIsNone(wire.transport.producer)
        self.assertEqual(len(wire.events), 3)
        wire.turn()
        self.clock.advance(LINGER)
        wire.turn()
        self.assertTrue(wire.lost)
        self.assertForgotten(wire)

    def test_daemonStopsHalfClosed(self) -> None:
        """If the client has closed its side already, the connection ends at once."""
        wire = self.watch()
        wire.closeWrite()
        wire.protocol.close()
        wire.turn()
        self.assertTrue(wire.lost)
        self.assertForgotten(wire)

    def test_daemonStopsTwice(self) -> None:
        """A second C{close} has no effect."""
        wire = self.watch()
        wire.protocol.close()
        wire.protocol.close()
        self.assertAllEnds(wire)

    def test_withoutHalfClose(self) -> None:
        """Where one side cannot be closed alone, as with TLS, both are closed."""
        self.connect().drop()
        wire = self.another(transport=TlsTransport())
        wire.send(WATCH)
        self.toggle(1)
        self.assertEqual(len(wire.events), 1)
        wire.protocol.close()
        self.assertFalse(wire.transport.writeClosed)
        wire.turn()
        self.assertTrue(wire.lost)
        self.assertForgotten(wire)

    def test_stopping(self) -> None:
        """A daemon that stops refuses watch commands."""
        wire = self.connect()
        other = self.another()
        self.successResultOf(self.stopped())
        other.send(WATCH)
        self.assertEqual(other.statuses, ["error"])
        self.assertIn("stopping", other.answers[0]["message"])
        wire.drop()
