"""
Tests of L{usbip_server.server.devices.events}.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.logger import formatEvent
from twisted.trial.unittest import SynchronousTestCase

from tests.server.corecase import LogTestCase
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
"""The number of the last change before the events."""


class DeviceEventsTestCase(LogTestCase):
    """
    @ivar heard: the numbers of the events that the listener has received.
    """

    keep = 5

    def setUp(self) -> None:
        self.time = EPOCH
        self.backend = PatientBackend(DEVICES, seq=FIRST - 3)
        self.inventory = self.backend.inventory
        self.settings = LiveSettings(Settings())
        self.remember(self.keep)
        self.events = eventsOf(self.backend, lambda: self.time, self.settings)
        self.heard: list[int] = []

    def remember(self, history: int) -> None:
        """Configure how many events are remembered."""
        self.settings.replace(Settings(limits=Limits(history=history)))

    def listen(self, event: Event) -> None:
        """Note an event."""
        self.heard.append(event.change.seq)

    def become(self, device: UsbDevice, **fields: Any) -> None:
        """Change a device in the backend."""
        self.inventory.replace([changed(device, **fields)], {device.busId})

    def happen(self, times: int) -> None:
        """Cause events."""
        for _ in range(times):
            self.become(UNO, product=f"Number {self.events.seq}")


class DeviceEventsTests(DeviceEventsTestCase):
    """
    L{usbip_server.server.devices.events.DeviceEvents}, and its listeners.
    """

    def test_listeners(self) -> None:
        """
        Listeners receive the changes of the inventory, with their numbers, until they are
        removed; removing one again has no effect.
        """
        self.assertEqual(self.events.seq, FIRST)
        self.events.listen(self.listen)
        self.happen(2)
        self.inventory.replace([UNO])
        for _ in range(2):
            self.events.leave(self.listen)
        self.happen(1)
        self.assertEqual(self.heard, [FIRST + n for n in (1, 2, 3, 4, 5)])
        self.assertEqual(self.events.seq, FIRST + 6)

    def test_listenerFails(self) -> None:
        """
        An exception in a listener is logged, and affects neither other listeners nor the log of
        events.
        """

        def fail(event: Event) -> None:
            self.heard.append(-event.change.seq)
            raise ZeroDivisionError

        self.events.listen(fail)
        self.events.listen(self.listen)
        self.inventory.replace([UNO])
        self.assertEqual(self.heard, [-FIRST - 1, FIRST + 1, -FIRST - 2, FIRST + 2])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.assertEqual(self.numbers(self.events.after(FIRST)), [1, 2])

    def test_leaveMeanwhile(self) -> None:
        """Listeners may remove themselves and others while they are called."""

        def leave(event: Event) -> None:
            self.events.leave(leave)
            self.events.leave(self.listen)

        self.events.listen(leave)
        self.events.listen(self.listen)
        self.happen(2)
        self.assertEqual(self.heard, [FIRST + 1])

    def test_heartbeat(self) -> None:
        """A heartbeat has the number of the last event, and the time."""
        self.happen(2)
        self.time += 1
        beat = json.loads(self.events.heartbeat().encode())
        self.assertEqual(
            beat, {"event": "heartbeat", "seq": FIRST + 2, "time": "2023-11-14T22:13:21.000Z"}
        )

    def numbers(self, events: list[Event] | None) -> list[int] | None:
        """Their numbers, from the beginning."""
        return None if events is None else [event.change.seq - FIRST for event in events]

    def test_after(self) -> None:
        """The events after any remembered one can be read."""
        self.assertEqual(self.numbers(self.events.after(FIRST)), [])
        self.happen(5)
        self.assertEqual(self.numbers(self.events.after(FIRST)), [1, 2, 3, 4, 5])
        self.happen(1)
        self.assertIsNone(self.events.after(FIRST))
        self.assertEqual(self.numbers(self.events.after(FIRST + 1)), [2, 3, 4, 5, 6])
        self.assertEqual(self.numbers(self.events.after(FIRST + 5)), [6])
        self.assertEqual(self.numbers(self.events.after(FIRST + 6)), [])

    def test_unknownNumbers(self) -> None:
        """Numbers from before the first event and after the last one are unknown."""
        for seq in (0, FIRST - 1, FIRST + 1, 10 * FIRST):
            self.assertIsNone(self.events.after(seq))

    def test_keep(self) -> None:
        """
        A smaller limit drops the oldest events at once; a larger one does not restore them; with
        a limit of 0 only the present is known.
        """
        self.happen(5)
        self.remember(2)
        self.assertIsNone(self.events.after(FIRST + 2))
        self.assertEqual(self.numbers(self.events.after(FIRST + 3)), [4, 5])
        self.remember(4)
        self.happen(3)
        self.assertIsNone(self.events.after(FIRST + 3))
        self.assertEqual(self.numbers(self.events.after(FIRST + 4)), [5, 6, 7, 8])
        self.remember(0)
        self.assertIsNone(self.events.after(FIRST + 7))
        self.assertEqual(self.events.after(FIRST + 8), [])

    def test_log(self) -> None:
        """
        Log lines of imports and releases contain the holder, since when, and the traffic;
        those of other events their kind.
        """
        logged = self.captureLogs()
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
    L{Event}.
    """

    def event(self, kind: ChangeKind, device: UsbDevice, before: UsbDevice | None) -> Event:
        """An event."""
        return Event(Change(kind=kind, seq=7, device=device, before=before), EPOCH)

    def test_line(self) -> None:
        """An event is encoded once with and once without detail."""
        event = self.event(ChangeKind.ADDED, UNO, None)
        for detail in (False, True):
            line = event.line(detail)
            self.assertIs(event.line(detail), line)
            told = json.loads(line)
            self.assertEqual(set(told), {"event", "seq", "time", "data"})
            self.assertEqual("state" in told["data"], detail)

    def test_holder(self) -> None:
        """
        The holder of an event is the client that has imported the device, or that has
        released it.
        """
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
        """Only imports and releases have a holder, and only lease events a lease."""
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


