"""
Tests of L{usbip_server.model.inventory}.
"""

from __future__ import annotations

from itertools import pairwise

from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import DEVICES, MOUSE, STICK, UNO, changed
from usbip_server.model.device import DeviceState, Holder, Lease, UsbDevice
from usbip_server.model.inventory import Change, ChangeKind, Inventory

FREE, BOUND, IN_USE, ERROR = (
    *(DeviceState.FREE, DeviceState.BOUND),
    *(DeviceState.IN_USE, DeviceState.ERROR),
)


class InventoryCase(SynchronousTestCase):
    """
    An inventory, and the changes that a listener receives.
    """

    def setUp(self) -> None:
        self.start()

    def start(self, *devices: UsbDevice) -> None:
        """A new inventory with some devices, and a listener for all further changes."""
        self.inventory = Inventory()
        self.inventory.replace(devices)
        self.changes: list[Change] = []
        self.inventory.subscribe(self.changes.extend)

    @property
    def kinds(self) -> list[tuple[str, str]]:
        """Kind and bus id of each change."""
        return [(change.kind.value, change.device.busId) for change in self.changes]


class ChangeTests(InventoryCase):
    """
    The changes from one list of devices to the next.
    """

    def test_empty(self) -> None:
        """A new inventory has no devices; its first number can be chosen."""
        self.assertEqual((self.inventory.snapshot.devices, self.inventory.snapshot.seq), ((), 0))
        self.assertIsNone(self.inventory.trouble)
        self.assertIsNone(self.inventory.get("1-1"))
        inventory = Inventory(seq=1000)
        self.assertEqual(inventory.snapshot.seq, 1000)
        inventory.replace([UNO])
        self.assertEqual(inventory.snapshot.seq, 1001)

    def test_order(self) -> None:
        """Devices are in bus order, whatever the order they are given in."""
        self.inventory.replace(reversed(DEVICES))
        self.assertEqual(self.inventory.snapshot.devices, DEVICES)
        self.assertEqual(self.inventory.get("1-2"), STICK)

    def test_plugged(self) -> None:
        """Missing devices are removed, then new ones added; a device with another number at the
        same bus id is both. Changes have numbers without a gap; the snapshot has the last."""
        again = changed(UNO, deviceNumber=9)
        for devices in ([UNO, MOUSE], [STICK, MOUSE], [UNO], [again], []):
            self.inventory.replace(devices)
        added, removed = "added", "removed"
        self.assertEqual(
            self.kinds,
            [
                *((added, "1-1.4"), (added, "2-10"), (removed, "1-1.4"), (added, "1-2")),
                *((removed, "1-2"), (removed, "2-10"), (added, "1-1.4")),
                *((removed, "1-1.4"), (added, "1-1.4"), (removed, "1-1.4")),
            ],
        )
        self.assertEqual([self.changes[at].device for at in (2, 7, 8)], [UNO, UNO, again])
        self.assertEqual([change.seq for change in self.changes], [*range(1, 11)])
        self.assertEqual(self.inventory.snapshot.seq, 10)

    def test_states(self) -> None:
        """Each step from one state to another has its kind; a step that was skipped is added."""
        for before, after, kinds in (
            *((FREE, BOUND, "bound"), (BOUND, IN_USE, "imported"), (IN_USE, BOUND, "released")),
            *((BOUND, FREE, "unbound"), (FREE, IN_USE, "bound imported")),
            *((IN_USE, FREE, "released unbound"), (FREE, ERROR, "changed")),
            *((IN_USE, ERROR, "changed"), (ERROR, BOUND, "bound"), (ERROR, IN_USE, "imported")),
            (ERROR, FREE, "changed"),
        ):
            self.start(changed(UNO, state=before))
            self.inventory.replace([changed(UNO, state=after)])
            self.assertEqual([c.kind.value for c in self.changes], kinds.split(), (before, after))
            self.assertEqual([c.seq for c in self.changes], [*range(2, 2 + len(self.changes))])
            self.assertEqual(self.changes[0].before, changed(UNO, state=before))
            self.assertEqual(self.changes[-1].device, changed(UNO, state=after))
            for first, second in pairwise(self.changes):
                self.assertIs(first.device, second.before)
                self.assertIs(first.device.state, BOUND)

    def test_sessions(self) -> None:
        """Another session, even with the same state, is a release and an import; the end of the
        device releases it first; the address of a client that becomes known is a change."""
        inUse = changed(UNO, state=IN_USE)
        first, second = Holder(address="192.0.2.8", since=1.0), Holder(since=2.0)
        self.start(changed(inUse, holder=first))
        self.inventory.replace([changed(inUse, holder=second)])
        known = changed(inUse, holder=Holder(address="192.0.2.9", since=2.0))
        for devices in ([known], []):
            self.inventory.replace(devices)
        kinds = ["released", "imported", "changed", "released", "removed"]
        self.assertEqual([c.kind.value for c in self.changes], kinds)
        self.assertEqual(self.changes[0].before and self.changes[0].before.holder, first)
        self.assertIs(self.changes[0].device.state, BOUND)
        self.assertEqual(self.changes[1].device.holder, second)
        self.assertEqual(self.changes[3].before and self.changes[3].before.holder, known.holder)

    def test_other(self) -> None:
        """A lease that begins or ends is a change of its own, beside others; any other difference
        is "changed"."""
        self.start(UNO)
        leased = changed(UNO, lease=Lease(owner="ci-job-81", address="192.0.2.9"))
        bound = changed(UNO, state=BOUND)
        held = changed(bound, holder=Holder(address="192.0.2.9"))
        for device in (leased, bound, held):
            self.inventory.replace([device])
        kinds = ["lease", "bound", "lease", "changed"]
        self.assertEqual([c.kind.value for c in self.changes], kinds)
        self.assertEqual([c.device for c in self.changes], [leased, bound, bound, held])

    def test_sameObject(self) -> None:
        """The snapshot and its tuple are the same objects until something changes."""
        self.start(*DEVICES)
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
        """Devices at other bus ids than those given stay; a new device may be among those given."""
        self.start(*DEVICES)
        self.inventory.replace([changed(STICK, state=BOUND)], {"1-2", "1-1.4"})
        self.inventory.replace([UNO], {"1-1.4"})
        self.assertEqual(self.kinds, [("removed", "1-1.4"), ("bound", "1-2"), ("added", "1-1.4")])
        self.assertEqual(
            [d.busId for d in self.inventory.snapshot.devices], ["1-1.4", "1-2", "2-10"]
        )


