"""
Tests of L{usbip_server.protocols.web}: C{GET /events}, and requests that wait.
"""

from __future__ import annotations

import json
from typing import Any

from tests.protocols.webcase import ATTACH, Response, WebTestCase, get, post, responses
from tests.support.fixtures import CONGESTION, MOUSE, UNO, PatientBackend, Wire, threeWays
from usbip_server.model.device import DeviceState
from usbip_server.model.options import Limits
from usbip_server.net.halfclose import LINGER
from usbip_server.protocols.watcher import PATIENCE

BOUND, FREE = DeviceState.BOUND, DeviceState.FREE
EVENTS = b"/events"
LEASE = b'{"command":"attach","id":"1-1.4","lease":{"owner":"%s","ttl":600}%s}'


class Events:
    """
    A stream of events, parsed as a browser does it.

    @ivar response: the head.
    @ivar isWhole: whether the stream has ended properly.
    @ivar comments: the comments.
    @ivar events: the events, each with its fields.
    """

    def __init__(self, received: bytes) -> None:
        head, _, body = received.partition(b"\r\n\r\n")
        self.response = Response(head)
        self.isWhole = True
        if self.response.headers.get("transfer-encoding") == "chunked":
            body = self._unchunk(body)
        self.response.body = body
        blocks = body.decode().split("\n\n")
        assert blocks.pop() == "", "the last event is not whole"
        self.comments = [block for block in blocks if block.startswith(":")]
        fields = [
            dict(line.split(": ", 1) for line in b.split("\n")) for b in blocks if b[0] != ":"
        ]
        self.retry = [each["retry"] for each in fields if "retry" in each]
        self.events = [each for each in fields if "retry" not in each]

    @property
    def kinds(self) -> list[str]:
        """The kinds of the events."""
        return [event["event"] for event in self.events]

    @property
    def ids(self) -> list[int]:
        """The numbers of the events."""
        return [int(event["id"]) for event in self.events]

    @property
    def data(self) -> list[dict[str, Any]]:
        """The JSON in them."""
        return [json.loads(event["data"]) for event in self.events]

    def _unchunk(self, body: bytes) -> bytes:
        whole = b""
        while body:
            size, _, body = body.partition(b"\r\n")
            length = int(size, 16)
            whole += body[:length]
            assert body[length : length + 2] == b"\r\n"
            body = body[length + 2 :]
            if length == 0:
                assert body == b""
                return whole
        self.isWhole = False
        return whole


class EventsTestCase(WebTestCase):
    """
    Clients that listen.
    """

    def listen(self, path: bytes = EVENTS, *headers: bytes) -> Wire:
        """A client of a daemon of its own."""
        self.connect().drop()
        return self.alsoListen(path, *headers)

    def alsoListen(self, path: bytes = EVENTS, *headers: bytes) -> Wire:
        """One more, of the same daemon."""
        wire = self.another()
        wire.send(get(b"GET", path, b"1.1", *headers))
        return wire

    def told(self, wire: Wire) -> Events:
        """The events that a client got."""
        return Events(wire.received)

    def toggle(self, times: int) -> None:
        """So many events."""
        for _ in range(times):
            now = self.backend.inventory.get("1-1.4")
            self.become(UNO, state=BOUND if now == UNO else FREE)


