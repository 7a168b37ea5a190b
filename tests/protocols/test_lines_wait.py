"""
Tests of L{usbip_server.protocols.lines}: waiting for a device, and having it for as long as
the connection lasts.
"""

from __future__ import annotations

import json
from typing import Any

from tests.protocols.linescase import FIND, KEEP, LIST, LinesTestCase
from tests.support.fixtures import BOB, UNO, PatientBackend, Wire, threeWays
from usbip_server.model.device import DeviceState, Holder
from usbip_server.model.errors import OperationFailed
from usbip_server.net.liveness import PROBE_SECONDS

BOUND, IN_USE = DeviceState.BOUND, DeviceState.IN_USE


def attach(owner: str, ttl: float | str = 600, **more: object) -> bytes:
    """A request to have a device for oneself."""
    lease = {"owner": owner, "ttl": ttl}
    return json.dumps({"command": "attach", "id": "1-1.4", "lease": lease, **more}).encode()


DETACH = b'{"command":"detach","id":"1-1.4","owner":"ci-1","keep_alive":true}'
WAIT = attach("ci-2", wait=600)


class WaitTestCase(LinesTestCase):
    """
    A device that somebody else has leased.
    """

    def leased(self) -> Wire:
        """The connection of who has it: C{ci-1}."""
        wire = self.connect()
        wire.send(attach("ci-1", keep_alive=True))
        self.assertEqual(wire.statuses, ["success"])
        return wire

    def waiting(self, request: bytes = WAIT) -> Wire:
        """Another connection, on which somebody waits for it."""
        wire = self.another(BOB)
        wire.send(request)
        return wire

    def owner(self) -> object:
        """Who has leased the device now."""
        wire = self.another()
        wire.send(b'{"command":"find","id":"1-1.4","detail":true}')
        lease = wire.data["lease"]
        wire.closeWrite()
        return lease and lease["owner"]

    def places(self, wire: Wire) -> list[Any]:
        """The places in the queue that a client was told."""
        return [event["place"] for event in wire.events if event["event"] == "queued"]