class ListenerTests(InventoryCase):
    """
    Listeners, also such that fail or change something.
    """

    def test_subscription(self) -> None:
        """Subscribing returns the snapshot that the first change applies to. The changes of one
        call come together, when the inventory has them already. An unsubscribed listener receives
        no more."""
        self.start(UNO)
        received: list[tuple[list[int], UsbDevice | None]] = []

        def listen(changes: tuple[Change, ...]) -> None:
            received.append(([change.seq for change in changes], self.inventory.get("1-2")))

        self.assertIs(self.inventory.subscribe(listen), self.inventory.snapshot)
        self.assertEqual(received, [])
        self.inventory.replace([UNO, STICK, MOUSE])
        self.inventory.replace([UNO])
        self.inventory.unsubscribe(listen)
        self.inventory.replace([])
        self.assertEqual(received, [([2, 3], STICK), ([4, 5], None)])

    def test_failing(self) -> None:
        """A listener that fails is logged, and harms neither the others nor the inventory."""
        self.inventory = Inventory()
        self.inventory.subscribe(lambda changes: [][0])
        self.inventory.subscribe(self.changes.extend)
        self.inventory.replace([UNO, STICK])
        self.assertEqual((len(self.changes), len(self.inventory.snapshot.devices)), (2, 2))
        self.assertEqual(len(self.flushLoggedErrors(IndexError)), 1)

    def test_reentrant(self) -> None:
        """A listener may unsubscribe, subscribe another one or change the inventory: each listener
        receives all changes after its snapshot, in the order of their numbers."""
        self.inventory = Inventory()
        added: list[int] = []

        def once(changes: object) -> None:
            self.inventory.unsubscribe(once)

        def react(changes: tuple[Change, ...]) -> None:
            if changes[0].kind is ChangeKind.ADDED:
                self.inventory.replace([changed(UNO, state=BOUND)], {"1-1.4"})
                self.inventory.subscribe(lambda later: added.extend(c.seq for c in later))

        for listener in (once, react, self.changes.extend):
            self.inventory.subscribe(listener)
        self.inventory.replace([UNO, STICK])
        self.assertEqual(([change.seq for change in self.changes], added), ([1, 2, 3], []))
        self.inventory.replace([])
        self.assertEqual(([change.seq for change in self.changes], added), ([*range(1, 6)], [4, 5]))
