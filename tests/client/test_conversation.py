"""
Tests of L{usbip_server.client.conversation}, with a server in memory.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import MemoryTransport, Wire, asked, threeWays
from tests.support.network import Network
from usbip_server.client.conversation import SILENCE, Conversation, askToTheEnd
from usbip_server.client.jsonclient import SPEAKS_TLS
from usbip_server.client.servers import Server
from usbip_server.model.errors import Unreachable
from usbip_server.model.replies import (
    LONGEST_EVENT,
    LONGEST_LINE,
    Code,
    ReceivedNotice,
    ReceivedReply,
    Refused,
    Reply,
    Status,
)
from usbip_server.protocols.interfaces import Response

RASPI = Server(name="raspi", host="192.0.2.1", port=5056)

LIST = {"command": "list"}
DONE = b'{"status":"success","data":[]}\n'
BEGUN = b'{"status":"success","data":[],"seq":17}\n'


class AskingTestCase(SynchronousTestCase):
    """
    A conversation with a server whose lines a test writes.
    """

    server = RASPI

    def setUp(self) -> None:
        self.clock = Clock()
        self.conversation = Conversation(self.server, self.clock)
        self.wire = Wire(self.conversation, MemoryTransport())
        self.told: list[ReceivedNotice] = []
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))
        self.addCleanup(self.end)

    def end(self) -> None:
        """Close the connection at the end of the test."""
        if not self.wire.lost:
            self.conversation.close()
            self.wire.turn()

    def ask(self, request: dict[str, Any] = LIST, seconds: float = 3) -> Deferred[ReceivedReply]:
        """Begin a request."""
        return asked(self.conversation.ask(request, seconds, self.told.append))

    def answered(self) -> Deferred[ReceivedReply]:
        """A request, and its reply."""
        asking = self.ask()
        self.wire.send(DONE)
        return asking

    def said(self) -> list[dict[str, Any]]:
        """The requests that the server has received."""
        return [json.loads(line) for line in self.wire.received.splitlines()]

    def unreachable(self, asking: Deferred[ReceivedReply]) -> str:
        """A request fails: the reason, without the server's name."""
        error = self.failureResultOf(asking, Unreachable).value
        name, _, reason = str(error).partition(": ")
        self.assertEqual(name, "raspi (192.0.2.1:5056)")
        return reason


class AskingTests(AskingTestCase):
    """
    Replies, and events before them.
    """

    def test_reply(self) -> None:
        """A reply is decoded, however it is split, with the events around it in order; the
        connection stays open."""
        lines = [b'{"event":"queued","place":1}\n', BEGUN, b'{"event":"added"}\n']
        for _, segments in threeWays(lines):
            self.told.clear()
            asking = self.ask()
            self.wire.send(*segments)
            answer = self.successResultOf(asking)
            self.assertEqual(answer, ReceivedReply(status=Status.SUCCESS, data=[], seq=17))
            self.assertEqual([notice["event"] for notice in self.told], ["queued", "added"])
        self.assertEqual(self.said(), 3 * [{"command": "list", "keep_alive": True}])
        self.assertFalse(self.wire.ended)

    def test_failure(self) -> None:
        """A failure is a reply, with its message."""
        for status in Status:
            asking = self.ask()
            text = {"status": status.value, "message": "why", "data": None, "later": 1}
            self.wire.send(json.dumps(text).encode() + b"\n")
            answer = self.successResultOf(asking)
            self.assertEqual((answer.status, answer.message), (status, "why"))

    def test_deadline(self) -> None:
        """A reply has its deadline, plus C{wait}; events do not extend it."""
        asking = self.ask({"command": "attach", "wait": 60}, 2.97)
        for _ in range(62):
            self.clock.advance(1)
            self.wire.send(b'{"event":"queued"}\n')
        self.assertNoResult(asking)
        self.clock.advance(1)
        self.wire.turn()
        self.assertEqual(self.unreachable(asking), "no answer within 63 s")
        self.assertTrue(self.wire.transport.aborted)

    def test_requestAfterTheEnd(self) -> None:
        """A request on a lost connection fails with the reason for which that was lost."""
        self.clock.advance(1)
        first = self.ask()
        self.clock.advance(3)
        self.wire.turn()
        self.assertEqual(self.unreachable(first), self.unreachable(self.ask()))
        lost = self.successResultOf(self.conversation.lost)
        self.assertIn("no answer within 3 s", str(lost))

    def test_cancelled(self) -> None:
        """A cancelled request leaves no delayed call."""
        asking = self.ask()
        asking.addErrback(lambda failure: None)
        asking.cancel()
        self.successResultOf(asking)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.wire.send(DONE)  # to nobody
        self.successResultOf(self.answered())


