"""
Tests of L{usbip_server.server.devices.events}.
"""

from __future__ import annotations

import json
from typing import Any, cast

from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import (
    DEVICES,
    EPOCH,
    MOUSE,
    STICK,
    UNO,
    PatientBackend,
    changed,
    eventsOf,
    everything,
)
from usbip_server.model.device import DeviceState, Holder, Lease, Traffic, UsbDevice
from usbip_server.model.errors import SnapshotNeeded
from usbip_server.model.inventory import Change, ChangeKind
from usbip_server.model.options import Limits
from usbip_server.model.requests import WatchDevices
from usbip_server.runtime.eventlog import Subscription
from usbip_server.server.config import LiveSettings, Settings
from usbip_server.server.devices.events import Event

BOUND, IN_USE = DeviceState.BOUND, DeviceState.IN_USE
FIRST = 1_000
"""The number of the last change before the feed."""


class FeedTestCase(SynchronousTestCase):
    """
    @ivar heard: the numbers of the events that the listener heard of.
    """

    keep = 5

    def setUp(self) -> None:
        self.time = EPOCH
        self.backend = PatientBackend(DEVICES, seq=FIRST - 3)
        self.inventory = self.backend.inventory
        self.settings = LiveSettings(Settings())
        self.remember(self.keep)
        self.feed = eventsOf(self.backend, lambda: self.time, self.settings)
        self.heard: list[int] = []

    def remember(self, history: int) -> None:
        """Configure how many events are remembered."""
        self.settings.replace(Settings(limits=Limits(history=history)))

    def listen(self, event: Event) -> None:
        """Note an event."""
        self.heard.append(event.change.seq)

    def become(self, device: UsbDevice, **fields: Any) -> None:
        """Let a device be like that."""
        self.inventory.replace([changed(device, **fields)], {device.busId})

    def happen(self, times: int) -> None:
        """So many events."""
        for _ in range(times):
            self.become(UNO, product=f"Number {self.feed.seq}")


