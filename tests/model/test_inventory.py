"""
Tests of L{usbip_server.model.inventory}.
"""

from __future__ import annotations

from itertools import pairwise

from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import DEVICES, MOUSE, STICK, UNO, changed
from usbip_server.model.device import DeviceState, Holder, Lease, UsbDevice
from usbip_server.model.inventory import Change, ChangeKind, Inventory


class InventoryTests(SynchronousTestCase):
    """
    The devices known now.
    """

    def setUp(self) -> None:
        self.inventory = Inventory()
        self.changes: list[Change] = []

    def listen(self) -> None:
        """Note all changes from now on."""
        self.inventory.subscribe(self.changes.extend)

    @property
    def heard(self) -> list[tuple[str, str]]:
        """What was heard: kind and bus id of each change."""
        return [(change.kind.value, change.device.busId) for change in self.changes]

    def test_empty(self) -> None:
        """In the beginning there is nothing."""
        self.assertEqual(self.inventory.snapshot.devices, ())
        self.assertEqual(self.inventory.snapshot.seq, 0)
        self.assertIsNone(self.inventory.trouble)
        self.assertIsNone(self.inventory.get("1-1"))

    def test_order(self) -> None:
        """Devices are in bus order, however they came."""
        self.inventory.replace(reversed(DEVICES))
        self.assertEqual(self.inventory.snapshot.devices, DEVICES)
        self.assertEqual(self.inventory.get("1-2"), STICK)

    def test_addedAndRemoved(self) -> None:
        """What is there and was not is added; what was and is not is removed."""
        self.listen()
        self.inventory.replace([UNO, MOUSE])
        self.inventory.replace([STICK, MOUSE])
        self.assertEqual(
            self.heard,
            [("added", "1-1.4"), ("added", "2-10"), ("removed", "1-1.4"), ("added", "1-2")],
        )
        self.assertEqual(self.changes[2].device, UNO)

    def test_replugged(self) -> None:
        """Another device at the same bus id is a removal and an addition, also when it is equal
        but for its number."""
        self.inventory.replace([UNO])
        self.listen()
        again = changed(UNO, deviceNumber=9)
        self.inventory.replace([again])
        self.assertEqual(self.heard, [("removed", "1-1.4"), ("added", "1-1.4")])
        self.assertEqual([change.device for change in self.changes], [UNO, again])

    def test_states(self) -> None:
        """Each step from one state to another has its word, and what must have lain between two
        looks is told, too."""
        free, bound, inUse, error = (
            DeviceState.FREE,
            DeviceState.BOUND,
            DeviceState.IN_USE,
            DeviceState.ERROR,
        )
        for before, after, kinds in (
            (free, bound, "bound"),
            (bound, inUse, "imported"),
            (inUse, bound, "released"),
            (bound, free, "unbound"),
            (free, inUse, "bound imported"),
            (inUse, free, "released unbound"),
            (free, error, "changed"),
            (inUse, error, "changed"),
            (error, bound, "bound"),
            (error, inUse, "imported"),
            (error, free, "changed"),
        ):
            self.inventory = Inventory()
            self.inventory.replace([changed(UNO, state=before)])
            self.changes = []
            self.listen()
            self.inventory.replace([changed(UNO, state=after)])
            self.assertEqual([c.kind.value for c in self.changes], kinds.split(), (before, after))
            self.assertEqual([c.seq for c in self.changes], [*range(2, 2 + len(self.changes))])
            self.assertEqual(self.changes[0].before, changed(UNO, state=before))
            self.assertEqual(self.changes[-1].device, changed(UNO, state=after))
            for first, second in pairwise(self.changes):
                self.assertIs(first.device, second.before)
                self.assertIs(first.device.state, bound)

    def test_goneWhileInUse(self) -> None:
        """That a device is gone ends its session, which is told first, and whose it was."""
        holder = Holder(address="192.0.2.8", since=1.0)
        self.inventory.replace([changed(UNO, state=DeviceState.IN_USE, holder=holder)])
        self.listen()
        self.inventory.replace([])
        self.assertEqual(self.heard, [("released", "1-1.4"), ("removed", "1-1.4")])
        self.assertEqual(self.changes[0].before and self.changes[0].before.holder, holder)

    def test_changed(self) -> None:
        """Any other difference is a change."""
        self.inventory.replace([UNO])
        self.listen()
        self.inventory.replace([changed(UNO, holder=Holder(address="192.0.2.9"))])
        self.assertEqual(self.heard, [("changed", "1-1.4")])

    def test_nextSession(self) -> None:
        """That one client gave a device back and another one took it is told, also if nobody
        looked in between; that a client's address became known is a change."""
        first, second = Holder(address="192.0.2.8", since=1.0), Holder(since=2.0)
        inUse = changed(UNO, state=DeviceState.IN_USE)
        self.inventory.replace([changed(inUse, holder=first)])
        self.listen()
        self.inventory.replace([changed(inUse, holder=second)])
        self.inventory.replace([changed(inUse, holder=Holder(address="192.0.2.9", since=2.0))])
        self.assertEqual([c.kind.value for c in self.changes], ["released", "imported", "changed"])
        self.assertEqual(self.changes[0].before and self.changes[0].before.holder, first)
        self.assertIs(self.changes[0].device.state, DeviceState.BOUND)
        self.assertEqual(self.changes[1].device.holder, second)

    def test_lease(self) -> None:
        """A lease that is granted, renewed or ends is told as such, beside any other change."""
        self.inventory.replace([UNO])
        self.listen()
        leased = changed(UNO, lease=Lease(owner="ci-job-81", address="192.0.2.9"))
        self.inventory.replace([leased])
        bound = changed(UNO, state=DeviceState.BOUND)
        self.inventory.replace([bound])
        self.assertEqual([c.kind.value for c in self.changes], ["lease", "bound", "lease"])
        self.assertEqual([c.device for c in self.changes], [leased, bound, bound])

    def test_together(self) -> None:
        """What is seen together is told together."""
        told: list[int] = []
        self.inventory.subscribe(lambda changes: told.append(len(changes)))
        self.inventory.replace([UNO, STICK])
        self.inventory.replace([STICK])
        self.assertEqual(told, [2, 1])

    def test_firstNumber(self) -> None:
        """The numbers begin where one likes."""
        inventory = Inventory(seq=1000)
        self.assertEqual(inventory.snapshot.seq, 1000)
        inventory.replace([UNO])
        self.assertEqual(inventory.snapshot.seq, 1001)

    def test_seq(self) -> None:
        """Changes are counted without a gap, and the snapshot has the number of the last."""
        self.listen()
        self.inventory.replace(DEVICES)
        self.inventory.replace([changed(UNO, deviceNumber=9), STICK])
        self.inventory.replace([])
        self.assertEqual([change.seq for change in self.changes], list(range(1, 9)))
        self.assertEqual(self.inventory.snapshot.seq, 8)

    def test_sameObject(self) -> None:
        """The snapshot and its tuple are the same objects until something changes."""
        self.inventory.replace(DEVICES)
        before = self.inventory.snapshot
        self.inventory.replace([changed(device) for device in DEVICES])
        self.inventory.replace([changed(UNO)], {"1-1.4"})
        self.inventory.replace([], {"9-9"})
        self.assertIs(self.inventory.snapshot, before)
        self.assertIs(self.inventory.snapshot.devices, before.devices)
        self.inventory.replace([UNO])
        self.assertIsNot(self.inventory.snapshot, before)
        self.assertEqual(before.devices, DEVICES)

    def test_partial(self) -> None:
        """A look at some bus ids says nothing of the others."""
        self.inventory.replace(DEVICES)
        self.listen()
        self.inventory.replace([changed(STICK, state=DeviceState.BOUND)], {"1-2", "1-1.4"})
        self.assertEqual(self.heard, [("removed", "1-1.4"), ("bound", "1-2")])
        self.assertEqual(
            [device.busId for device in self.inventory.snapshot.devices], ["1-2", "2-10"]
        )

    def test_partialAdds(self) -> None:
        """It may find what was not known."""
        self.inventory.replace([MOUSE])
        self.listen()
        self.inventory.replace([UNO], {"1-1.4"})
        self.assertEqual(self.heard, [("added", "1-1.4")])
        self.assertEqual(self.inventory.snapshot.devices, (UNO, MOUSE))

    def test_subscribe(self) -> None:
        """To subscribe gives the snapshot that the first change applies to."""
        self.inventory.replace([UNO])
        snapshot = self.inventory.subscribe(self.changes.extend)
        self.assertIs(snapshot, self.inventory.snapshot)
        self.assertEqual(self.changes, [])
        self.inventory.replace([UNO, STICK])
        self.assertEqual([change.seq for change in self.changes], [snapshot.seq + 1])

    def test_unsubscribe(self) -> None:
        """Whoever has unsubscribed hears nothing more."""
        self.listen()
        self.inventory.replace([UNO])
        self.inventory.unsubscribe(self.changes.extend)
        self.inventory.replace([])
        self.assertEqual(self.heard, [("added", "1-1.4")])

    def test_failingListener(self) -> None:
        """A listener that fails is logged, and harms neither the others nor the inventory."""

        def fail(changes: object) -> None:
            raise ZeroDivisionError

        self.inventory.subscribe(fail)
        self.listen()
        self.inventory.replace([UNO, STICK])
        self.assertEqual(len(self.changes), 2)
        self.assertEqual(len(self.inventory.snapshot.devices), 2)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_listenerSeesTheState(self) -> None:
        """When a listener is told, the inventory has the change already."""
        seen: list[UsbDevice | None] = []
        self.inventory.subscribe(lambda changes: seen.append(self.inventory.get("1-1.4")))
        self.inventory.replace([UNO])
        self.inventory.replace([])
        self.assertEqual(seen, [UNO, None])

    def test_unsubscribeWhileTold(self) -> None:
        """A listener may unsubscribe while it is told; the others are told all the same."""

        def once(changes: object) -> None:
            self.inventory.unsubscribe(once)

        self.inventory.subscribe(once)
        self.listen()
        self.inventory.replace([UNO])
        self.inventory.replace([])
        self.assertEqual(len(self.changes), 2)

    def test_changeWhileTold(self) -> None:
        """
        A listener may change the inventory. Each listener receives all changes in the order of
        their numbers, also one that is called after it.
        """

        def react(changes: tuple[Change, ...]) -> None:
            if changes[0].kind is ChangeKind.ADDED:
                self.inventory.replace([changed(UNO, state=DeviceState.BOUND)], {"1-1.4"})

        self.inventory.subscribe(react)
        self.listen()
        self.inventory.replace([UNO, STICK])
        self.assertEqual([change.seq for change in self.changes], [1, 2, 3])

    def test_subscribeWhileTold(self) -> None:
        """A listener that is added by another one receives only changes after its snapshot."""
        received: list[int] = []

        def add(changes: tuple[Change, ...]) -> None:
            if changes[0].seq == 1:
                self.inventory.replace([changed(UNO, state=DeviceState.BOUND)], {"1-1.4"})
                self.inventory.subscribe(lambda later: received.extend(c.seq for c in later))

        self.inventory.subscribe(add)
        self.inventory.replace([UNO])
        self.assertEqual(received, [])
        self.inventory.replace([])
        self.assertEqual(received, [3])
