"""
Tests of L{usbip_server.kernel.importers}: which client has imported which device.
"""

from __future__ import annotations

import os
from collections.abc import Set

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from usbip_server.kernel.importers import Connection, Importers
from usbip_server.kernel.monitor import TICK, DeviceMonitor
from usbip_server.kernel.scan import Scanner
from usbip_server.kernel.usbids import UsbIds
from usbip_server.model.device import DeviceState, Holder, PlugId, UsbDevice
from usbip_server.model.inventory import Change, ChangeKind, Inventory
from usbip_server.runtime.threads import BlockingCalls
from usbip_server.testing import FakeKernel, FakeReactor

ALICE, BOB, CAROL = "192.0.2.7", "192.0.2.8", "192.0.2.9"


FIRST, SECOND = PlugId("1-1", 2), PlugId("1-2", 3)

FROM_ALICE = Holder(address=ALICE, since=900.0)
FROM_BOB = Holder(address=BOB, since=950.0)
UNKNOWN = Holder(address=None, since=1000.0)


class HandOverTests(SynchronousTestCase):
    """
    Devices that this process has exported, and devices that were in use before it started.
    """

    def setUp(self) -> None:
        self.kernel = FakeKernel()
        self.importers = Importers(self.kernel, lambda: 1000.0)

    def look(self, *plugIds: PlugId) -> Holder | None:
        """Refresh, while these are in use; return the holder of the first."""
        self.importers.refresh(lambda: set(plugIds))
        return self.importers.holder(FIRST)

    def handOver(self, connection: Connection | None = None) -> None:
        """Export a device to the first client."""
        with self.importers.handingOver(FIRST, FROM_ALICE, connection):
            pass

    def refuse(self, connection: Connection | None = None) -> None:
        """An export to the second client fails, as the device is in use."""
        with self.assertRaises(OSError), self.importers.handingOver(FIRST, FROM_BOB, connection):
            self.look(FIRST)
            raise OSError

    def connect(self, address: str) -> Connection:
        """A client connects to port 3240."""
        remote, port = self.kernel.connect(address)
        return Connection(local="192.0.2.1", localPort=3240, remote=remote, remotePort=port)

    def test_exported(self) -> None:
        """The client of an export is the holder for as long as the device is in use, and no list is
        read; the next client is unknown."""
        self.look()
        self.handOver()
        for _ in range(3):
            self.assertIs(self.look(FIRST), FROM_ALICE)
        self.assertIsNone(self.look())
        self.assertEqual(self.kernel.reads, [])
        self.assertEqual(self.look(FIRST), UNKNOWN)

    def test_refreshDuringExport(self) -> None:
        """A refresh that begins before or during an export, and finds the device free, does not end
        it."""
        self.look()
        with self.importers.handingOver(FIRST, FROM_ALICE, None):
            self.assertIsNone(self.look())
            for _ in range(2):
                self.assertIs(self.look(FIRST), FROM_ALICE)
        self.assertIs(self.look(FIRST), FROM_ALICE)
        self.look()

        def read() -> Set[PlugId]:
            self.handOver()
            return set()

        self.importers.refresh(read)
        self.assertIs(self.look(FIRST), FROM_ALICE)

    def test_next(self) -> None:
        """The next client is the holder when its export has ended, not while the device is being
        reset, and not if its export fails."""
        self.look()
        self.handOver()
        self.refuse()
        self.assertIs(self.look(FIRST), FROM_ALICE)
        with self.importers.handingOver(FIRST, FROM_BOB, None):
            self.assertIs(self.look(FIRST), FROM_ALICE)
        self.assertIs(self.look(FIRST), FROM_BOB)

    def test_refusedUnknown(self) -> None:
        """A client whose export failed is not the holder, whether the device was known to be in use
        before or not."""
        self.look()
        self.refuse()
        self.assertEqual(self.look(FIRST), UNKNOWN)
        self.refuse(self.connect(BOB))
        self.assertEqual(self.look(FIRST), UNKNOWN)

    def test_othersConnection(self) -> None:
        """The connection of an export is not that of another device, whether it is known or not;
        that of another client is."""
        for connection in (self.connect(ALICE), None):
            self.importers = Importers(self.kernel, lambda: 1000.0)
            self.look()
            self.handOver(connection)
            if connection is not None:
                self.look(FIRST, SECOND)
                self.assertEqual(self.importers.holder(SECOND), UNKNOWN)
            client = self.kernel.connect(CAROL)
            self.assertIs(self.look(FIRST, SECOND), FROM_ALICE)
            self.assertEqual(self.importers.holder(SECOND), Holder(address=CAROL, since=1000.0))
            self.kernel.disconnect(client)
            if connection is not None:
                self.kernel.disconnect((connection.remote, connection.remotePort))

    def test_refusedAndClosed(self) -> None:
        """The connection of a failed export is forgotten when it is closed: a later one may have
        the same addresses and ports."""
        self.look()
        self.look(FIRST)
        connection = self.connect(CAROL)
        again = self.kernel.connections()
        self.refuse(connection)
        self.assertEqual(self.look(FIRST), UNKNOWN)
        self.kernel.disconnect((connection.remote, connection.remotePort))
        self.look(FIRST)
        self.patch(self.kernel, "connections", lambda: again)
        self.assertEqual(self.look(FIRST), Holder(address=CAROL, since=1000.0))

    def test_inUseAtStart(self) -> None:
        """A client that connects after the start does not have a device that was in use before; a
        client that was connected before does, once it is the only one."""
        for before in ((), (BOB, ALICE)):
            self.importers = Importers(self.kernel, lambda: 1000.0)
            clients = [self.kernel.connect(address) for address in before]
            self.assertEqual(self.look(FIRST), Holder(address=None, since=None))
            late = self.kernel.connect(CAROL)
            self.assertEqual(self.look(FIRST), Holder(address=None, since=None))
            if clients:
                self.kernel.disconnect(clients[0])
                self.assertEqual(self.look(FIRST), Holder(address=ALICE, since=None))
            self.kernel.disconnect(late)