class AgainTests(SynchronousTestCase):
    """
    Requests that are repeated while the operation is in progress.
    """

    def test_waitIsForAllRepetitions(self) -> None:
        """C{wait} is shortened in each repetition."""
        network = Network()
        self.addCleanup(network.close)
        heard: list[bytes] = []
        room = network.room(RASPI.host)

        async def slowly(raw: bytes, *others: object) -> Response:
            heard.append(raw)
            await deferLater(network, 4)
            code = Code.PENDING if len(heard) < 3 else Code.FAILED
            reply = Reply(status=Status.FAILURE, message=code.value, code=code)
            return Response(status=reply.status, encoded=reply.encode())

        self.patch(room.answers, "to", slowly)
        asking = asked(askToTheEnd(network, RASPI, {"command": "attach", "id": "1", "wait": 6}, 5))
        network.sleep(13)
        self.assertEqual(self.successResultOf(asking).message, "failed")
        self.assertEqual([round(json.loads(raw)["wait"]) for raw in heard], [6, 2, 0])


class TokenTests(AskingTestCase):
    """
    A server that requires a token.
    """

    server = msgspec.structs.replace(RASPI, token="usbip_secret")

    def test_token(self) -> None:
        """The token is in each request, and in no message."""
        asking = self.ask()
        [said] = self.said()
        self.assertEqual(said["token"], "usbip_secret")
        self.wire.drop()
        self.assertNotIn("secret", self.unreachable(asking))


