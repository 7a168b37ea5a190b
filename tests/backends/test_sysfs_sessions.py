"""
Tests of L{usbip_server.backends.sysfs} on a kernel in memory: export and release.
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

REFUSALS = (
    (errno.EACCES, "1-1/usbip_sockfd, which the kernel creates again with each attach"),
    (errno.EPERM, "Install the udev rule that comes with the systemd unit"),
    (errno.EROFS, "ReadWritePaths=/sys/bus/usb/drivers /sys/devices"),
)
"""The errno of a refused write to C{usbip_sockfd}, and the advice for it."""


class SessionCase(SysfsCase):
    """
    The device 1-1 is bound.
    """

    def setUp(self) -> None:
        super().setUp()
        self.successResultOf(self.bind())
        self.kernel.writes.clear()

    def replug(self) -> None:
        """Replace the device by another one."""
        self.kernel.unplug("1-1")
        self.kernel.plug("1-1")


class ExportTests(SessionCase):
    """
    Export to a client that has connected.
    """

    def setUp(self) -> None:
        super().setUp()
        gc.collect()  # closes descriptors that other tests have left open
        self.patch(usbip_sockfd, "LOOKS", 4)
        self.ours, self.client = self.connect()

    def tearDown(self) -> None:
        super().tearDown()
        self.kernel.close()

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """A connection: the daemon's end and the client's."""
        ends = socket.socketpair()
        for end in ends:
            end.setblocking(False)
            self.addCleanup(end.close)
        return ends

    def export(self, holder: Holder = ALICE, busId: str = "1-1") -> Deferred[UsbDevice]:
        """Begin to export a device."""
        return Deferred.fromCoroutine(
            self.backend.export(self.device(busId), self.ours, holder, 30)
        )

    def descriptors(self) -> int:
        """The number of open descriptors of this process."""
        return len(os.listdir("/proc/self/fd"))

    def isShutDown(self) -> bool:
        """Is the client's connection shut down?"""
        try:
            return self.client.recv(1) == b""
        except BlockingIOError:
            return False

    def holder(self) -> str | None:
        """The address of the device's holder."""
        holder = self.device().holder
        return None if holder is None else holder.address

    def test_writes(self) -> None:
        """An export is one write, of a duplicate that is closed afterwards: only the kernel keeps a
        reference."""
        before = self.descriptors()
        during: list[int] = []
        self.onWrite(SOCKET, before=lambda: during.append(self.descriptors()))
        exported = self.successResultOf(self.export())
        self.assertEqual((exported.state, exported.holder), (DeviceState.IN_USE, ALICE))
        [(path, text)] = self.kernel.writes
        self.assertEqual((path, text.isdecimal()), (SOCKET, True))
        self.assertNotEqual(int(text), self.ours.fileno())
        self.assertEqual((during, self.descriptors()), ([before + 1], before + 1))

    def test_shown(self) -> None:
        """The client is shown as holder until its session has ended."""
        self.successResultOf(self.export())
        before = self.backend.inventory.snapshot
        self.reactor.pump([1] * 5)
        self.assertIs(self.backend.inventory.snapshot, before)
        self.kernel.resetting = 3
        self.kernel.releaseDevice("1-1")
        self.reactor.advance(1)
        self.assertEqual(self.device().holder, ALICE)  # it is being reset
        self.reactor.advance(1)
        self.assertEqual((self.device().state, self.device().holder), (DeviceState.BOUND, None))

    def test_reset(self) -> None:
        """An export waits while the device is being reset after the last session."""
        self.successResultOf(self.export())
        self.kernel.resetting = 4
        self.kernel.releaseDevice("1-1")
        self.assertTrue(self.isShutDown())
        self.ours, _ = self.connect()
        exported = self.successResultOf(self.export(BOB))
        self.assertEqual((exported.state, exported.holder), (DeviceState.IN_USE, BOB))
        self.assertEqual(len(self.kernel.writes), 2)

    def test_inUse(self) -> None:
        """For a device that is in use, or free, nothing is written."""
        self.successResultOf(self.export())
        self.kernel.writes.clear()
        self.ours, _ = self.connect()
        self.fails(self.export(BOB), "in use by 192.0.2.7", DeviceInUse)
        self.fails(self.export(busId="1-2"), "1-2 (USB device 46f4:0001) is not attached")
        self.assertEqual((self.kernel.writes, self.device().holder), ([], ALICE))

    def test_meanwhile(self) -> None:
        """An export fails if something else happens to the device just before the write."""
        for happens, text in (
            (lambda: self.kernel.importDevice("1-1"), "in use"),
            (lambda: self.kernel.unload(), "is not attached"),
            (lambda: self.kernel.unplug("1-1"), "it was unplugged"),
            (self.replug, "plugged in again"),
        ):
            write = self.kernel.write
            self.onWrite(SOCKET, before=happens)
            self.fails(self.export(), text)
            self.assertIsNone(self.backend.inventory.get("1-1") and self.holder())
            self.kernel.write = write  # type: ignore[method-assign]
            if self.backend.inventory.get("1-1") is None:
                self.kernel.plug("1-1")
            self.kernel.loaded = True
            self.reactor.deliver()
            self.successResultOf(self.unbind())
            self.successResultOf(self.bind())

    def test_endsAtOnce(self) -> None:
        """A session that ends before the device is read again leaves no trace."""
        write = self.kernel.write
        self.onWrite(SOCKET, after=lambda: self.kernel.releaseDevice("1-1"))
        self.assertIs(self.successResultOf(self.export()).state, DeviceState.BOUND)
        self.kernel.write = write  # type: ignore[method-assign]
        self.kernel.importDevice("1-1")
        self.reactor.advance(2)
        self.assertIsNone(self.holder())

    def test_refused(self) -> None:
        """If the kernel refuses the write, the message contains advice, and the client's connection
        stays as it is."""
        before = self.descriptors()
        advice = (errno.EPERM, "Or say `export: off`, and run usbipd as root")
        for number, text in (*REFUSALS, advice, (errno.EIO, "cannot export 1-1")):
            self.kernel.refuse = number
            self.fails(self.export(), text)
            self.assertEqual((self.device().state, self.device().holder), (DeviceState.BOUND, None))
        self.assertEqual((self.descriptors(), self.isShutDown()), (before, False))

    def test_permittedLater(self) -> None:
        """After a bind, an export waits two seconds for udev to permit the write, once."""
        self.kernel.refuse = errno.EACCES
        for tries in (40, 1):
            self.kernel.writes.clear()
            self.fails(self.export(), "Install the udev rule")
            self.assertEqual(self.kernel.writes, [(SOCKET, self.kernel.writes[0][1])] * tries)
        self.kernel.refuse, self.kernel.forbidding = 0, 39
        self.rebind("1-1")
        self.successResultOf(self.bind())
        self.assertIs(self.successResultOf(self.export()).state, DeviceState.IN_USE)

    def test_permissionDeadline(self) -> None:
        """This wait ends at the deadline."""
        self.kernel.forbidding = 1
        self.rebind("1-1")
        self.successResultOf(self.bind())
        self.reactor.hold = True
        self.onWrite(SOCKET, before=lambda: self.reactor.advance(31))
        result = self.export()
        self.reactor.runThreads()
        self.fails(result, "has not finished the export within 30 s", OperationTimedOut)
        self.assertIs(self.device().state, DeviceState.BOUND)
        self.assertEqual([path for path, _ in self.kernel.writes].count(SOCKET), 1)

    def test_notExportable(self) -> None:
        """A socket that is not a stream, or closed, and a device that could not be reset."""
        stream, self.ours = self.ours, socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.fails(self.export(), "usbip-host does not take the connection")
        self.ours.close()
        self.fails(self.export(), "Bad file descriptor")
        self.ours = stream
        self.kernel.breakDevice("1-1")
        self.fails(self.export(), "could not reset 1-1 (USB device 46f4:0001): attach it again")

    def test_lateSuccess(self) -> None:
        """An export that succeeds after its deadline is undone; the duplicate is open until
        then."""
        during: list[int] = []

        def late() -> None:
            if not during:
                self.reactor.advance(31)
                self.ours.close()
                during.append(self.descriptors())

        self.onWrite(SOCKET, before=late)
        before = self.descriptors()
        self.reactor.hold = True
        result = self.export()
        self.reactor.runThreads()
        self.fails(result, "has not finished the export within 30 s", OperationTimedOut)
        self.assertEqual([text for _, text in self.kernel.writes][1:], ["-1"])
        self.assertTrue(self.isShutDown())
        self.assertEqual((during, self.descriptors()), ([before], before - 1))
        self.reactor.advance(1)
        self.assertEqual((self.device().state, self.device().holder), (DeviceState.BOUND, None))

    def test_neverBegun(self) -> None:
        """A thread that begins after the deadline writes nothing."""
        before = self.descriptors()
        self.reactor.hold = True
        result = self.export()
        held = self.takeThread()
        self.reactor.advance(31)
        self.fails(result, "has not finished the export", OperationTimedOut)
        self.fails(self.export(), "still stuck", OperationTimedOut)
        self.assertEqual(self.descriptors(), before)
        held()
        self.assertEqual(self.kernel.writes, [])
        self.successResultOf(self.export())