class WaitTests(WaitTestCase):
    """
    A request that waits for its turn.
    """

    def test_queued(self) -> None:
        """
        A waiting client receives its place in the queue and the reason, and later the
        reply; then the connection closes as usual.
        """
        holder = self.leased()
        for way, segments in threeWays([WAIT]):
            wire = self.another(BOB)
            wire.send(*segments)
            [queued] = wire.answers
            self.assertEqual(set(queued), {"event", "time", "data", "place", "message"}, way)
            self.assertEqual((queued["event"], queued["place"]), ("queued", 1), way)
            self.assertEqual(queued["data"]["bus_id"], "1-1.4")
            self.assertIn("leased by ci-1 (192.0.2.7)", queued["message"])
            wire.drop()
        wire = self.waiting()
        self.clock.advance(10)
        self.assertEqual(len(wire.answers), 1)
        holder.send(DETACH)
        self.assertEqual(wire.answers[-1]["status"], "success")
        self.assertEqual(self.owner(), "ci-2")
        self.assertTrue(wire.closed)
        wire.closeWrite()
        self.assertTrue(wire.lost)
        self.assertEqual(self.owner(), "ci-2")

    def test_places(self) -> None:
        """A client receives its new place each time the queue moves."""
        holder = self.leased()
        wires = [self.waiting(attach(f"ci-{number}", wait=600)) for number in (2, 3, 4)]
        self.assertEqual([self.places(wire) for wire in wires], [[1], [2], [3]])
        wires[1].drop()
        self.assertEqual([self.places(wire) for wire in wires], [[1], [2], [3, 2]])
        holder.send(DETACH)
        self.assertEqual(wires[0].answers[-1]["status"], "success")
        self.assertEqual(self.places(wires[2]), [3, 2, 1])

    def test_heartbeats(self) -> None:
        """
        While it waits the client receives heartbeats, and only the C{wait} of its request
        limits the time.
        """
        self.leased()
        wire = self.waiting(attach("ci-2", wait=300))
        self.clock.pump([15] * 19)
        beats = wire.answers[1:]
        self.assertEqual(len(beats), 19)
        for beat in beats:
            self.assertEqual(beat["event"], "heartbeat")
        self.assertFalse(wire.closed)
        self.clock.advance(15)
        self.assertEqual(wire.answers[-1]["status"], "failure")
        self.assertIn("leased by ci-1", wire.answers[-1]["message"])
        self.assertTrue(wire.closed)

    def test_vanishes(self) -> None:
        """A client that disconnects while it waits leaves the queue, and nothing else behind."""
        holder = self.leased()
        before = len(self.clock.getDelayedCalls())
        wire = self.waiting()
        wire.drop()
        self.assertEqual(len(self.clock.getDelayedCalls()), before)
        written = len(wire.transport.writes)
        holder.send(DETACH)
        self.clock.advance(60)
        self.assertIsNone(self.owner())
        self.assertEqual(len(wire.transport.writes), written)

    def test_read(self) -> None:
        """
        The connection is read while the client waits, to detect its end; further requests
        are kept and answered later.
        """
        holder = self.leased()
        for way, segments in threeWays([attach("ci-2", wait=600, keep_alive=True), FIND, KEEP]):
            wire = self.another(BOB)
            wire.send(*segments)
            self.assertEqual(len(wire.answers), 1, way)
            self.assertEqual(wire.transport.producerState, "producing", way)
            holder.send(DETACH)
            kinds = [type(answer["data"]) for answer in wire.answers]
            self.assertEqual(kinds, [dict, dict, dict, list], way)
            self.assertFalse(wire.closed)
            wire.send(DETACH.replace(b"ci-1", b"ci-2"))
            holder.send(attach("ci-1", keep_alive=True))
            wire.drop()

    def test_readNoEnd(self) -> None:
        """Only a bounded amount is kept: then the connection is not read any more."""
        holder = self.leased()
        wire = self.waiting(attach("ci-2", wait=600, keep_alive=True))
        sent = 0
        while wire.transport.producerState == "producing":
            wire.send((KEEP + b"\n") * 100)
            sent += 100
            self.assertLess(sent * len(KEEP), 2**18)
        holder.send(DETACH)
        wire.turn()
        self.assertEqual(len(wire.answers), 2 + sent)
        self.assertEqual(wire.transport.producerState, "producing")

    def test_halfClose(self) -> None:
        """
        A client that has closed its side may go on waiting. It gets a line at once and
        another one later, which show whether it was killed.
        """
        holder = self.leased()
        for way, segments in threeWays([WAIT]):
            wire = self.another(BOB)
            wire.send(*segments)
            wire.closeWrite()
            self.assertEqual([e["event"] for e in wire.events], ["queued", "heartbeat"], way)
            self.clock.advance(PROBE_SECONDS)
            self.assertEqual(len(wire.events), 3, way)
            self.clock.advance(PROBE_SECONDS)
            self.assertEqual(len(wire.events), 3, way)
            self.assertFalse(wire.closed)
            holder.send(DETACH)
            self.assertEqual(wire.answers[-1]["status"], "success", way)
            self.assertTrue(wire.ended, way)
            holder.send(attach("ci-1", keep_alive=True, force=True))

    def test_halfCloseThenGone(self) -> None:
        """If it was killed, it leaves the queue."""
        self.leased()
        before = len(self.clock.getDelayedCalls())
        wire = self.waiting()
        wire.closeWrite()
        wire.drop()
        self.assertEqual(len(self.clock.getDelayedCalls()), before)

    def test_halfCloseThenTurn(self) -> None:
        """If it gets the device before that, it receives the reply."""
        holder = self.leased()
        wire = self.waiting()
        wire.closeWrite()
        holder.send(DETACH)
        wire.turn()
        self.assertEqual(len(wire.answers), 3)
        self.clock.advance(PROBE_SECONDS)
        self.assertEqual(len(wire.answers), 3)

    def test_congested(self) -> None:
        """A client that did not read for a while and reads again goes on waiting."""
        self.leased()
        wire = self.waiting(attach("ci-2", wait=600, keep_alive=True))
        wire.protocol.pauseProducing()
        self.clock.advance(20)
        wire.protocol.resumeProducing()
        self.clock.advance(60)
        self.assertFalse(wire.closed)
        self.assertEqual(wire.transport.producerState, "producing")
        self.another().send(DETACH)
        self.assertEqual(wire.answers[-1]["status"], "success")

    def test_notAtAll(self) -> None:
        """
        If the device is available, the reply comes at once, and the usual time limit
        applies to the next request.
        """
        wire = self.connect()
        wire.send(attach("ci-1", wait=600, keep_alive=True))
        self.assertEqual(wire.statuses, ["success"])
        self.clock.advance(29.9)
        self.assertFalse(wire.closed)
        self.clock.advance(0.2)
        self.assertTrue(wire.closed)

    def test_afterwards(self) -> None:
        """It applies too after a wait."""
        self.leased()
        wire = self.waiting(attach("ci-2", wait=600, keep_alive=True))
        self.clock.advance(100)
        self.another().send(DETACH)
        self.clock.advance(29.9)
        self.assertFalse(wire.closed)
        self.clock.advance(0.2)
        self.assertTrue(wire.closed)

    def test_daemonStops(self) -> None:
        """A daemon that stops answers waiting clients, and closes the connection."""
        self.leased()
        wire = self.waiting()
        self.successResultOf(self.stopped())
        wire.protocol.close()
        self.assertEqual(wire.answers[-1]["status"], "error")
        self.assertIn("stopping", wire.answers[-1]["message"])
        self.assertTrue(wire.closed)