class TroubleTests(AskingTestCase):
    """
    Servers that do not follow the protocol.
    """

    def test_notJson(self) -> None:
        """A line that is not a reply ends the connection at once."""
        for line in (
            b"HTTP/1.1 400 Bad Request\r",
            b"{",
            b"[]",
            b"5",
            b"null",
            b"{}",
            b'{"status":"splendid"}',
            b'{"status":"success","message":5}',
            b'"\xff"',
            b"[" * 100_000,
        ):
            self.setUp()
            asking = self.ask()
            self.wire.send(line + b"\n" + DONE)
            self.assertEqual(
                self.unreachable(asking), "the reply is not that of a usbipshare server"
            )
            self.assertTrue(self.wire.transport.aborted)
        for line in (b"5", b'"bound","holder":"me"', b'"bound","seq":"1"', b'"bound","data":[]'):
            self.setUp()
            asking = self.ask()
            self.wire.send(b'{"event":' + line + b"}\n" + DONE)
            self.assertIn("its answer is not understood: Expected", self.unreachable(asking))

    def test_closedWithoutReply(self) -> None:
        """A connection that is closed before a complete reply is an error; it may be for TLS."""
        closed = "the server has closed the connection without a reply"
        mayBeTls = f"{closed}: if it requires TLS, set `tls` in client.yaml"
        for segments, isSecond, reason in (
            ((), False, mayBeTls),
            ((DONE[:-1],), False, mayBeTls),
            ((), True, closed),
            ((b"\x15\x03\x03\x00\x02\x02\x46",), False, SPEAKS_TLS),
        ):
            self.setUp()
            if isSecond:
                self.successResultOf(self.answered())
            asking = self.ask()
            self.wire.send(*segments)
            self.wire.drop()
            self.assertEqual(self.unreachable(asking), reason)
        self.setUp()
        asking = self.ask()
        self.wire.lost = True
        self.conversation.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.unreachable(asking), "the connection was lost")

    def test_longReply(self) -> None:
        """A long reply is accepted, one longer than the limit is not."""
        asking = self.ask()
        long = b'{"status":"success","data":"' + b"x" * (LONGEST_LINE - 100) + b'"}\n'
        self.wire.send(long)
        self.assertEqual(len(self.successResultOf(asking).data), LONGEST_LINE - 100)
        asking = self.ask()
        self.wire.send(*64 * [b"x" * (LONGEST_LINE // 32)])
        self.assertIn("longer than any valid reply", self.unreachable(asking))
        self.assertTrue(self.wire.transport.aborted)

    def test_failureWithoutRequest(self) -> None:
        """A failure that no request caused ends the connection."""
        self.wire.send(DONE)
        self.assertFalse(self.wire.ended)
        self.wire.send(b'{"status":"error","message":"the daemon stops"}\n')
        self.assertTrue(self.wire.lost)
        self.assertEqual(self.unreachable(self.ask()), "the daemon stops")


class WatchTests(AskingTestCase):
    """
    A watch.
    """

    def watch(
        self, line: bytes = BEGUN, more: dict[str, Any] | None = None, silence: float = SILENCE
    ) -> Deferred[ReceivedReply]:
        """Begin a watch, with this reply."""
        watching = self.conversation.watch(more or {}, 3, self.tell, silence)
        begun = asked(watching)
        self.wire.send(line)
        return begun

    def tell(self, notice: ReceivedNotice) -> None:
        """A callback that may raise an error."""
        if notice["event"] == "nonsense":
            raise Unreachable("raspi (192.0.2.1:5056): nonsense")
        self.told.append(notice)

    def lost(self) -> str:
        """The connection is lost: the reason, without the server's name."""
        error = self.successResultOf(self.conversation.lost)
        self.assertEqual(self.unreachable(self.ask()), str(error).partition(": ")[2])
        return str(error).partition(": ")[2]

    def passes(self, seconds: Sequence[float]) -> None:
        """A line is received after each of these times."""
        for each in seconds:
            self.clock.advance(each)
            self.wire.send(b'{"event":"heartbeat"}\n')

    def test_watchRequest(self) -> None:
        """The request asks for details and contains the criteria. The reply to a resumed watch has
        no list of devices. After a refusal the conversation can be used for another request."""
        answer = self.successResultOf(self.watch(more={"id": "uno"}))
        self.assertEqual((answer.seq, answer.data), (17, []))
        [said] = self.said()
        more = {"command": "watch", "detail": True, "id": "uno", "keep_alive": True}
        self.assertEqual(said, more)
        self.setUp()
        refusal = b'{"status":"error","message":"too long ago"}\n'
        error = self.failureResultOf(self.watch(refusal, {"since": 1}), Refused).value
        self.assertEqual(str(error), "raspi (192.0.2.1:5056): too long ago")
        on = b'{"status":"success","seq":20}\n'
        self.assertIsNone(self.successResultOf(self.watch(on, {"since": 17})).data)

    def test_notAWatch(self) -> None:
        """A reply without the number of an event or without a list is an error."""
        for line, more in (
            (DONE, {}),
            (b'{"status":"success","seq":17,"data":{}}\n', {}),
            (b'{"status":"success","seq":17,"data":5}\n', {"since": 16}),
        ):
            self.setUp()
            reason = self.unreachable(self.watch(line, more))
            self.assertIn("no number of the last event, or no list of devices", reason)
            self.end()

    def test_callbackRaises(self) -> None:
        """An error of the callback ends the connection, and later events are dropped."""
        self.watch()
        self.wire.send(b'{"event":"bound"}\n{"event":"nonsense"}\n{"event":"unbound"}\n')
        self.wire.turn()
        self.assertEqual(self.lost(), "nonsense")
        self.assertEqual([notice["event"] for notice in self.told], ["bound"])

    def test_longEvent(self) -> None:
        """An event is shorter than the list of all devices may be."""
        devices = b"x" * LONGEST_EVENT
        self.watch(b'{"status":"success","data":["' + devices + b'"],"seq":17}\n')
        self.wire.send(b'{"event":"bound","message":"' + b"x" * (LONGEST_EVENT - 100) + b'"}\n')
        self.assertEqual(len(self.told), 1)
        self.wire.send(b'{"event":"bound","message":"' + b"x" * LONGEST_EVENT + b'"}\n')
        self.wire.turn()
        self.assertEqual(self.lost(), "the reply is longer than any valid reply")

    def test_silence(self) -> None:
        """Without a line for 45 s, or for the time given, the connection is aborted."""
        for silence in (SILENCE, 100.0):
            self.setUp()
            self.watch(silence=silence)
            self.passes([silence - 1, silence - 1])
            self.assertFalse(self.wire.lost)
            self.clock.advance(silence)
            self.wire.turn()
            self.assertEqual(self.lost(), f"no line received for {silence:g} s")

    def test_closed(self) -> None:
        """A closed connection is noticed at once."""
        self.watch()
        self.wire.drop()
        self.assertEqual(self.lost(), "the connection is lost")