class EventsTests(EventsTestCase):
    """
    The stream that a page or C{curl -N} gets.
    """

    def test_stream(self) -> None:
        """
        The headers say that the response is an event stream, must not be cached, and ends with
        the connection. The first event is the reply to C{watch}; each further one has its number
        and the line that C{watch} sends. Data behind the request is ignored.
        """
        for way, segments in threeWays([get(path=EVENTS), post(ATTACH), b"x" * 3000]):
            wire = self.connect()
            wire.send(*segments)
            for _ in range(50):
                wire.send(b"x" * 2**16)
            self.toggle(2)
            told = self.told(wire)
            for name, value in (
                ("content-type", "text/event-stream; charset=utf-8"),
                ("cache-control", "no-cache"),
                ("x-content-type-options", "nosniff"),
                ("connection", "close"),
                ("transfer-encoding", "chunked"),
            ):
                self.assertEqual(told.response.headers[name], value, way)
            self.assertNotIn("content-length", told.response.headers)
            self.assertEqual(told.response.code, 200, way)
            self.assertEqual(told.retry, ["2000"])
            self.assertEqual(told.kinds, ["snapshot", "bound", "unbound"])
            answer, *events = told.data
            self.assertEqual(set(answer), {"status", "seq", "data"})
            self.assertEqual([d["bus_id"] for d in answer["data"]], ["1-1.4", "1-2", "2-10"])
            self.assertEqual(told.ids, [answer["seq"] + n for n in (0, 1, 2)])
            self.assertEqual(
                [(d["event"], d["seq"], d["data"]["bus_id"]) for d in events],
                [("bound", told.ids[1], "1-1.4"), ("unbound", told.ids[2], "1-1.4")],
            )
            self.assertFalse(told.isWhole)
            self.assertEqual(self.backend.calls, [])
            self.assertEqual(wire.transport.producerState, "producing")

    def test_oldHttp(self) -> None:
        """With HTTP 1.0 events are sent without chunks until the connection ends."""
        wire = self.connect()
        wire.send(get(path=EVENTS, version=b"1.0"))
        self.toggle(1)
        told = self.told(wire)
        self.assertNotIn("transfer-encoding", told.response.headers)
        self.assertEqual(told.kinds, ["snapshot", "bound"])

    def test_query(self) -> None:
        """Criteria and detail are given in the query string, which is decoded."""
        for query, state in (
            (b"?id=1-1.4&detail=true", "bound"),
            (b"?desc=ARDUINO", None),
            (b"?id=2341%3A*&desc=Arduino+SA", None),
        ):
            wire = self.listen(EVENTS + query)
            self.become(MOUSE, state=BOUND)
            self.become(UNO, state=BOUND)
            told = self.told(wire)
            self.assertEqual(told.kinds, ["snapshot", "bound"], query)
            self.assertEqual([d["bus_id"] for d in told.data[0]["data"]], ["1-1.4"], query)
            self.assertEqual(told.data[1]["data"].get("state"), state, query)
            self.become(MOUSE)
            self.become(UNO)

    def test_refused(self) -> None:
        """
        An invalid query string (a token in it too: URLs are logged), an unknown token, another
        method, a foreign web page, and a watch command sent with POST get a status code and the
        reason as JSON, and no events.
        """
        foreign = b"Origin: http://evil.example"
        for request, code, reason in (
            (get(path=EVENTS + b"?colour=red"), 400, "colour"),
            (get(path=EVENTS + b"?since=x"), 400, "since"),
            (get(path=EVENTS + b"?id="), 400, "`id` is empty"),
            (get(path=EVENTS + b"?id=1&id=2"), 400, "twice"),
            (get(path=EVENTS + b"?id=%ff"), 400, "UTF-8"),
            (get(path=EVENTS + b"?token=x"), 400, "Authorization: Bearer"),
            (get(b"GET", EVENTS, b"1.1", b"Authorization: Bearer x"), 403, "is not known"),
            (post(b"{}", path=EVENTS), 405, "GET"),
            (get(b"PUT", EVENTS), 405, "GET"),
            (b"GET /events HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403, "evil.example"),
            (get(b"GET", EVENTS, b"1.1", foreign), 403, "evil.example"),
            (get(b"GET", EVENTS, b"1.1", b"Origin: null"), 403, "null"),
            (post(b'{"command":"watch"}'), 400, "GET /events"),
        ):
            response = self.ask(request)
            self.assertEqual((response.code, response.json["status"]), (code, "error"), request)
            self.assertIn(reason, response.json["message"])
            if code == 405:
                self.assertEqual(response.headers["allow"], "GET")
            self.toggle(1)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_ownPage(self) -> None:
        """A page of this server may read events."""
        for target in (EVENTS, b"http://localhost" + EVENTS):
            wire = self.listen(target, b"Origin: http://localhost")
            self.assertEqual(self.told(wire).kinds, ["snapshot"])

    def test_starting(self) -> None:
        """
        While the daemon starts the snapshot waits for it, and is taken then; if it takes too long,
        the client gets an error.
        """
        for inTime in (True, False):
            self.backend = PatientBackend(started=False)
            wire = self.connect()
            wire.send(get(path=EVENTS))
            self.toggle(1)
            self.assertEqual(wire.received, b"")
            if inTime:
                self.backend.starting.callback(None)
                self.toggle(1)
                told = self.told(wire)
                self.assertEqual(told.kinds, ["snapshot", "unbound"])
                self.assertEqual(told.ids[1], told.ids[0] + 1)
            else:
                self.clock.advance(2)
                [response] = responses(wire.received)
                self.assertEqual((response.code, response.json["status"]), (400, "error"))
                self.assertIn("still starting", response.json["message"])


class AgainTests(EventsTestCase):
    """
    A client that reconnects.
    """

    def test_lastEventId(self) -> None:
        """C{Last-Event-ID} continues after that event, without a snapshot."""
        first = self.listen()
        self.toggle(4)
        seen = self.told(first).ids
        for missed in range(5):
            last = seen[-1] - missed
            for wire in (
                self.alsoListen(EVENTS, b"Last-Event-ID: %d" % last),
                self.alsoListen(EVENTS + b"?since=%d" % last),
                self.alsoListen(EVENTS + b"?since=%d" % seen[0], b"Last-Event-ID: %d" % last),
            ):
                told = self.told(wire)
                self.assertEqual(told.ids, seen[len(seen) - missed :])
                self.assertEqual(told.events, self.told(first).events[len(seen) - missed :])
                self.assertEqual(told.retry, ["2000"])
        self.toggle(1)
        self.assertEqual(self.told(wire).events[-1], self.told(first).events[-1])

    def test_impossible(self) -> None:
        """
        If that event is not known any more, the stream begins with a snapshot: after an
        error a browser would not reconnect.
        """
        self.limits = Limits(history=2)
        first = self.listen()
        self.toggle(5)
        seen = self.told(first).ids
        for last in (b"0", b"%d" % seen[1], b"%d" % (seen[-1] + 1), b"x", b"9" * 40, b""):
            wire = self.alsoListen(EVENTS, b"Last-Event-ID: " + last)
            told = self.told(wire)
            self.assertEqual((told.kinds, told.ids), (["snapshot"], [seen[-1]]), last)
            wire.drop()
        wire = self.alsoListen(EVENTS + b"?since=17")
        self.assertEqual(self.told(wire).kinds, ["snapshot"])

    def test_criteria(self) -> None:
        """Criteria apply to the missed events too."""
        seen = self.told(self.listen()).ids[0]
        self.become(UNO, state=BOUND)
        self.become(MOUSE, state=BOUND)
        told = self.told(self.alsoListen(EVENTS + b"?id=2-10", b"Last-Event-ID: %d" % seen))
        self.assertEqual(told.ids, [seen + 2])


class LastingTests(EventsTestCase):
    """
    How long events are sent.
    """

    def assertForgotten(self, wire: Wire) -> None:
        """Nothing is left of a client."""
        self.assertEqual(self.clock.getDelayedCalls(), [])
        written = len(wire.transport.writes)
        self.toggle(3)
        self.clock.advance(60)
        self.assertEqual(len(wire.transport.writes), written)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_heartbeats(self) -> None:
        """Heartbeats are comments, and the client can listen for any time."""
        wire = self.listen()
        self.clock.pump([15] * 20)
        told = self.told(wire)
        self.assertEqual(told.comments, [": heartbeat"] * 20)
        self.assertEqual(told.kinds, ["snapshot"])
        self.assertFalse(wire.closed)

    def test_goes(self) -> None:
        """
        A client that disconnects, or closes its side, which no browser does while it listens,
        leaves nothing behind, also before the response.
        """
        for started in (True, False):
            for end in (Wire.drop, Wire.closeWrite):
                self.backend = PatientBackend(started=started)
                wire = self.listen()
                end(wire)
                if not started:
                    self.backend.starting.callback(None)
                    wire.turn()
                self.assertTrue(wire.lost)
                self.assertForgotten(wire)

    def test_daemonStops(self) -> None:
        """
        A daemon that stops sends all events and ends the response properly, and then the
        connection.
        """
        wire = self.listen()
        self.toggle(3)
        wire.protocol.close()
        wire.protocol.close()
        told = self.told(wire)
        self.assertTrue(told.isWhole)
        self.assertEqual(len(told.events), 4)
        self.assertTrue(wire.transport.writeClosed)
        wire.turn()
        self.clock.advance(LINGER)
        wire.turn()
        self.assertTrue(wire.lost)
        self.assertForgotten(wire)

    def test_doesNotRead(self) -> None:
        """
        A client that does not read is disconnected, and leaves nothing behind; others receive all
        events.
        """
        self.limits = Limits(watchBytes=10_000)
        slow = self.listen()
        other = self.alsoListen()
        slow.transport.reading = False
        many = 2 * CONGESTION // 200
        self.toggle(many)
        self.clock.advance(PATIENCE)
        slow.turn()
        self.assertTrue(slow.transport.aborted)
        self.assertLess(len(slow.received), CONGESTION + 2000)
        self.assertEqual(len(self.told(other).events), many + 1)
        other.drop()
        self.assertForgotten(slow)


class WaitTests(EventsTestCase):
    """
    A POST that waits until the device is available.
    """

    def test_wait(self) -> None:
        """
        An attach with C{wait} is answered when the device is available, with nothing but the
        reply; a client that disconnects or closes its side while it waits leaves the queue.
        """
        self.connect().send(post(LEASE % (b"ci-1", b"")))
        wires = []
        for owner in (b"ci-2", b"ci-3", b"ci-4"):
            wires.append(self.another())
            wires[-1].send(post(LEASE % (owner, b',"wait":300')))
        wires[0].drop()
        wires[1].closeWrite()
        self.assertTrue(wires[1].lost)
        self.clock.pump([15] * 10)
        self.assertEqual([wire.received for wire in wires], [b""] * 3)
        self.another().send(post(b'{"command":"detach","id":"1-1.4","owner":"ci-1"}'))
        [response] = responses(wires[2].received)
        self.assertEqual((response.code, response.json["status"]), (200, "success"))
        asking = self.another()
        asking.send(post(b'{"command":"find","id":"1-1.4","detail":true}'))
        [response] = responses(asking.received)
        self.assertEqual(response.json["data"]["lease"]["owner"], "ci-4")
        self.assertEqual([wire.received for wire in wires[:2]], [b"", b""])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_connection(self) -> None:
        """A lease with the ttl C{connection} is refused over HTTP."""
        request = b'{"command":"attach","id":"2-10","lease":{"owner":"x","ttl":"connection"}}'
        response = self.ask(post(request))
        self.assertEqual((response.code, response.json["status"]), (400, "error"))
        self.assertIn("HTTP", response.json["message"])
        self.assertEqual(self.backend.calls, [])