class StartTests(WaitTestCase):
    """
    Whoever comes while the daemon starts, and then has to wait for a device.
    """

    def startWaiting(self) -> Wire:
        """One who wants it when it is in use."""
        self.backend = PatientBackend(started=False)
        self.become(UNO, state=IN_USE, holder=Holder(address="192.0.2.9"))
        wire = self.connect()
        wire.send(WAIT)
        self.assertEqual(wire.received, b"")
        return wire

    def test_halfClose(self) -> None:
        """The end of a client is detected even if it has closed its side before it had to wait."""
        wire = self.startWaiting()
        self.backend.starting.callback(None)
        self.assertEqual(self.places(wire), [1])
        self.assertEqual(wire.transport.producerState, "producing")
        wire.closeWrite()
        self.assertEqual(wire.events[-1]["event"], "heartbeat")
        wire.drop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_goneBefore(self) -> None:
        """A client that has disconnected before it is not put in the queue."""
        wire = self.startWaiting()
        wire.drop()
        self.backend.starting.callback(None)
        self.assertEqual(wire.received, b"")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_goneBeforeLease(self) -> None:
        """Nor does it get a lease with the ttl C{connection}."""
        self.backend = PatientBackend(started=False)
        wire = self.connect()
        wire.send(attach("ci-1", "connection"))
        wire.drop()
        self.backend.starting.callback(None)
        self.assertEqual(self.backend.calls, [])
        self.assertIsNone(self.owner())