class FeedTests(FeedTestCase):
    """
    Events, and who hears of them.
    """

    def test_numbers(self) -> None:
        """Events are the inventory's changes, with their numbers."""
        self.assertEqual(self.feed.seq, FIRST)
        self.feed.listen(self.listen)
        self.happen(2)
        self.inventory.replace([UNO])
        self.assertEqual(self.heard, [FIRST + n for n in (1, 2, 3, 4, 5)])
        self.assertEqual(self.feed.seq, FIRST + 5)

    def test_leave(self) -> None:
        """Who has left hears nothing more; to leave again does no harm."""
        self.feed.listen(self.listen)
        self.happen(1)
        self.feed.leave(self.listen)
        self.feed.leave(self.listen)
        self.happen(1)
        self.assertEqual(self.heard, [FIRST + 1])

    def test_failingListener(self) -> None:
        """A listener that fails is logged, and harms nobody: not the others, not what is
        remembered, not itself."""

        def fail(event: Event) -> None:
            self.heard.append(-event.change.seq)
            raise ZeroDivisionError

        self.feed.listen(fail)
        self.feed.listen(self.listen)
        self.inventory.replace([UNO])
        self.assertEqual(self.heard, [-FIRST - 1, FIRST + 1, -FIRST - 2, FIRST + 2])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.assertEqual(self.numbers(self.feed.after(FIRST)), [1, 2])

    def test_leaveMeanwhile(self) -> None:
        """Listeners may leave, and have others leave, while they are told."""

        def leave(event: Event) -> None:
            self.feed.leave(leave)
            self.feed.leave(self.listen)

        self.feed.listen(leave)
        self.feed.listen(self.listen)
        self.happen(2)
        self.assertEqual(self.heard, [FIRST + 1])

    def test_heartbeat(self) -> None:
        """A heartbeat is no event: it has the number of the last one, and the time."""
        self.happen(2)
        self.time += 1
        beat = json.loads(self.feed.heartbeat().encode())
        self.assertEqual(
            beat, {"event": "heartbeat", "seq": FIRST + 2, "time": "2023-11-14T22:13:21.000Z"}
        )

    def numbers(self, events: list[Event] | None) -> list[int] | None:
        """Their numbers, from the beginning."""
        return None if events is None else [event.change.seq - FIRST for event in events]

    def test_after(self) -> None:
        """What is remembered can be had from any of its events on."""
        self.assertEqual(self.numbers(self.feed.after(FIRST)), [])
        self.happen(5)
        self.assertEqual(self.numbers(self.feed.after(FIRST)), [1, 2, 3, 4, 5])
        self.happen(1)
        self.assertIsNone(self.feed.after(FIRST))
        self.assertEqual(self.numbers(self.feed.after(FIRST + 1)), [2, 3, 4, 5, 6])
        self.assertEqual(self.numbers(self.feed.after(FIRST + 5)), [6])
        self.assertEqual(self.numbers(self.feed.after(FIRST + 6)), [])

    def test_ofOthers(self) -> None:
        """What was before the feed is not known, nor what is still to come."""
        for seq in (0, FIRST - 1, FIRST + 1, 10 * FIRST):
            self.assertIsNone(self.feed.after(seq))

    def test_keep(self) -> None:
        """To remember less forgets the oldest at once; to remember more brings nothing back."""
        self.happen(5)
        self.remember(2)
        self.assertIsNone(self.feed.after(FIRST + 2))
        self.assertEqual(self.numbers(self.feed.after(FIRST + 3)), [4, 5])
        self.remember(4)
        self.happen(3)
        self.assertIsNone(self.feed.after(FIRST + 3))
        self.assertEqual(self.numbers(self.feed.after(FIRST + 4)), [5, 6, 7, 8])

    def test_keepNothing(self) -> None:
        """Nothing at all may be remembered: then only the present is known."""
        self.remember(0)
        self.happen(3)
        self.assertIsNone(self.feed.after(FIRST + 2))
        self.assertEqual(self.feed.after(FIRST + 3), [])

    def test_log(self) -> None:
        """The log tells of a session who has or had the device, since when, and what was moved;
        of anything else what it was."""
        logged: list[LogEvent] = []
        observer = cast(ILogObserver, logged.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.backend.moved[UNO.busId] = Traffic(bytesIn=48, bytesOut=4096)
        holder = Holder(address="192.0.2.7", since=EPOCH)
        self.become(UNO, state=BOUND)
        self.become(UNO, state=IN_USE, holder=holder)
        self.become(UNO, state=BOUND)
        lines = [formatEvent(event) for event in logged if "bytes_in" in event]
        said = "192.0.2.7, since 2023-11-14T22:13:20.000Z, 48 bytes in, 4096 out"
        self.assertEqual(lines, [f"{UNO} imported: {said}", f"{UNO} released: {said}"])
        self.assertIn(f"{UNO} bound", [formatEvent(event) for event in logged])


class EventTests(SynchronousTestCase):
    """
    One event.
    """

    def event(self, kind: ChangeKind, device: UsbDevice, before: UsbDevice | None) -> Event:
        """An event."""
        return Event(Change(kind=kind, seq=7, device=device, before=before), EPOCH)

    def test_line(self) -> None:
        """It is made into bytes once, with and without detail."""
        event = self.event(ChangeKind.ADDED, UNO, None)
        for detail in (False, True):
            line = event.line(detail)
            self.assertIs(event.line(detail), line)
            told = json.loads(line)
            self.assertEqual(set(told), {"event", "seq", "time", "data"})
            self.assertEqual("state" in told["data"], detail)

    def test_holder(self) -> None:
        """Its holder is who has come, or who was there before."""
        one, other = Holder(address="192.0.2.1"), Holder(address="192.0.2.2")
        used, free = changed(UNO, state=IN_USE, holder=one), changed(UNO, state=BOUND)
        usedByOther = changed(used, holder=other)
        for kind, device, before, holder in (
            (ChangeKind.IMPORTED, used, free, one),
            (ChangeKind.RELEASED, free, used, one),
            (ChangeKind.RELEASED, free, usedByOther, other),
            (ChangeKind.REMOVED, used, used, one),
            (ChangeKind.ADDED, UNO, None, None),
        ):
            self.assertEqual(self.event(kind, device, before).holder, holder)

    def test_keys(self) -> None:
        """Only who comes or goes is told with a holder, and only a lease with its lease."""
        lease = Lease(owner="ci-1", address="192.0.2.1")
        now = changed(UNO, state=IN_USE, holder=Holder(address="192.0.2.1"), lease=lease)
        for kind in ChangeKind:
            told = json.loads(self.event(kind, now, now).line(False))
            session = kind in (ChangeKind.IMPORTED, ChangeKind.RELEASED)
            self.assertEqual("holder" in told, session, kind)
            self.assertEqual("lease" in told, kind is ChangeKind.LEASE, kind)
        self.assertEqual(
            json.loads(self.event(ChangeKind.LEASE, now, UNO).line(False))["lease"],
            {"owner": "ci-1", "address": "192.0.2.1", "ttl": "connection", "until": None},
        )


class StreamTests(FeedTestCase):
    """
    What one watcher is told.
    """

    def watch(self, **request: Any) -> Subscription[Event]:
        """What somebody is to be told."""
        return self.feed.watch(WatchDevices(**request), everything)[1]

    def begin(self, stream: Subscription[Event]) -> list[int]:
        """Have it begin to tell the listener; the numbers of what comes first."""
        return [e.change.seq for e, _ in stream.begin(lambda event, line: self.listen(event))]

    def test_reply(self) -> None:
        """The answer to a watch has the devices that are meant, and where events go on."""
        reply, stream = self.feed.watch(WatchDevices(id="1-*"), everything)
        told = json.loads(reply.encode())
        self.assertEqual([device["bus_id"] for device in told["data"]], ["1-1.4", "1-2"])
        self.assertEqual((told["seq"], stream.seq, stream.goesOn), (FIRST, FIRST, False))

    def test_replySince(self) -> None:
        """One that goes on has no devices."""
        self.happen(3)
        reply, stream = self.feed.watch(WatchDevices(since=FIRST + 1), everything)
        self.assertEqual(json.loads(reply.encode()), {"status": "success", "seq": FIRST + 1})
        self.assertEqual((stream.seq, stream.goesOn), (FIRST + 1, True))
        with self.assertRaises(SnapshotNeeded):
            self.feed.watch(WatchDevices(since=FIRST + 4), everything)

    def test_oneStep(self) -> None:
        """Nothing is lost and nothing told twice, whatever happens between the answer and the
        beginning."""
        stream = self.watch()
        self.happen(2)
        self.assertEqual(self.begin(stream), [FIRST + 1, FIRST + 2])
        self.happen(1)
        self.assertEqual(self.heard, [FIRST + 3])

    def test_missedLater(self) -> None:
        """What was missed can still be had when it is not remembered any more, by whoever has
        begun in time."""
        stream = self.watch(since=FIRST)
        self.happen(2)
        missed = stream.begin(lambda event, line: None)
        self.assertEqual(next(missed)[0].change.seq, FIRST + 1)
        self.happen(10)
        self.assertEqual([event.change.seq for event, _ in missed], [FIRST + 2])

    def test_end(self) -> None:
        """After its end nothing is told, even of what is being told to all."""
        stream = self.watch()

        def end(event: Event) -> None:
            stream.end()

        self.feed.listen(end)
        self.begin(stream)
        self.happen(2)
        stream.end()
        self.assertEqual(self.heard, [])

    def test_criteria(self) -> None:
        """A device is told of that meets them, or did before."""
        self.begin(self.watch(desc="lamp"))
        self.become(UNO, product="no")
        self.become(STICK, description="lamp")
        self.become(STICK, description="bell")
        self.become(STICK, description="horn")
        self.become(MOUSE, product="no")
        self.assertEqual(self.heard, [FIRST + 2, FIRST + 3])