class InferenceTests(SynchronousTestCase):
    """
    Devices that C{usbipd} has exported, as the inventory shows them.
    """

    def setUp(self) -> None:
        self.kernel = FakeKernel()
        for busId in ("1-1", "1-2", "1-3"):
            self.kernel.plug(busId)
            for attribute, text in (
                ("usb/unbind", busId),
                ("usbip-host/match_busid", f"add {busId}"),
                ("usbip-host/bind", busId),
            ):
                self.kernel.write(f"bus/usb/drivers/{attribute}", text.encode())
        self.reactor = FakeReactor()
        self.reactor.advance(1000)
        self.inventory = Inventory()
        self.changes: list[Change] = []
        self.inventory.subscribe(self.changes.extend)
        self.monitor = DeviceMonitor(
            self.kernel,
            Scanner(
                self.kernel, UsbIds([]), self.reactor.seconds, lambda: self.reactor.seconds() - 600
            ),
            self.inventory,
            BlockingCalls(self.reactor, self.reactor.spawn),
            self.reactor,
        )
        self.addCleanup(self.monitor.stop)

    def start(self, *imports: tuple[str, str | None]) -> None:
        """Read the devices at second 1000; then import some, each read one second later."""
        self.successResultOf(Deferred.fromCoroutine(self.monitor.start()))
        for busId, address in imports:
            self.kernel.importDevice(busId, address)
            self.tick()
        self.changes.clear()

    def tick(self) -> None:
        """Let the time pass after which the devices are read again."""
        self.reactor.advance(TICK)

    def device(self, busId: str = "1-1") -> UsbDevice:
        """A device as shown by the inventory."""
        device = self.inventory.get(busId)
        assert device is not None
        return device

    def addresses(self) -> list[str | None]:
        """The addresses of the holders of all devices in use."""
        holders = (device.holder for device in self.inventory.snapshot.devices)
        return [holder.address for holder in holders if holder is not None]

    def kinds(self) -> list[ChangeKind]:
        """The changes since the last call."""
        kinds = [change.kind for change in self.changes]
        self.changes.clear()
        return kinds

    def test_holder(self) -> None:
        """A device in use has a holder: its address, which may be IPv6 or IPv4 on an IPv6 socket,
        and since when. When the client is gone it has none."""
        self.start()
        for seconds, address, shown in (
            (1001.0, ALICE, ALICE),
            (1003.0, "2001:db8::7", "2001:db8::7"),
            (1005.0, f"::ffff:{ALICE}", ALICE),
        ):
            self.kernel.importDevice("1-1", address)
            self.tick()
            self.assertEqual(self.device().holder, Holder(address=shown, since=seconds))
            self.assertIsNone(self.device("1-2").holder)
            self.kernel.releaseDevice("1-1")
            self.tick()
            self.assertIsNone(self.device().holder)
            self.assertEqual(self.kinds(), [ChangeKind.IMPORTED, ChangeKind.RELEASED])

    def test_unchanged(self) -> None:
        """While nothing happens no change is reported, and C{since} stays."""
        self.start(("1-1", ALICE), ("1-2", None))
        before = self.inventory.snapshot
        for _ in range(30):
            self.tick()
        self.assertIs(self.inventory.snapshot, before)

    def test_inUseBefore(self) -> None:
        """For a device that was in use at the start, C{since} is unknown; for the next session it
        is known."""
        self.kernel.importDevice("1-1", ALICE)
        self.start()
        self.assertEqual(self.device().holder, Holder(address=ALICE, since=None))
        self.tick()
        self.assertEqual(self.kinds(), [])
        self.kernel.releaseDevice("1-1")
        self.tick()
        self.kernel.importDevice("1-1", ALICE)
        self.tick()
        self.assertEqual(self.device().holder, Holder(address=ALICE, since=1003.0))

    def test_ambiguous(self) -> None:
        """Between two clients nothing is guessed; when it becomes certain, it is reported."""
        self.start()
        self.kernel.importDevice("1-1", ALICE)
        self.kernel.importDevice("1-2", BOB)
        self.tick()
        self.assertEqual(
            {self.device(each).holder for each in ("1-1", "1-2")},
            {Holder(address=None, since=1001.0)},
        )
        self.tick()
        self.assertEqual(self.kinds(), [ChangeKind.IMPORTED] * 2)
        self.kernel.releaseDevice("1-1")
        self.tick()
        self.assertEqual(self.device("1-2").holder, Holder(address=BOB, since=1001.0))
        self.assertEqual(self.kinds(), [ChangeKind.RELEASED, ChangeKind.CHANGED])

    def test_oneAfterTheOther(self) -> None:
        """Known connections are excluded when the next is assigned; a client may have several
        devices. Two clients that exchange their devices between two reads are unknown then."""
        self.start(("1-1", ALICE), ("1-2", BOB), ("1-3", ALICE))
        self.assertEqual(self.addresses(), [ALICE, BOB, ALICE])
        for busId in ("1-1", "1-2"):
            self.kernel.releaseDevice(busId)
        self.kernel.importDevice("1-1", BOB)
        self.kernel.importDevice("1-2", ALICE)
        self.tick()
        self.assertEqual(self.addresses(), [None, None, ALICE])

    def test_otherConnections(self) -> None:
        """While a client that only lists devices is connected, a holder is unknown; one that is
        known stays known."""
        self.start()
        lister = self.kernel.connect(BOB)
        self.kernel.importDevice("1-1", ALICE)
        self.tick()
        self.assertEqual(self.addresses(), [None])
        self.kernel.disconnect(lister)
        self.tick()
        self.assertEqual(self.addresses(), [ALICE])
        self.kernel.connect(BOB)
        self.tick()
        self.assertEqual(self.addresses(), [ALICE])

    def test_notInList(self) -> None:
        """A client whose connection is not in the list stays unknown, also if only one device is
        read again."""
        self.start(("1-1", None))
        self.kernel.importDevice("1-2", BOB)
        self.successResultOf(Deferred.fromCoroutine(self.monitor.refresh({"1-1"})))
        self.assertEqual(self.addresses(), [None])
        self.tick()
        self.tick()
        self.assertEqual(self.addresses(), [None, None])

    def test_handedOn(self) -> None:
        """A device that was released and imported again between two reads has a new holder, also if
        it is the same client: its connection is another."""
        for seconds, address in ((1002.0, BOB), (1003.0, BOB)):
            if seconds == 1002.0:
                self.start(("1-1", ALICE))
            self.kernel.releaseDevice("1-1")
            self.kernel.importDevice("1-1", address)
            self.tick()
            self.assertEqual(self.device().holder, Holder(address=address, since=seconds))
            self.assertEqual(self.kinds(), [ChangeKind.RELEASED, ChangeKind.IMPORTED])

    def test_connectionGone(self) -> None:
        """A client whose connection has ended is the holder while the device is being reset; if the
        device is in use for longer than that, it is another client's."""
        self.start(("1-1", ALICE))
        closing = self.kernel.connections().replace(b" 01 ", b" 08 ")
        self.patch(self.kernel, "connections", lambda: closing)
        for _ in range(3):
            self.tick()
            for _ in range(3):  # and at each uevent
                self.successResultOf(Deferred.fromCoroutine(self.monitor.refresh({"1-1"})))
            self.assertEqual((self.addresses(), self.kinds()), ([ALICE], []))
        self.tick()
        self.assertEqual(self.device().holder, Holder(address=None, since=1005.0))
        self.assertEqual(self.kinds(), [ChangeKind.RELEASED, ChangeKind.IMPORTED])

    def test_resetReportedOnce(self) -> None:
        """The end of a session is reported once, also if the device is read during the reset; a
        connection that is missing from the list once has not ended."""
        self.start(("1-1", ALICE))
        whole = self.kernel.connections()
        tables = [b"", whole, whole.replace(b" 01 ", b" 08 ")]
        connections = self.kernel.connections
        self.patch(self.kernel, "connections", lambda: tables.pop(0) if tables else connections())
        self.tick()
        self.assertEqual((self.addresses(), len(tables), self.kinds()), ([ALICE], 1, []))
        self.tick()
        self.kernel.releaseDevice("1-1")
        self.tick()
        self.assertEqual(self.kinds(), [ChangeKind.RELEASED])

    def test_changesDuringRead(self) -> None:
        """Changes between the read of the devices and that of the connections are not mixed up."""
        self.start()
        connections = self.kernel.connections
        hasChanged: list[bool] = []

        def late() -> bytes:
            if not hasChanged:
                hasChanged.append(True)
                self.kernel.releaseDevice("1-1")
                self.kernel.importDevice("1-2", BOB)
            return connections()

        self.kernel.importDevice("1-1", ALICE)
        self.patch(self.kernel, "connections", late)
        self.tick()
        self.assertNotIn(BOB, self.addresses())
        self.tick()
        self.assertIsNone(self.device().holder)
        self.assertEqual(self.device("1-2").holder, Holder(address=BOB, since=1002.0))

    def test_replugged(self) -> None:
        """A replugged device has no holder."""
        self.start(("1-1", ALICE))
        self.kernel.unplug("1-1")
        self.kernel.plug("1-1")
        self.reactor.deliver()
        self.assertEqual((self.device().state, self.device().holder), (DeviceState.FREE, None))

    def test_trouble(self) -> None:
        """A device that is shown as C{error} has no holder meanwhile, and the same afterwards."""
        self.start(("1-1", ALICE))
        holder = self.device().holder
        for trouble, shown in (("stuck", None), (None, holder)):
            self.successResultOf(Deferred.fromCoroutine(self.monitor.setTrouble("1-1", trouble)))
            self.assertEqual(self.device().holder, shown)

    def test_unreadable(self) -> None:
        """If the list cannot be read, known holders stay, and new ones are unknown."""
        self.start(("1-1", ALICE))

        def refuse() -> bytes:
            raise PermissionError(1, os.strerror(1))

        self.patch(self.kernel, "connections", refuse)
        self.kernel.importDevice("1-2", BOB)
        self.tick()
        self.assertEqual(self.addresses(), [ALICE, None])

    def test_readOnlyInUse(self) -> None:
        """The list is read only while a device is in use, and in a thread."""
        self.start()
        for _ in range(30):
            self.tick()
        self.assertNotIn("connections", self.kernel.reads)
        self.kernel.importDevice("1-1", ALICE)
        self.reactor.hold = True
        self.tick()
        self.assertNotIn("connections", self.kernel.reads)
        self.reactor.runThreads()
        self.assertIn("connections", self.kernel.reads)
        self.assertEqual(self.addresses(), [ALICE])