class StreamTests(DeviceEventsTestCase):
    """
    Subscriptions to events.
    """

    def watch(self, **request: Any) -> Subscription[Event]:
        """The subscription of a watch command."""
        return self.events.watch(WatchDevices(**request), everything)[1]

    def begin(self, stream: Subscription[Event]) -> list[int]:
        """Begin to deliver to the listener; the numbers of the missed events."""
        return [e.change.seq for e, _ in stream.begin(lambda event, line: self.listen(event))]

    def test_reply(self) -> None:
        """
        The reply to a watch command contains the selected devices, and the number of the
        last event.
        """
        reply, stream = self.events.watch(WatchDevices(id="1-*"), everything)
        told = json.loads(reply.encode())
        self.assertEqual([device["bus_id"] for device in told["data"]], ["1-1.4", "1-2"])
        self.assertEqual((told["seq"], stream.seq, stream.goesOn), (FIRST, FIRST, False))

    def test_replySince(self) -> None:
        """The reply to a watch command with C{since} contains no devices."""
        self.happen(3)
        reply, stream = self.events.watch(WatchDevices(since=FIRST + 1), everything)
        self.assertEqual(json.loads(reply.encode()), {"status": "success", "seq": FIRST + 1})
        self.assertEqual((stream.seq, stream.goesOn), (FIRST + 1, True))
        with self.assertRaises(SnapshotNeeded):
            self.events.watch(WatchDevices(since=FIRST + 4), everything)

    def test_oneStep(self) -> None:
        """
        No event is lost or delivered twice between the reply and the beginning of the
        subscription.
        """
        stream = self.watch()
        self.happen(2)
        self.assertEqual(self.begin(stream), [FIRST + 1, FIRST + 2])
        self.happen(1)
        self.assertEqual(self.heard, [FIRST + 3])

    def test_missedLater(self) -> None:
        """
        Missed events are delivered even if they are dropped from the log after the
        subscription has begun.
        """
        stream = self.watch(since=FIRST)
        self.happen(2)
        missed = stream.begin(lambda event, line: None)
        self.assertEqual(next(missed)[0].change.seq, FIRST + 1)
        self.happen(10)
        self.assertEqual([event.change.seq for event, _ in missed], [FIRST + 2])

    def test_end(self) -> None:
        """
        After its end a subscription delivers nothing, not even the event that is being
        delivered.
        """
        stream = self.watch()

        def end(event: Event) -> None:
            stream.end()

        self.events.listen(end)
        self.begin(stream)
        self.happen(2)
        stream.end()
        self.assertEqual(self.heard, [])

    def test_criteria(self) -> None:
        """Events of a device that matches before or after the change are delivered."""
        self.begin(self.watch(desc="lamp"))
        self.become(UNO, product="no")
        self.become(STICK, description="lamp")
        self.become(STICK, description="bell")
        self.become(STICK, description="horn")
        self.become(MOUSE, product="no")
        self.assertEqual(self.heard, [FIRST + 2, FIRST + 3])
