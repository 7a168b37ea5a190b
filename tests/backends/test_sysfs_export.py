"""
The sysfs backend gives devices to clients, and the kernel does not always take part.
"""

from __future__ import annotations

import errno
import gc
import os
import socket
from collections.abc import Callable

from twisted.internet.defer import Deferred

from tests.backends.sysfscase import SysfsCase
from usbip_server.kernel import usbip_sockfd
from usbip_server.model.device import DeviceState, Holder, UsbDevice
from usbip_server.model.errors import DeviceInUse, OperationTimedOut

SOCKET = "bus/usb/devices/1-1/usbip_sockfd"

ALICE = Holder(address="192.0.2.7", since=1000.0)
BOB = Holder(address="192.0.2.8", since=2000.0)


class ExportTests(SysfsCase):
    """
    1-1 is bound, and a client has connected.
    """

    def setUp(self) -> None:
        super().setUp()
        gc.collect()  # closes what other tests have left open
        self.patch(usbip_sockfd, "LOOKS", 4)
        self.successResultOf(self.bind())
        self.kernel.writes.clear()
        self.ours, self.client = self.connect()

    def tearDown(self) -> None:
        super().tearDown()
        self.kernel.close()

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Our end of a connection, and the client's."""
        ends = socket.socketpair()
        for end in ends:
            end.setblocking(False)
            self.addCleanup(end.close)
        return ends

    def export(self, holder: Holder = ALICE, busId: str = "1-1") -> Deferred[UsbDevice]:
        """Begin to give it to the client."""
        return Deferred.fromCoroutine(
            self.backend.export(self.device(busId), self.ours, holder, 30)
        )

    def descriptors(self) -> int:
        """How many are open."""
        return len(os.listdir("/proc/self/fd"))

    def beforeWrite(self, function: Callable[[], object]) -> None:
        """Something happens in the moment before the connection would be handed over."""
        write = self.kernel.write

        def slow(path: str, data: bytes) -> None:
            if path == SOCKET and data != b"-1":
                function()
            write(path, data)

        self.kernel.write = slow  # type: ignore[method-assign]

    def isShutDown(self, client: socket.socket) -> bool:
        """Has the client heard of the end of its session?"""
        try:
            return client.recv(1) == b""
        except BlockingIOError:
            return False

    def test_writes(self) -> None:
        """To give a device away is one write, of a descriptor that is open meanwhile; only the
        kernel keeps one."""
        open_ = self.descriptors()
        numbers: list[int] = []
        self.beforeWrite(lambda: numbers.append(self.descriptors()))
        exported = self.successResultOf(self.export())
        self.assertEqual((exported.state, exported.holder), (DeviceState.IN_USE, ALICE))
        [(path, text)] = self.kernel.writes
        self.assertEqual((path, text.isdecimal()), (SOCKET, True))
        self.assertNotEqual(int(text), self.ours.fileno())
        self.assertEqual((numbers, self.descriptors()), ([open_ + 1], open_ + 1))

    def test_shown(self) -> None:
        """It is its holder's until the session has ended."""
        self.successResultOf(self.export())
        before = self.backend.inventory.snapshot
        self.reactor.pump([1] * 5)
        self.assertIs(self.backend.inventory.snapshot, before)
        self.kernel.releaseDevice("1-1")
        self.successResultOf(Deferred.fromCoroutine(self.backend.refresh(self.device())))
        self.assertEqual((self.device().state, self.device().holder), (DeviceState.BOUND, None))

    def test_reset(self) -> None:
        """While it is reset after the last session it is waited for."""
        self.successResultOf(self.export())
        self.kernel.resetting = 4
        self.kernel.releaseDevice("1-1")
        self.assertTrue(self.isShutDown(self.client))
        self.ours, _ = self.connect()
        exported = self.successResultOf(self.export(BOB))
        self.assertEqual((exported.state, exported.holder), (DeviceState.IN_USE, BOB))
        self.assertEqual(len(self.kernel.writes), 2)

    def test_shownWhileReset(self) -> None:
        """A device that is being reset is shown as its last client's, and then as free."""
        self.successResultOf(self.export())
        self.kernel.resetting = 3
        self.kernel.releaseDevice("1-1")
        self.reactor.advance(1)
        self.assertEqual(self.device().holder, ALICE)
        self.reactor.advance(1)
        self.assertIs(self.device().state, DeviceState.BOUND)

    def test_inUse(self) -> None:
        """One that another client has is not to be had; the kernel is not even asked."""
        self.successResultOf(self.export())
        self.kernel.writes.clear()
        self.ours, _ = self.connect()
        self.fails(self.export(BOB), "in use by 192.0.2.7", DeviceInUse)
        self.assertEqual(self.kernel.writes, [])
        self.assertEqual(self.device().holder, ALICE)

    def test_quicker(self) -> None:
        """Nor one that another client gets in the same moment: who it is is not known."""
        self.beforeWrite(lambda: self.kernel.importDevice("1-1"))
        self.fails(self.export(), "in use", DeviceInUse)
        holder = self.device().holder
        self.assertIsNone(holder and holder.address)

    def test_free(self) -> None:
        """One that is not bound is not either."""
        self.fails(
            self.export(busId="1-2"), "1-2 (USB device 46f4:0001) is not attached: attach it"
        )
        self.assertEqual(self.kernel.writes, [])

    def test_noPermission(self) -> None:
        """If the kernel refuses, the message says what is needed; the client hears nothing."""
        open_ = self.descriptors()
        for number, text in (
            (errno.EACCES, "1-1/usbip_sockfd, which the kernel makes anew with each attach"),
            (errno.EPERM, "Or say `export: off`, and run usbipd as root"),
            (errno.EROFS, "ReadWritePaths=/sys/bus/usb/drivers /sys/devices"),
            (errno.EIO, "cannot export 1-1"),
        ):
            self.kernel.refuse = number
            self.fails(self.export(), text)
            self.assertEqual((self.device().state, self.device().holder), (DeviceState.BOUND, None))
        self.assertEqual((self.descriptors(), self.isShutDown(self.client)), (open_, False))

    def test_permittedLater(self) -> None:
        """
        The kernel makes the file for root; a daemon that is not root waits until udev has said
        that it may write it, for two seconds after a bind, and not again.
        """
        self.kernel.refuse = errno.EACCES
        for tries in (40, 1):
            self.kernel.writes.clear()
            self.fails(self.export(), "Install the udev rule")
            self.assertEqual(self.kernel.writes, [(SOCKET, self.kernel.writes[0][1])] * tries)
        self.kernel.refuse, self.kernel.forbidding = 0, 39
        self.successResultOf(self.unbind())
        self.successResultOf(self.bind())
        self.assertIs(self.successResultOf(self.export()).state, DeviceState.IN_USE)

    def test_permissionGivenUp(self) -> None:
        """That is given up with the rest of the export."""
        self.kernel.forbidding = 1
        self.successResultOf(self.unbind())
        self.successResultOf(self.bind())
        self.reactor.hold = True
        self.beforeWrite(lambda: self.reactor.advance(31))
        result = self.export()
        self.reactor.runThreads()
        self.fails(result, "has not finished the export within 30 s", OperationTimedOut)
        self.assertIs(self.device().state, DeviceState.BOUND)
        self.assertEqual([path for path, _ in self.kernel.writes].count(SOCKET), 1)

    def test_noStream(self) -> None:
        """A socket that is no stream is not taken."""
        self.ours = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(self.ours.close)
        self.fails(self.export(), "usbip-host does not take the connection")

    def test_closed(self) -> None:
        """Nor is one that is closed."""
        self.ours.close()
        self.fails(self.export(), "Bad file descriptor")

    def test_broken(self) -> None:
        """A device that could not be reset after the last session says what to do."""
        self.kernel.breakDevice("1-1")
        self.fails(self.export(), "could not reset 1-1 (USB device 46f4:0001): attach it again")

    def test_vanishing(self) -> None:
        """A device that vanishes in the same moment is a plain failure."""
        self.beforeWrite(lambda: self.kernel.unplug("1-1"))
        self.fails(self.export(), "it was unplugged")

    def test_replugged(self) -> None:
        """Another one at its place is not what was asked for."""

        def replug() -> None:
            self.kernel.unplug("1-1")
            self.kernel.plug("1-1")

        self.beforeWrite(replug)
        self.fails(self.export(), "plugged in again")

    def test_unboundMeanwhile(self) -> None:
        """So is one that somebody else unbinds in the same moment."""
        self.beforeWrite(lambda: self.kernel.unload())
        self.fails(self.export(), "is not attached")

    def test_stuck(self) -> None:
        """
        If the kernel does not take the connection in time, that is given up; it stays open until
        then, and the session that begins after all is ended.
        """
        open_: list[int] = []

        def late() -> None:
            self.reactor.advance(31)
            self.ours.close()
            open_.append(self.descriptors())

        self.beforeWrite(late)
        before = self.descriptors()
        self.reactor.hold = True
        result = self.export()
        self.reactor.runThreads()
        self.fails(result, "has not finished the export within 30 s", OperationTimedOut)
        self.assertEqual([text for _, text in self.kernel.writes][1:], ["-1"])
        self.assertTrue(self.isShutDown(self.client))
        self.assertEqual((open_, self.descriptors()), ([before], before - 1))
        self.reactor.advance(1)
        self.assertEqual((self.device().state, self.device().holder), (DeviceState.BOUND, None))

    def test_neverBegun(self) -> None:
        """If the thread has not even begun it does nothing when it does."""
        before = self.descriptors()
        self.reactor.hold = True
        result = self.export()
        [held] = self.reactor.threads
        self.reactor.threads.clear()
        self.reactor.hold = False
        self.reactor.advance(31)
        self.fails(result, "has not finished the export", OperationTimedOut)
        self.assertEqual(self.descriptors(), before)
        self.fails(self.export(), "still stuck", OperationTimedOut)
        self.assertEqual(self.descriptors(), before)
        held()
        self.assertEqual(self.kernel.writes, [])
        self.successResultOf(self.export())

    def test_releasedMeanwhile(self) -> None:
        """A session that ends before anybody has looked has left no trace."""
        write = self.kernel.write

        def short(path: str, data: bytes) -> None:
            write(path, data)
            self.kernel.releaseDevice("1-1")

        self.kernel.write = short  # type: ignore[method-assign]
        self.assertIs(self.successResultOf(self.export()).state, DeviceState.BOUND)
        self.kernel.write = write  # type: ignore[method-assign]
        self.kernel.importDevice("1-1")
        self.reactor.advance(2)
        holder = self.device().holder
        self.assertIsNone(holder and holder.address)
