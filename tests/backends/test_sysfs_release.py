"""
The sysfs backend ends sessions, and the kernel does not always do its part.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from tests.backends.sysfscase import SysfsCase
from usbip_server.model.device import DeviceState
from usbip_server.model.errors import OperationTimedOut

SOCKET = "bus/usb/devices/1-1/usbip_sockfd"
STATUS = "bus/usb/devices/1-1/usbip_status"


class ReleaseTests(SysfsCase):
    """
    1-1 is bound, and a client has it.
    """

    def setUp(self) -> None:
        super().setUp()
        self.successResultOf(self.bind())
        self.kernel.importDevice("1-1")
        self.reactor.advance(2)
        self.kernel.writes.clear()

    def test_beforeUnbind(self) -> None:
        """A device that a client has is unbound when its session has been ended, and not
        before."""
        self.assertIs(self.successResultOf(self.unbind()).state, DeviceState.FREE)
        paths = [path.rpartition("/")[2] for path, _ in self.kernel.writes]
        self.assertEqual(paths, ["usbip_sockfd", "unbind", "bind"])

    def test_unbindAllTheSame(self) -> None:
        """It is unbound also if the session cannot be ended first: that takes it, too."""

        def refuse() -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        self.beforeWrite(refuse)
        self.assertIs(self.successResultOf(self.unbind()).state, DeviceState.FREE)

    def beforeWrite(self, function: Callable[[], object]) -> None:
        """Something happens in the moment before the session would be ended."""
        write = self.kernel.write

        def slow(path: str, data: bytes) -> None:
            if path == SOCKET:
                function()
            write(path, data)

        self.kernel.write = slow  # type: ignore[method-assign]

    def whileReset(self, function: Callable[[], object]) -> None:
        """Something happens while the device is reset after the session."""
        self.kernel.resetting = 10**9
        read = self.kernel.read

        def look(path: str) -> bytes:
            if path == STATUS and self.kernel.writes:
                function()
            return read(path)

        self.kernel.read = look  # type: ignore[method-assign]

    def test_writes(self) -> None:
        """To end a session is one write; the device stays bound."""
        self.assertIs(self.device().state, DeviceState.IN_USE)
        released = self.successResultOf(self.release())
        self.assertEqual(self.kernel.writes, [(SOCKET, "-1")])
        self.assertEqual((released.state, released), (DeviceState.BOUND, self.device()))

    def test_reset(self) -> None:
        """It is over when the device has been reset: then it can be imported."""
        self.kernel.resetting = 3
        self.successResultOf(self.release())
        self.kernel.importDevice("1-1")

    def test_unseen(self) -> None:
        """What counts is what the kernel says, not what the inventory has seen so far."""
        self.successResultOf(self.release())
        self.kernel.importDevice("1-1")
        self.assertIs(self.device().state, DeviceState.BOUND)
        self.successResultOf(self.release())
        self.assertEqual(len(self.kernel.writes), 2)

    def test_unused(self) -> None:
        """Nothing is written where there is no session."""
        self.successResultOf(self.release())
        self.kernel.writes.clear()
        self.successResultOf(self.release())
        self.successResultOf(self.release("1-2"))
        self.assertEqual(self.kernel.writes, [])

    def test_ended(self) -> None:
        """A session that ends of itself in the same moment is as good."""
        self.beforeWrite(lambda: self.kernel.releaseDevice("1-1"))
        self.assertIs(self.successResultOf(self.release()).state, DeviceState.BOUND)

    def test_unboundMeanwhile(self) -> None:
        """So is one whose device somebody else unbinds in the same moment."""
        self.beforeWrite(lambda: self.kernel.unload())
        self.assertIs(self.successResultOf(self.release()).state, DeviceState.FREE)

    def test_noPermission(self) -> None:
        """If the kernel refuses, the message says what is needed; the session goes on."""
        for number, text in (
            (errno.EACCES, "1-1/usbip_sockfd, which the kernel makes anew with each attach"),
            (errno.EPERM, "Install the udev rule that comes with the systemd unit"),
            (errno.EROFS, "ReadWritePaths=/sys/bus/usb/drivers /sys/devices"),
            (errno.EIO, "cannot kick 1-1"),
        ):
            self.kernel.refuse = number
            self.fails(self.release(), text)
            self.assertIs(self.device().state, DeviceState.IN_USE)

    def test_permittedLater(self) -> None:
        """
        After a bind it is waited for the permission, which comes with udev. That is waited for
        once.
        """
        self.kernel.releaseDevice("1-1")
        self.successResultOf(self.unbind())
        for forbidding, permitted in ((39, True), (40, False)):
            self.kernel.forbidding = forbidding
            self.successResultOf(self.bind())
            self.kernel.importDevice("1-1")
            if not permitted:
                self.fails(self.release(), "Install the udev rule")
            self.successResultOf(self.release())
            self.successResultOf(self.unbind())

    def test_vanishing(self) -> None:
        """A device that vanishes before it or while it is reset is a plain failure."""
        self.beforeWrite(lambda: self.kernel.unplug("1-1"))
        self.fails(self.release(), "it was unplugged")
        self.reactor.deliver()
        self.assertIsNone(self.backend.inventory.get("1-1"))

    def test_vanishingWhileReset(self) -> None:
        """The same while it is reset, be there another one by then or not."""
        self.whileReset(lambda: self.kernel.unplug("1-1"))
        self.fails(self.release(), "it was unplugged")

    def test_replugged(self) -> None:
        """A device that the reset makes another one of is not what was asked for."""

        def replug() -> None:
            self.kernel.writes.clear()
            self.kernel.unplug("1-1")
            self.kernel.plug("1-1")

        self.whileReset(replug)
        self.fails(self.release(), "plugged in again")

    def test_broken(self) -> None:
        """A device that cannot be reset cannot be imported: that is a failure."""
        self.whileReset(lambda: self.kernel.breakDevice("1-1"))
        self.fails(self.release(), "could not reset")
        self.assertIs(self.device().state, DeviceState.ERROR)

    def test_stuck(self) -> None:
        """A reset that does not come to its end is given up in time."""
        self.reactor.hold = True
        self.whileReset(lambda: self.reactor.advance(31))
        result = self.release()
        self.reactor.runThreads()
        self.fails(result, "has not finished the kick within 30 s", OperationTimedOut)

    def test_stuckShown(self) -> None:
        """Until it does it is shown as an error, and asked for again it is still stuck."""
        self.reactor.hold = True
        result = self.release()
        [held] = self.reactor.threads
        self.reactor.threads.clear()
        self.reactor.hold = False
        self.reactor.advance(31)
        self.fails(result, "has not finished the kick", OperationTimedOut)
        self.assertIs(self.device().state, DeviceState.ERROR)
        for ask in (self.release, self.bind, self.unbind):
            self.fails(ask(), "still stuck", OperationTimedOut)
        held()
        self.assertIs(self.device().state, DeviceState.BOUND)

    def test_traffic(self) -> None:
        """What a session moves is not known."""
        self.assertIsNone(self.backend.traffic(self.device()))
