"""
Tests of L{usbip_server.protocols.watcher}.
"""

from __future__ import annotations

from collections.abc import Iterator

from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import (
    ALICE,
    CONGESTION,
    EPOCH,
    UNO,
    MemoryTransport,
    PatientBackend,
    changed,
    eventsOf,
    everything,
)
from usbip_server.model.device import DeviceState
from usbip_server.model.options import Limits
from usbip_server.model.requests import WatchDevices
from usbip_server.protocols.watcher import PATIENCE, EventFormat, Watcher
from usbip_server.runtime.eventlog import Told
from usbip_server.server.config import LiveSettings, Settings

MOST = 10_000
"""Bytes that may wait."""

BEAT = b"*\n"


class WatcherTests(SynchronousTestCase):
    """
    L{Watcher}: clients that read the events, and clients that do not.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        backend = PatientBackend([UNO])
        self.inventory = backend.inventory
        self.events = eventsOf(
            backend, lambda: EPOCH, LiveSettings(Settings(limits=Limits(history=100_000)))
        )
        self.begin = self.events.seq
        capture = capturedLogs()
        self.logged = capture.__enter__()
        self.addCleanup(capture.__exit__, None, None, None)

    @property
    def warnings(self) -> list[str]:
        """What was logged that is worth a look."""
        worth = [event for event in self.logged if event["log_level"] is not LogLevel.info]
        return [formatEvent(event) for event in worth]

    def watch(
        self, since: int | None = None, reading: bool = True
    ) -> tuple[Watcher, MemoryTransport]:
        """Somebody who watches."""
        transport = MemoryTransport()
        transport.reading = reading
        _, stream = self.events.watch(WatchDevices(since=since), everything)
        watcher = Watcher(
            transport,
            transport.abortConnection,
            stream,
            EventFormat(lambda event, line: line, lambda: BEAT),
            ALICE,
            MOST,
        )
        watcher.begin(self.clock, 15)
        return watcher, transport

    def happen(self, times: int) -> None:
        """So many events."""
        for _ in range(times):
            state = DeviceState.BOUND if self.inventory.get("1-1.4") == UNO else DeviceState.FREE
            self.inventory.replace([changed(UNO, state=state)])

    def lines(self) -> Iterator[bytes]:
        """All events there were, as they go over the wire."""
        return (event.line(False) for event in self.events.after(self.begin) or ())

    def until(self, transport: MemoryTransport, size: int) -> None:
        """Events, until so much was written, or would have been."""
        begin = transport.value()
        told = 0
        while told < size:
            before = self.events.seq
            self.happen(1)
            told += sum(len(event.line(False)) for event in self.events.after(before) or ())
        self.assertTrue(transport.value().startswith(begin))

    def all(self) -> bytes:
        """All events there were, one after the other."""
        return b"".join(self.lines())

    def test_reads(self) -> None:
        """A client that reads receives each event at once, however many there are."""
        _, transport = self.watch()
        self.happen(5000)
        self.assertEqual(transport.value(), self.all())
        self.assertEqual(len(transport.writes), 5000)
        self.assertEqual(self.warnings, [])

    def test_doesNotRead(self) -> None:
        """
        A client is disconnected, with one warning, when too many bytes are unsent for more
        than a moment; others are not affected.
        """
        _, slow = self.watch()
        _, other = self.watch()
        slow.reading = False
        self.until(slow, CONGESTION + MOST - 1000)
        self.assertFalse(slow.aborted)
        self.assertEqual(self.warnings, [])
        self.until(slow, 2000)
        self.clock.advance(PATIENCE - 0.1)
        self.assertFalse(slow.aborted)
        self.clock.advance(0.2)
        self.assertTrue(slow.aborted)
        self.assertIsNone(slow.producer)
        written = slow.value()
        self.happen(1000)
        self.clock.pump([15] * 4)
        self.assertEqual(slow.value(), written)
        self.assertEqual(other.value().replace(BEAT, b""), self.all())
        [warning] = self.warnings
        self.assertIn("192.0.2.7: slow watcher disconnected", warning)

    def test_bounded(self) -> None:
        """The bytes written to a connection that is not read are bounded."""
        _, slow = self.watch()
        slow.reading = False
        self.until(slow, CONGESTION + MOST - 1000)
        self.assertLess(len(slow.value()), CONGESTION + 1000)

    def test_readsInTime(self) -> None:
        """A client that reads again before that receives all events in their order."""
        _, slow = self.watch()
        for _ in range(5):
            slow.reading = False
            self.until(slow, CONGESTION + MOST - 1000)
            slow.read()
            self.assertEqual(slow.value(), self.all())
            self.happen(3)
        self.assertEqual(slow.value(), self.all())
        self.assertFalse(slow.aborted)
        self.assertEqual(self.warnings, [])

    def test_muchAtOnce(self) -> None:
        """Many events at once do not disconnect a client that then reads them bit by bit."""
        _, slow = self.watch()
        slow.reading = False
        self.until(slow, 20 * MOST)
        for _ in range(6):
            self.clock.advance(PATIENCE / 10)
            slow.swallow()
        self.assertEqual(slow.value(), self.all())
        self.until(slow, CONGESTION + MOST - 1000)
        self.clock.advance(PATIENCE - 0.1)
        self.assertFalse(slow.aborted)
        self.until(slow, 2000)
        self.clock.advance(PATIENCE - 0.1)
        self.assertFalse(slow.aborted)
        self.clock.advance(0.2)
        self.assertTrue(slow.aborted)

    def test_slowButSteady(self) -> None:
        """A client that reads more slowly than events come for a while is not disconnected."""
        _, slow = self.watch()
        slow.reading = False
        for _ in range(50):
            self.until(slow, MOST - 1000)
            slow.swallow()
        slow.read()
        self.assertEqual(slow.value(), self.all())
        self.assertEqual(self.warnings, [])

    def test_missed(self) -> None:
        """
        Missed events are sent at the pace of the client, before new ones, and never
        disconnect it.
        """
        self.happen(5000)
        _, late = self.watch(self.begin)
        self.assertEqual(late.value(), self.all())
        _, transport = self.watch(self.begin, reading=False)
        self.happen(10)
        self.assertGreater(len(self.all()), 5 * CONGESTION)
        size = 0
        while len(transport.value()) < len(self.all()):
            grown = len(transport.value()) - size
            self.assertLess(grown, CONGESTION + 1000)
            self.assertGreater(grown, 0)
            size = len(transport.value())
            transport.swallow()
        self.assertEqual(transport.value(), self.all())
        self.happen(1)
        transport.read()
        self.assertEqual(transport.value(), self.all())
        self.assertFalse(transport.aborted)

    def test_heartbeats(self) -> None:
        """A client that reads gets heartbeats, also right after an event."""
        _, transport = self.watch()
        self.clock.pump([15] * 3)
        self.assertEqual(transport.value(), BEAT * 3)

    def test_noHeartbeatAheadOfEvents(self) -> None:
        """A heartbeat has the number of the last event, so none is sent before unsent events."""
        _, slow = self.watch()
        slow.reading = False
        self.until(slow, CONGESTION + MOST - 1000)
        self.clock.pump([15] * 3)
        self.assertNotIn(BEAT, slow.value())
        slow.read()
        self.clock.advance(15)
        self.assertEqual(slow.value(), self.all() + BEAT)

    def test_end(self) -> None:
        """C{end} leaves nothing behind, also with unsent events, and may be called twice."""
        for reading in (True, False):
            watcher, transport = self.watch()
            transport.reading = reading
            self.until(transport, CONGESTION + MOST - 1000)
            watcher.end()
            watcher.end()
            written = transport.value()
            watcher.resumeProducing()
            self.happen(10)
            self.assertEqual(transport.value(), written)
            self.assertIsNone(transport.producer)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopProducing(self) -> None:
        """Nor does the end of the connection."""
        watcher, transport = self.watch()
        watcher.stopProducing()
        self.happen(1)
        self.assertEqual(transport.value(), b"")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_event(self) -> None:
        """The protocol defines how an event is written."""
        transport = MemoryTransport()
        _, stream = self.events.watch(WatchDevices(), everything)
        seen: list[Told] = []

        def frame(event: Told, line: bytes) -> bytes:
            seen.append(event)
            return b"<" + line.strip() + b">"

        watcher = Watcher(
            transport, lambda: None, stream, EventFormat(frame, lambda: BEAT), ALICE, MOST
        )
        watcher.begin(self.clock, 15)
        self.happen(1)
        self.assertEqual(transport.value(), b"<" + self.all().strip() + b">")
        self.assertEqual([event.word for event in seen], ["bound"])
        watcher.end()
