"""
Tests of L{usbip_server.protocols.sse}.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import EPOCH, UNO
from usbip_server.model.errors import InvalidRequest
from usbip_server.model.inventory import Change, ChangeKind
from usbip_server.model.requests import WatchDevices
from usbip_server.protocols.sse import RECONNECT, asked, beat, frame, snapshot
from usbip_server.server.devices.events import Event


class AskedTests(SynchronousTestCase):
    """
    What a query string asks for.
    """

    def test_nothing(self) -> None:
        """An empty query selects all devices, from now on."""
        self.assertEqual(asked({}, None), WatchDevices())

    def test_everything(self) -> None:
        """All keys of a watch command can be given."""
        query = {
            b"id": [b"1-1*"],
            b"bus": [b"1"],
            b"serial": [b"A 1"],
            b"desc": ["Gerät".encode()],
            b"detail": [b"true"],
            b"since": [b"17"],
        }
        command = WatchDevices(
            id="1-1*", bus="1", serial="A 1", desc="Gerät", detail=True, since=17
        )
        self.assertEqual(asked(query, None), command)

    def test_lastSeen(self) -> None:
        """C{Last-Event-ID} has precedence over C{since}."""
        self.assertEqual(asked({b"since": [b"17"]}, b"99").since, 99)
        self.assertEqual(asked({}, b"0").since, 0)

    def test_lastSeenOfOthers(self) -> None:
        """An invalid C{Last-Event-ID} is ignored, and the stream begins with a snapshot."""
        for odd in (b"", b"x", b"-1", b"1.5", b"\xff", b" 1", b"9" * 19, b"9" * 5000):
            self.assertIsNone(asked({}, odd).since, odd[:20])

    def test_bad(self) -> None:
        """An invalid query is refused, and the message names the key."""
        for query, reason in (
            ({b"colour": [b"red"]}, "colour"),
            ({b"since": [b"-1"]}, "`since`"),
            ({b"since": [b"x"]}, "`since`"),
            ({b"since": [b"9" * 5000]}, "`since`"),
            ({b"detail": [b"maybe"]}, "`detail`"),
            ({b"id": [b""]}, "`id` is empty"),
            ({b"id": [b"x" * 300]}, "longer"),
            ({b"id": [b"1-1", b"1-2"]}, "`id` is given twice"),
            ({b"a\n" + 300 * b"b": [b"", b""]}, f"`a\\n{197 * 'b'}…` is given twice"),
            ({b"id": [b"\xff"]}, "UTF-8"),
            ({b"\xff": [b"1"]}, "UTF-8"),
            ({b"first": [b"true"]}, "first"),
        ):
            with self.assertRaises(InvalidRequest) as caught:
                asked(query, None)
            self.assertIn(reason, str(caught.exception))


class FrameTests(SynchronousTestCase):
    """
    What is written: lines with a field each, and an empty one at the end.
    """

    def test_event(self) -> None:
        """An event has its number, its kind and the line of the event."""
        event = Event(Change(kind=ChangeKind.ADDED, seq=17, device=UNO), EPOCH)
        line = event.line(False)
        self.assertEqual(frame(event, line), b"id: 17\nevent: added\ndata: " + line + b"\n")
        self.assertTrue(frame(event, line).endswith(b"}\n\n"))

    def test_snapshot(self) -> None:
        """The snapshot is an event with a number, so that a browser can continue after it."""
        self.assertEqual(snapshot(b"{}\n", 17), b"id: 17\nevent: snapshot\ndata: {}\n\n")

    def test_others(self) -> None:
        """A heartbeat is a comment, which browsers do not report."""
        self.assertEqual(beat(), b": heartbeat\n\n")
        self.assertEqual(RECONNECT, b"retry: 2000\n\n")
