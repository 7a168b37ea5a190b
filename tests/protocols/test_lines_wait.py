"""
Tests of L{usbip_server.protocols.lines}: a reply that comes when a device is available, and a lease
that lasts as long as the connection. The queue itself is shown in C{tests/server/test_queue.py}.
"""

from __future__ import annotations

import json

from tests.protocols.linescase import FIND, KEEP, LIST, LinesTestCase
from tests.support.fixtures import BOB, UNO, PatientBackend, Wire, threeWays
from usbip_server.model.device import DeviceState, Holder
from usbip_server.model.errors import OperationFailed
from usbip_server.net.liveness import PROBE_SECONDS


def attach(owner: str, ttl: float | str = 600, **more: object) -> bytes:
    """A request for a lease."""
    lease = {"owner": owner, "ttl": ttl}
    return json.dumps({"command": "attach", "id": "1-1.4", "lease": lease, **more}).encode()


DETACH = b'{"command":"detach","id":"1-1.4","owner":"ci-1","keep_alive":true}'
WAIT = attach("ci-2", wait=600)
WAIT_AND_KEEP = attach("ci-2", wait=600, keep_alive=True)


class WaitTestCase(LinesTestCase):
    """
    A device that another client has leased.
    """

    def leased(self) -> Wire:
        """The connection of the owner C{ci-1}."""
        wire = self.connect()
        wire.send(attach("ci-1", keep_alive=True))
        self.assertEqual(wire.statuses, ["success"])
        return wire

    def waiting(self, request: bytes = WAIT) -> Wire:
        """Another connection, whose client waits for the device."""
        wire = self.another(BOB)
        wire.send(request)
        return wire

    def owner(self) -> object:
        """The owner of the lease now."""
        wire = self.another()
        wire.send(b'{"command":"find","id":"1-1.4","detail":true}')
        lease = wire.data["lease"]
        wire.closeWrite()
        return lease and lease["owner"]

    def assertTimesOut(self, wire: Wire) -> None:
        """The usual time limit applies to the next request."""
        self.clock.advance(29.9)
        self.assertFalse(wire.closed)
        self.clock.advance(0.2)
        self.assertTrue(wire.closed)