class ReleaseTests(SessionCase):
    """
    The end of the session of a client that has imported 1-1.
    """

    def setUp(self) -> None:
        super().setUp()
        self.kernel.importDevice("1-1")
        self.reactor.advance(2)

    def whileReset(self, function: Callable[[], object]) -> None:
        """Call a function when the state is read after the session."""
        self.kernel.resetting = 10**9
        read = self.kernel.read

        def wrapped(path: str) -> bytes:
            if path.endswith("1-1/usbip_status") and self.kernel.writes:
                function()
            return read(path)

        self.patch(self.kernel, "read", wrapped)

    def test_writes(self) -> None:
        """A release is one write, whatever state the inventory shows; without a session nothing is
        written."""
        for writes in (1, 2):
            released = self.successResultOf(self.release())
            self.assertEqual(self.kernel.writes, [(SOCKET, "-1")] * writes)
            self.assertEqual((released.state, released), (DeviceState.BOUND, self.device()))
            self.kernel.resetting = 3
            self.kernel.importDevice("1-1")  # possible at once
        self.successResultOf(self.release())
        self.kernel.writes.clear()
        for busId in ("1-1", "1-2"):
            self.successResultOf(self.release(busId))
        self.assertEqual(self.kernel.writes, [])
        self.assertIsNone(self.backend.traffic(self.device()))

    def test_beforeUnbind(self) -> None:
        """An unbind of a device in use ends the session first."""
        self.assertIs(self.successResultOf(self.unbind()).state, DeviceState.FREE)
        paths = [path.rpartition("/")[2] for path, _ in self.kernel.writes]
        self.assertEqual(paths, ["usbip_sockfd", "unbind", "bind"])

    def test_unbindWithoutPermission(self) -> None:
        """If that is not permitted, the device is unbound all the same."""

        def refuse() -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        self.onWrite(SOCKET, before=refuse)
        self.assertIs(self.successResultOf(self.unbind()).state, DeviceState.FREE)

    def test_endedMeanwhile(self) -> None:
        """A session that ends by itself just before the write is a success."""
        self.onWrite(SOCKET, before=lambda: self.kernel.releaseDevice("1-1"))
        self.assertIs(self.successResultOf(self.release()).state, DeviceState.BOUND)

    def test_unboundMeanwhile(self) -> None:
        """So is a device that another program unbinds then."""
        self.onWrite(SOCKET, before=self.kernel.unload)
        self.assertIs(self.successResultOf(self.release()).state, DeviceState.FREE)

    def test_refused(self) -> None:
        """If the kernel refuses the write, the message contains advice, and the session goes
        on."""
        for number, text in (*REFUSALS, (errno.EIO, "cannot kick 1-1")):
            self.kernel.refuse = number
            self.fails(self.release(), text)
            self.assertIs(self.device().state, DeviceState.IN_USE)

    def test_permittedLater(self) -> None:
        """After a bind, a release waits for udev to permit the write, once."""
        self.kernel.releaseDevice("1-1")
        self.successResultOf(self.unbind())
        for forbidding, isPermitted in ((39, True), (40, False)):
            self.kernel.forbidding = forbidding
            self.successResultOf(self.bind())
            self.kernel.importDevice("1-1")
            if not isPermitted:
                self.fails(self.release(), "Install the udev rule")
            self.successResultOf(self.release())
            self.successResultOf(self.unbind())

    def test_unplugged(self) -> None:
        """A release fails if the device is unplugged before the write."""
        self.onWrite(SOCKET, before=lambda: self.kernel.unplug("1-1"))
        self.fails(self.release(), "it was unplugged")
        self.reactor.deliver()
        self.assertIsNone(self.backend.inventory.get("1-1"))

    def test_unpluggedWhileReset(self) -> None:
        """The same while the device is being reset."""
        self.whileReset(lambda: self.kernel.unplug("1-1"))
        self.fails(self.release(), "it was unplugged")

    def test_replugged(self) -> None:
        """A device that comes back from the reset as another one is a failure."""

        def replug() -> None:
            self.kernel.writes.clear()
            self.replug()

        self.whileReset(replug)
        self.fails(self.release(), "plugged in again")

    def test_broken(self) -> None:
        """So is one that cannot be reset."""
        self.whileReset(lambda: self.kernel.breakDevice("1-1"))
        self.fails(self.release(), "could not reset")
        self.assertIs(self.device().state, DeviceState.ERROR)

    def test_deadline(self) -> None:
        """A reset that does not end fails the release at its deadline."""
        self.reactor.hold = True
        self.whileReset(lambda: self.reactor.advance(31))
        result = self.release()
        self.reactor.runThreads()
        self.fails(result, "has not finished the kick within 30 s", OperationTimedOut)

    def test_stuck(self) -> None:
        """Until the write has returned the device is shown as C{error}, and every operation
        fails."""
        self.reactor.hold = True
        result = self.release()
        held = self.takeThread()
        self.reactor.advance(31)
        self.fails(result, "has not finished the kick", OperationTimedOut)
        self.assertIs(self.device().state, DeviceState.ERROR)
        for operation in (self.release, self.bind, self.unbind):
            self.fails(operation(), "still stuck", OperationTimedOut)
        held()
        self.assertIs(self.device().state, DeviceState.BOUND)