class HeldTests(WaitTestCase):
    """
    A lease that lasts as long as the connection.
    """

    def held(self, keepAlive: bool = True) -> Wire:
        """A connection that holds the device."""
        wire = self.connect()
        wire.send(attach("ci-1", "connection", keep_alive=keepAlive))
        self.assertEqual(wire.statuses, ["success"])
        self.assertEqual(self.owner(), "ci-1")
        return wire

    def test_staysOpen(self) -> None:
        """
        A connection that holds a lease stays open without C{keep_alive}, and needs no
        traffic.
        """
        for keepAlive in (True, False):
            wire = self.held(keepAlive)
            self.clock.pump([60] * 60)
            self.assertFalse(wire.closed)
            self.assertEqual(self.owner(), "ci-1")
            wire.send(LIST)
            self.clock.pump([60] * 60)
            self.assertFalse(wire.closed)
            self.assertEqual(len(wire.answers), 2)
            wire.drop()

    def test_staysOpenSlow(self) -> None:
        """So it does if the bind takes time."""
        wire = self.patiently()
        wire.send(attach("ci-1", "connection"))
        self.backend.calls[0].succeed()
        self.assertEqual(wire.statuses, ["success"])
        self.clock.pump([60] * 10)
        self.assertFalse(wire.closed)
        self.assertEqual(wire.transport.producerState, "producing")

    def test_halfRequest(self) -> None:
        """Half a request does not time out on it."""
        wire = self.held()
        wire.send(KEEP[:5])
        self.clock.pump([60] * 10)
        self.assertFalse(wire.closed)
        wire.send(KEEP[5:])
        self.assertEqual(wire.statuses, ["success"] * 2)

    def test_lost(self) -> None:
        """The lease ends with the connection."""
        wire = self.held()
        wire.drop()
        self.assertIsNone(self.owner())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_end(self) -> None:
        """The lease ends too when the client closes its side; then the daemon closes its own."""
        for keepAlive in (True, False):
            wire = self.held(keepAlive)
            wire.closeWrite()
            self.assertTrue(wire.lost)
            self.assertIsNone(self.owner())
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_next(self) -> None:
        """The next client in the queue gets the device at once then."""
        wire = self.held()
        waiting = self.waiting()
        self.assertIn("while its connection lasts", waiting.events[0]["message"])
        wire.closeWrite()
        self.assertEqual(waiting.answers[-1]["status"], "success")
        self.assertEqual(self.owner(), "ci-2")

    def test_endWhileBinding(self) -> None:
        """A client that disconnects before its device is bound gets no lease."""
        wire = self.patiently()
        wire.send(attach("ci-1", "connection"))
        wire.drop()
        self.backend.calls[0].succeed()
        self.assertIsNone(self.owner())
        self.assertEqual([call.verb for call in self.backend.calls], ["bind", "unbind"])

    def test_waited(self) -> None:
        """
        A client that has closed its side while it waited gets a lease that ends with the
        reply.
        """
        holder = self.leased()
        wire = self.waiting(attach("ci-2", "connection", wait=600))
        wire.closeWrite()
        holder.send(DETACH)
        wire.turn()
        self.assertEqual(wire.answers[-1]["status"], "success")
        self.assertTrue(wire.lost)
        self.assertIsNone(self.owner())

    def test_refused(self) -> None:
        """A client that is refused holds nothing: its connection closes or times out as usual."""
        self.leased()
        wire = self.waiting(attach("ci-2", "connection"))
        self.assertEqual(wire.statuses, ["failure"])
        self.assertTrue(wire.closed)

    def test_failed(self) -> None:
        """Nor does a client whose device could not be bound."""
        for keepAlive in (True, False):
            wire = self.patiently()
            wire.send(attach("ci-1", "connection", keep_alive=keepAlive))
            self.backend.calls[0].fail(OperationFailed(UNO, "no"))
            self.assertEqual(wire.statuses, ["failure"])
            self.assertIsNone(self.owner())
            self.clock.advance(30.1)
            self.assertTrue(wire.closed)

    def test_daemonStops(self) -> None:
        """A daemon that stops closes such a connection too."""
        wire = self.held()
        self.successResultOf(self.stopped())
        wire.protocol.close()
        self.assertTrue(wire.closed)
        self.assertAllEnds(wire)