class WaitTests(WaitTestCase):
    """
    A request that waits.
    """

    def test_queued(self) -> None:
        """
        A waiting client receives its place in the queue and the reason, then heartbeats, and
        later the reply; then the connection closes as usual. Only the C{wait} of its request
        limits the time.
        """
        self.leased()
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
        self.clock.pump([15] * 19)
        self.assertEqual([event["event"] for event in wire.events], ["queued"] + ["heartbeat"] * 19)
        self.assertFalse(wire.closed)
        self.another().send(DETACH)
        self.assertEqual(wire.answers[-1]["status"], "success")
        self.assertTrue(wire.closed)
        wire.closeWrite()
        self.assertTrue(wire.lost)
        self.assertEqual(self.owner(), "ci-2")

    def test_vanishes(self) -> None:
        """
        A client that disconnects while it waits, also after it has closed its side, leaves the
        queue, and nothing else behind.
        """
        holder = self.leased()
        before = len(self.clock.getDelayedCalls())
        for halfClosed in (False, True):
            wire = self.waiting()
            if halfClosed:
                wire.closeWrite()
            wire.drop()
            self.clock.advance(2)
            self.assertEqual(len(self.clock.getDelayedCalls()), before)
        written = len(wire.transport.writes)
        holder.send(DETACH)
        self.clock.advance(60)
        self.assertIsNone(self.owner())
        self.assertEqual(len(wire.transport.writes), written)

    def test_read(self) -> None:
        """
        The connection is read while the client waits, to detect its end; further requests are
        kept and answered later.
        """
        holder = self.leased()
        for way, segments in threeWays([WAIT_AND_KEEP, FIND, KEEP]):
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
        wire = self.waiting(WAIT_AND_KEEP)
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
        A client that has closed its side may go on waiting. It gets a line at once and another
        one later, which show whether it was killed; none after the reply.
        """
        holder = self.leased()
        for seconds, lines in ((0, 2), (PROBE_SECONDS, 3), (2 * PROBE_SECONDS, 3)):
            for way, segments in threeWays([WAIT]):
                wire = self.another(BOB)
                wire.send(*segments)
                wire.closeWrite()
                self.clock.advance(seconds)
                told = [event["event"] for event in wire.events]
                self.assertEqual(told, ["queued", "heartbeat", "heartbeat"][:lines], way)
                self.assertFalse(wire.closed)
                holder.send(DETACH)
                wire.turn()
                self.clock.advance(PROBE_SECONDS)
                self.assertEqual(len(wire.answers), lines + 1)
                self.assertEqual(wire.answers[-1]["status"], "success", way)
                self.assertTrue(wire.ended, way)
                holder.send(attach("ci-1", keep_alive=True, force=True))

    def test_congested(self) -> None:
        """A client that did not read for a while and reads again goes on waiting."""
        self.leased()
        wire = self.waiting(WAIT_AND_KEEP)
        wire.protocol.pauseProducing()
        self.clock.advance(20)
        wire.protocol.resumeProducing()
        self.clock.advance(60)
        self.assertFalse(wire.closed)
        self.assertEqual(wire.transport.producerState, "producing")
        self.another().send(DETACH)
        self.assertEqual(wire.answers[-1]["status"], "success")

    def test_timeOutAfterwards(self) -> None:
        """The usual time limit applies after a wait, and if there was nothing to wait for."""
        wire = self.connect()
        wire.send(attach("ci-1", wait=600, keep_alive=True))
        self.assertEqual(wire.statuses, ["success"])
        self.assertTimesOut(wire)
        waiting = self.waiting(WAIT_AND_KEEP)
        self.clock.advance(100)
        self.another().send(DETACH)
        self.assertTimesOut(waiting)

    def test_daemonStops(self) -> None:
        """A daemon that stops answers waiting clients, and closes the connection."""
        self.leased()
        wire = self.waiting()
        self.successResultOf(self.stopped())
        wire.protocol.close()
        self.assertEqual(wire.answers[-1]["status"], "error")
        self.assertIn("stopping", wire.answers[-1]["message"])
        self.assertTrue(wire.closed)

    def test_starting(self) -> None:
        """
        The end of a client is detected if it waits for the daemon's start first: before the
        start, and after it has been put in the queue.
        """
        for request, isQueued in ((WAIT, True), (WAIT, False), (attach("x", "connection"), False)):
            self.backend = PatientBackend(started=False)
            holder = Holder(address="192.0.2.9")
            self.become(UNO, state=DeviceState.IN_USE, holder=holder)
            wire = self.connect()
            wire.send(request)
            if not isQueued:
                wire.drop()
            self.assertEqual(wire.received, b"")
            self.backend.starting.callback(None)
            if isQueued:
                self.assertEqual([event["place"] for event in wire.events], [1])
                self.assertEqual(wire.transport.producerState, "producing")
                wire.closeWrite()
                self.assertEqual(wire.events[-1]["event"], "heartbeat")
                wire.drop()
            else:
                self.assertEqual(wire.received, b"")
            self.assertEqual(self.backend.calls, [])
            self.assertIsNone(self.owner())
            self.clock.advance(2)
            self.assertEqual(self.clock.getDelayedCalls(), [])


class HeldTests(WaitTestCase):
    """
    A lease that lasts as long as the connection.
    """

    def held(self, keepAlive: bool = True) -> Wire:
        """A connection that holds the lease."""
        wire = self.connect()
        wire.send(attach("ci-1", "connection", keep_alive=keepAlive))
        self.assertEqual(wire.statuses, ["success"])
        self.assertEqual(self.owner(), "ci-1")
        return wire

    def test_staysOpen(self) -> None:
        """
        A connection that holds a lease stays open without C{keep_alive}, and needs no traffic;
        half a request does not time out on it.
        """
        for keepAlive in (True, False):
            wire = self.held(keepAlive)
            for part in (LIST, KEEP[:5], KEEP[5:]):
                self.clock.pump([60] * 60)
                self.assertFalse(wire.closed)
                self.assertEqual(self.owner(), "ci-1")
                wire.send(part)
            self.assertEqual(wire.statuses, ["success"] * 3)
            wire.drop()
        wire = self.patiently()
        wire.send(attach("ci-1", "connection"))
        self.backend.calls[0].succeed()
        self.clock.pump([60] * 10)
        self.assertFalse(wire.closed, "also if the bind takes time")
        self.assertEqual(wire.transport.producerState, "producing")

    def test_end(self) -> None:
        """
        The lease ends with the connection, and when the client closes its side: then the daemon
        closes its own, and the next client in the queue gets the device at once.
        """
        for keepAlive in (True, False):
            for end in (Wire.drop, Wire.closeWrite):
                wire = self.held(keepAlive)
                end(wire)
                self.assertTrue(wire.lost)
                self.assertIsNone(self.owner())
                self.assertEqual(self.clock.getDelayedCalls(), [])
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
        A client that has closed its side while it waited gets a lease that ends with the reply.
        """
        holder = self.leased()
        wire = self.waiting(attach("ci-2", "connection", wait=600))
        wire.closeWrite()
        holder.send(DETACH)
        wire.turn()
        self.assertEqual(wire.answers[-1]["status"], "success")
        self.assertTrue(wire.lost)
        self.assertIsNone(self.owner())

    def test_failed(self) -> None:
        """
        A client that is refused, or whose device could not be bound, holds nothing: its connection
        closes or times out as usual.
        """
        self.leased()
        wire = self.waiting(attach("ci-2", "connection"))
        self.assertEqual(wire.statuses, ["failure"])
        self.assertTrue(wire.closed)
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
