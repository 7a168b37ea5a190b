"""
Who has a device, be it we who handed it out or a stock usbipd.
"""

from __future__ import annotations

import os
import socket
import sys

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from usbip_server.kernel.importers import Connection, established
from usbip_server.kernel.monitor import TICK, DeviceMonitor
from usbip_server.kernel.scan import Scanner
from usbip_server.kernel.system import CONNECTIONS, System
from usbip_server.kernel.usbids import UsbIds
from usbip_server.model.device import DeviceState, Holder, UsbDevice
from usbip_server.model.inventory import Change, ChangeKind, Inventory
from usbip_server.runtime.threads import BlockingCalls
from usbip_server.testing import FakeKernel, FakeReactor

# As Linux 6.1 prints them on a little-endian machine.
HEAD = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"  # noqa: E501
LISTENING = b"   0: 00000000:0CA8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 17305 1 00000000a50d38ce 100 0 0 10 0                     \n"  # noqa: E501
IPV4 = b"   1: 010200C0:0CA8 070200C0:C8A2 01 00000000:00000000 02:000A2C2A 00000000     0        0 26481 3 000000006aacab3e 20 4 30 10 -1                    \n"  # noqa: E501
CLOSING = IPV4.replace(b" 01 ", b" 08 ")
SSH = IPV4.replace(b":0CA8", b":0016")
OUTGOING = b"   2: 010200C0:C8A2 070200C0:0CA8 01 00000000:00000000 02:000A2C2A 00000000     0        0 26481 3 000000006aacab3e 20 4 30 10 -1                    \n"  # noqa: E501
IPV6 = b"   0: B80D0120000000000000000001000000:0CA8 B80D01200000000000000000EFBE0000:D431 01 00000000:00000000 02:00000A1B 00000000     0        0 31337 2 00000000deadbeef 21 4 30 10 -1\n"  # noqa: E501
MAPPED = b"   1: 0000000000000000FFFF0000010200C0:0CA8 0000000000000000FFFF0000070200C0:C8A3 01 00000000:00000000 02:00000A1B 00000000     0        0 31338 2 00000000deadbeef 21 4 30 10 -1\n"  # noqa: E501

ALICE = "192.0.2.7"
BOB = "192.0.2.8"


class EstablishedTests(SynchronousTestCase):
    """
    The kernel's list of connections.
    """

    if sys.byteorder != "little":
        skip = "the lines are those of a little-endian machine"

    def one(self, line: bytes) -> Connection:
        """The one connection in a line."""
        (connection,) = established(line)
        return connection

    def test_ipv4(self) -> None:
        """An address is four bytes, the last one first; a port is not turned round."""
        self.assertEqual(
            self.one(IPV4),
            Connection(local="192.0.2.1", localPort=3240, remote=ALICE, remotePort=51362),
        )

    def test_ipv6(self) -> None:
        """One of IPv6 is four such words."""
        self.assertEqual(
            self.one(IPV6),
            Connection(
                local="2001:db8::1", localPort=3240, remote="2001:db8::beef", remotePort=54321
            ),
        )

    def test_mapped(self) -> None:
        """An IPv4 address on an IPv6 socket is shown as what it is."""
        self.assertEqual(
            self.one(MAPPED),
            Connection(local="192.0.2.1", localPort=3240, remote=ALICE, remotePort=51363),
        )

    def test_others(self) -> None:
        """Heads, other states, other ports and the client's end of a connection are none."""
        self.assertEqual(list(established(HEAD + LISTENING + CLOSING + SSH + OUTGOING)), [])
        self.assertEqual(len(list(established(HEAD + LISTENING + IPV4 + SSH + HEAD + IPV6))), 2)

    def test_garbage(self) -> None:
        """Lines that are damaged are left out, and those around them are not."""
        for damaged in (
            b"\n",
            b"\xff\xfe\0\n",
            IPV4.replace(b"070200C0:", b"070200G0:"),
            IPV4.replace(b"070200C0:", b"0x0200C0:"),
            IPV4.replace(b"070200C0:", b"070200:"),
            IPV4.replace(b"070200C0:", b"070200C0"),
            IPV4.replace(b":C8A2", b":-8A2"),
            IPV4.replace(b":C8A2", b":C8A"),
            IPV6.replace(b"EFBE0000:", b"EFBE00:"),
        ):
            self.assertEqual(len(list(established(IPV4 + damaged + IPV6))), 2, damaged)

    def test_truncated(self) -> None:
        """A list that is cut off anywhere has no connections, or that one."""
        for line in (IPV4, IPV6, MAPPED):
            for end in range(len(line)):
                for connection in established(line[:end]):
                    self.assertEqual(connection, self.one(line))


class SystemTests(SynchronousTestCase):
    """
    The real list.
    """

    def test_real(self) -> None:
        """A connection of ours is in it, as often as the kernel has us read it in pieces."""
        listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listening.close)
        clients = [socket.create_connection(listening.getsockname()) for _ in range(100)]
        accepted = [listening.accept()[0] for _ in clients]
        for each in clients + accepted:
            self.addCleanup(each.close)
        port = listening.getsockname()[1]
        found = established(System().connections(), port)
        self.assertEqual(
            {(connection.remote, connection.remotePort) for connection in found},
            {client.getsockname() for client in clients},
        )

    def test_madeTree(self) -> None:
        """A made tree has no connections."""
        self.assertEqual(System(self.mktemp()).connections(), b"")

    def test_missing(self) -> None:
        """A kernel without IPv6 has one list."""
        self.patch(sys.modules[System.__module__], "CONNECTIONS", (CONNECTIONS[0], "/proc/none"))
        self.assertTrue(System().connections().startswith(HEAD[:20]))


class HolderTests(SynchronousTestCase):
    """
    Whose connection is whose.
    """

    def setUp(self) -> None:
        self.kernel = FakeKernel()
        for busId in ("1-1", "1-2", "1-3"):
            self.kernel.plug(busId)
            self.kernel.write("bus/usb/drivers/usb/unbind", busId.encode())
            self.kernel.write("bus/usb/drivers/usbip-host/match_busid", f"add {busId}".encode())
            self.kernel.write("bus/usb/drivers/usbip-host/bind", busId.encode())
        self.reactor = FakeReactor()
        self.reactor.advance(1000)
        self.inventory = Inventory()
        self.changes: list[Change] = []
        self.inventory.subscribe(self.changes.extend)
        self.monitor = DeviceMonitor(
            self.kernel,
            Scanner(self.kernel, UsbIds([]), self.reactor.seconds),
            self.inventory,
            BlockingCalls(self.reactor, self.reactor.spawn),
            self.reactor,
        )
        self.addCleanup(self.monitor.stop)

    def start(self) -> None:
        """Take the first look, at second 1000."""
        self.successResultOf(Deferred.fromCoroutine(self.monitor.start()))
        self.changes.clear()

    def tick(self) -> None:
        """Wait until it has looked once more."""
        self.reactor.advance(TICK)

    def device(self, busId: str = "1-1") -> UsbDevice:
        """What is known of a device."""
        device = self.inventory.get(busId)
        assert device is not None
        return device

    def addresses(self) -> list[str | None]:
        """The addresses of the holders of all that is in use."""
        return [
            device.holder.address
            for device in self.inventory.snapshot.devices
            if device.holder is not None
        ]

    def kinds(self) -> list[ChangeKind]:
        """What has happened since the last time."""
        kinds = [change.kind for change in self.changes]
        self.changes.clear()
        return kinds

    def test_known(self) -> None:
        """A device that is in use has a holder: who it is, and since when."""
        self.start()
        self.assertIsNone(self.device().holder)
        self.kernel.importDevice("1-1", ALICE)
        self.tick()
        self.assertEqual(self.device().holder, Holder(address=ALICE, since=1001.0))
        self.assertEqual(self.kinds(), [ChangeKind.IMPORTED])
        self.assertIsNone(self.device("1-2").holder)

    def test_released(self) -> None:
        """When the client is gone there is no holder."""
        self.start()
        self.kernel.importDevice("1-1", ALICE)
        self.tick()
        self.kernel.releaseDevice("1-1")
        self.tick()
        self.assertIsNone(self.device().holder)
        self.assertEqual(self.kinds(), [ChangeKind.IMPORTED, ChangeKind.RELEASED])

    def test_ipv6(self) -> None:
        """A client may have an IPv6 address, or an IPv4 address on an IPv6 socket."""
        self.start()
        for address, shown in (("2001:db8::7", "2001:db8::7"), (f"::ffff:{ALICE}", ALICE)):
            self.kernel.importDevice("1-1", address)
            self.tick()
            self.assertEqual(self.addresses(), [shown])
            self.kernel.releaseDevice("1-1")
            self.tick()

    def test_unchanged(self) -> None:
        """While nothing changes nothing is told, and "since" plugIds."""
        self.start()
        self.kernel.importDevice("1-1", ALICE)
        self.kernel.importDevice("1-2")
        self.tick()
        before = self.inventory.snapshot
        for _ in range(30):
            self.tick()
        self.assertIs(self.inventory.snapshot, before)

    def test_inUseBefore(self) -> None:
        """Since when it is in use is not known if it was when the daemon began to look."""
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

    def test_certainLater(self) -> None:
        """Nothing is guessed between two clients; what becomes certain is told."""
        self.start()
        self.kernel.importDevice("1-1", ALICE)
        self.kernel.importDevice("1-2", BOB)
        self.tick()
        unknown = Holder(address=None, since=1001.0)
        self.assertEqual((self.device().holder, self.device("1-2").holder), (unknown, unknown))
        self.assertEqual(self.kinds(), [ChangeKind.IMPORTED] * 2)
        self.tick()
        self.assertEqual(self.kinds(), [])
        self.kernel.releaseDevice("1-1")
        self.tick()
        self.assertEqual(self.device("1-2").holder, Holder(address=BOB, since=1001.0))
        self.assertEqual(self.kinds(), [ChangeKind.RELEASED, ChangeKind.CHANGED])

    def test_oneAfterTheOther(self) -> None:
        """What is known of one device tells of the next; one client may have several."""
        self.start()
        for count, (busId, address) in enumerate((("1-1", ALICE), ("1-2", BOB), ("1-3", ALICE)), 1):
            self.kernel.importDevice(busId, address)
            self.tick()
            self.assertEqual(len(self.addresses()), count)
        self.assertEqual(self.addresses(), [ALICE, BOB, ALICE])

    def test_lister(self) -> None:
        """A client that only asks usbipd for its list makes it uncertain until it is gone."""
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

    def test_unseen(self) -> None:
        """A client whose connection is not to be seen here plugIds unknown."""
        self.start()
        self.kernel.importDevice("1-1")
        self.kernel.importDevice("1-2", BOB)
        self.tick()
        self.tick()
        self.assertEqual(self.addresses(), [None, None])

    def test_handedOn(self) -> None:
        """A device that is released and imported again between two looks has the new holder."""
        self.start()
        self.kernel.importDevice("1-1", ALICE)
        self.tick()
        self.kinds()
        self.kernel.releaseDevice("1-1")
        self.kernel.importDevice("1-1", BOB)
        self.tick()
        self.assertEqual(self.device().holder, Holder(address=BOB, since=1002.0))
        self.assertEqual(self.kinds(), [ChangeKind.RELEASED, ChangeKind.IMPORTED])

    def test_handedOnToTheSame(self) -> None:
        """Also if it is the same client again: only the connection is another."""
        self.start()
        self.kernel.importDevice("1-1", ALICE)
        self.tick()
        self.kernel.releaseDevice("1-1")
        self.kernel.importDevice("1-1", ALICE)
        self.tick()
        self.assertEqual(self.device().holder, Holder(address=ALICE, since=1002.0))

    def test_swapped(self) -> None:
        """Two clients that exchange their devices between two looks are not mixed up."""
        self.start()
        for busId, address in (("1-1", ALICE), ("1-2", BOB)):
            self.kernel.importDevice(busId, address)
            self.tick()
        for busId in ("1-1", "1-2"):
            self.kernel.releaseDevice(busId)
        self.kernel.importDevice("1-1", BOB)
        self.kernel.importDevice("1-2", ALICE)
        self.tick()
        self.assertEqual(self.addresses(), [None, None])

    def test_connectionGone(self) -> None:
        """A client whose connection has ended has the device until the kernel has reset it,
        which takes a moment; if it is still in use after that, another client has it."""
        self.start()
        self.kernel.importDevice("1-1", ALICE)
        self.tick()
        self.kinds()
        closing = self.kernel.connections().replace(b" 01 ", b" 08 ")
        self.kernel.connections = lambda: closing  # type: ignore[method-assign]
        for _ in range(3):
            self.tick()
            for _ in range(3):  # and at each uevent
                self.successResultOf(Deferred.fromCoroutine(self.monitor.refresh({"1-1"})))
            self.assertEqual((self.addresses(), self.kinds()), ([ALICE], []))
        self.tick()
        self.assertEqual(self.device().holder, Holder(address=None, since=1005.0))
        self.assertEqual(self.kinds(), [ChangeKind.RELEASED, ChangeKind.IMPORTED])

    def test_reset(self) -> None:
        """That a client goes is told once, also if we look while the device is being reset."""
        self.start()
        self.kernel.importDevice("1-1", ALICE)
        self.tick()
        self.kinds()
        closing = self.kernel.connections().replace(b" 01 ", b" 08 ")
        connections, self.kernel.connections = self.kernel.connections, lambda: closing  # type: ignore[method-assign]
        self.tick()
        self.kernel.connections = connections  # type: ignore[method-assign]
        self.kernel.releaseDevice("1-1")
        self.tick()
        self.assertEqual(self.kinds(), [ChangeKind.RELEASED])

    def test_missedOnce(self) -> None:
        """A connection that the kernel leaves out of its list once is not gone."""
        self.start()
        self.kernel.importDevice("1-1", ALICE)
        self.tick()
        self.kinds()
        tables = [b"", self.kernel.connections()]
        self.kernel.connections = lambda: tables.pop(0)  # type: ignore[method-assign]
        self.tick()
        self.assertEqual((self.addresses(), tables, self.kinds()), ([ALICE], [], []))

    def test_meanwhile(self) -> None:
        """What happens between the look at devices and that at connections is not mixed up."""
        self.start()
        read = self.kernel.connections

        def late() -> bytes:
            self.kernel.connections = read  # type: ignore[method-assign]
            self.kernel.releaseDevice("1-1")
            self.kernel.importDevice("1-2", BOB)
            return read()

        self.kernel.importDevice("1-1", ALICE)
        self.kernel.connections = late  # type: ignore[method-assign]
        self.tick()
        self.assertNotIn(BOB, self.addresses())
        self.tick()
        self.assertIsNone(self.device().holder)
        self.assertEqual(self.device("1-2").holder, Holder(address=BOB, since=1002.0))

    def test_otherDevice(self) -> None:
        """A look at one device takes account of the others that are in use."""
        self.start()
        self.kernel.importDevice("1-1")
        self.tick()
        self.kernel.importDevice("1-2", BOB)
        self.successResultOf(Deferred.fromCoroutine(self.monitor.refresh({"1-1"})))
        self.assertEqual(self.addresses(), [None])

    def test_replugged(self) -> None:
        """A device that is plugged in anew has nothing of the holder of the last."""
        self.start()
        self.kernel.importDevice("1-1", ALICE)
        self.tick()
        self.kernel.unplug("1-1")
        self.kernel.plug("1-1")
        self.reactor.deliver()
        self.assertIs(self.device().state, DeviceState.FREE)
        self.assertIsNone(self.device().holder)

    def test_trouble(self) -> None:
        """A device that is shown as stuck has no holder meanwhile, and the same afterwards."""
        self.start()
        self.kernel.importDevice("1-1", ALICE)
        self.tick()
        holder = self.device().holder
        for trouble, shown in (("stuck", None), (None, holder)):
            self.successResultOf(Deferred.fromCoroutine(self.monitor.setTrouble("1-1", trouble)))
            self.assertEqual(self.device().holder, shown)

    def test_unreadable(self) -> None:
        """If the list cannot be read what was known plugIds, and nothing more becomes known."""
        self.start()
        self.kernel.importDevice("1-1", ALICE)
        self.tick()

        def refuse() -> bytes:
            raise PermissionError(1, os.strerror(1))

        self.kernel.connections = refuse  # type: ignore[method-assign]
        self.kernel.importDevice("1-2", BOB)
        self.tick()
        self.assertEqual(self.addresses(), [ALICE, None])

    def test_readOnlyInUse(self) -> None:
        """The list of connections is read only while a device is in use, and in a thread."""
        self.start()
        for _ in range(30):
            self.tick()
        self.assertNotIn("connections", self.kernel.reads)
        self.kernel.importDevice("1-1", ALICE)
        self.reactor.hold = True
        self.tick()
        while self.reactor.threads:
            self.assertNotIn("connections", self.kernel.reads)
            if self.device().state is DeviceState.IN_USE:
                break
            before = len(self.kernel.reads)
            self.reactor.threads.pop(0)()
            if "connections" in self.kernel.reads[before:]:
                break
        else:
            self.fail("it was not read")
        self.reactor.runThreads()
        self.assertEqual(self.addresses(), [ALICE])
