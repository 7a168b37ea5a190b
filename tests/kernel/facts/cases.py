"""Base classes of the facts: a kernel, real or in memory, and helpers for C{usbip-host}."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from usbip_server.kernel.system import ISystem, UeventSocket

if TYPE_CHECKING:
    from twisted.trial.unittest import SynchronousTestCase as Base
else:
    Base = object

DEVICES = "bus/usb/devices"
DRIVERS = "bus/usb/drivers"
HOST = f"{DRIVERS}/usbip-host"


class FactCase(Base):
    """A kernel, real or in memory. Mix a class that is derived from this into a
    C{twisted.trial.unittest.SynchronousTestCase}, and implement the methods that are declared as
    attributes, for each kind of machine.

    @ivar system: the kernel.
    @ivar until: waits until a condition, which the second argument describes, is true; fails if it
        does not become true."""

    system: ISystem
    until: Callable[[Callable[[], object], str], None]

    def assertRefused(self, number: int, write: Callable[[str], None], *texts: str) -> None:
        """Assert that each of some writes fails with an errno."""
        for text in texts:
            error = self.assertRaises(OSError, write, text)
            self.assertEqual(errno.errorcode[error.errno], errno.errorcode[number], text)


class HostFactCase(FactCase):
    """A machine with a device. Each test begins with C{usbip-host} loaded and its table empty.

    @ivar busId: of a device with one interface, plugged in and bound to its local drivers.
    @ivar plug: plugs in the device again, and waits until its drivers are bound.
    @ivar unplug: unplugs the device, and waits until the kernel has removed it.
    @ivar importForeign: imports a device of another machine until the end of the test; returns its
        bus id here.
    @ivar hub: returns the bus id of a hub without devices, whose driver is bound again at the end
        of the test.
    @ivar unload: unloads C{usbip-host}.
    @ivar load: loads C{usbip-host}.
    @ivar leave: closes the client's end of a session, so that the kernel notices.
    @ivar breakSession: makes C{usbip-host} fail in a way that makes the device unusable."""

    busId: str
    plug: Callable[[], None]
    unplug: Callable[[], None]
    importForeign: Callable[[], str]
    hub: Callable[[], str]
    unload: Callable[[], None]
    load: Callable[[], None]
    leave: Callable[[socket.socket], None]
    breakSession: Callable[[socket.socket], None]

    def write(self, *steps: str) -> None:
        """Write to attributes of drivers: C{usbip-host/bind=1-1}."""
        for step in steps:
            attribute, _, text = step.partition("=")
            self.system.write(f"{DRIVERS}/{attribute}", text.encode())

    def refused(self, number: int, *steps: str) -> None:
        """Write to attributes of drivers; the last write fails with an errno."""
        self.write(*steps[:-1])
        self.assertRefused(number, self.write, steps[-1])

    def bind(self) -> None:
        """Bind the device to C{usbip-host}, in the recommended order."""
        self.take()
        self.write(f"usbip-host/match_busid=add {self.busId}", f"usbip-host/bind={self.busId}")

    def take(self) -> None:
        """Unbind the device from the driver C{usb}."""
        self.write(f"usb/unbind={self.busId}")

    def bindAgain(self) -> None:
        """Bind the device to C{usbip-host}, whose table has its entry."""
        self.take()
        self.write(f"usbip-host/bind={self.busId}")

    def unbind(self) -> None:
        """Give the device back to the driver C{usb}, in the recommended order."""
        self.write(f"usbip-host/unbind={self.busId}", f"usb/bind={self.busId}")

    def driver(self) -> str | None:
        """The driver that the device is bound to."""
        try:
            return self.system.readlink(f"{DEVICES}/{self.busId}/driver").rpartition("/")[2]
        except OSError:
            return None

    def table(self) -> list[str]:
        """The names in C{match_busid}."""
        names = self.system.read(f"{HOST}/match_busid")
        self.assertTrue(names.endswith(b"\n"))
        return names[:-1].decode().split(" ")[:-1]

    def number(self, name: str) -> int:
        """An attribute of the device that is a number."""
        return int(self.system.read(f"{DEVICES}/{self.busId}/{name}"))

    def status(self) -> int:
        """C{usbip_status} of the device."""
        return self.number("usbip_status")

    def untilAvailable(self) -> None:
        """Wait until C{usbip_status} of the device is 1."""
        self.until(lambda: self.status() == 1, "the device is available")

    def hasInterface(self) -> bool:
        """Does the device have its interface?"""
        return f"{self.busId}:1.0" in self.system.list(DEVICES)

    def hand(self, text: str) -> None:
        """Write to C{usbip_sockfd} of the device."""
        self.system.write(f"{DEVICES}/{self.busId}/usbip_sockfd", text.encode())

    def refusedSocket(self, number: int, text: str) -> None:
        """Write to C{usbip_sockfd}, which fails with an errno."""
        self.assertRefused(number, self.hand, text)

    def pair(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> list[socket.socket]:
        """Both ends of a pair of Unix sockets."""
        ends = socket.socketpair(type=kind)
        for end in ends:
            self.addCleanup(end.close)
        return list(ends)

    def begin(self) -> socket.socket:
        """Begin a session of the bound device.

        @return: the client's end."""
        ours, client = self.pair()
        self.hand(f"{ours.fileno()}\n")
        ours.close()
        client.settimeout(10)
        return client

    def assertAnnounced(self, act: Callable[[], object], *expected: str) -> None:
        """Assert that the kernel sends these uevents of the device, and no others.

        @param expected: the action, then for a device C{usb} or C{usbip-host} if there is a key
            C{DRIVER}, for an interface C{:1.0}. The action C{change} is left out: the kernel
            sends it at some of the times."""
        uevents = self.ueventSocket()
        act()
        received: list[str] = []

        def isComplete() -> bool:
            received.extend(self.announced(uevents))
            return len(received) >= len(expected)

        with contextlib.suppress(AssertionError):
            self.until(isComplete, f"{expected} is announced")
        self.assertEqual(received, [*expected])

    def ueventSocket(self) -> UeventSocket:
        """A socket that receives uevents until the end of the test."""
        uevents = self.system.ueventSocket()
        self.addCleanup(uevents.close)
        return uevents

    def announced(self, uevents: UeventSocket, busId: str = "") -> list[str]:
        """The uevents since the last call, as in L{assertAnnounced}.

        @param busId: by default that of the device."""
        received: list[str] = []
        while True:
            try:
                message, sender = uevents.recvfrom(8192)
            except BlockingIOError:
                return received
            self.assertEqual(sender, (0, 1))
            header, *lines, end = message.decode().split("\0")
            fields = dict(line.split("=", 1) for line in lines)
            self.assertEqual((header, end), ("{ACTION}@{DEVPATH}".format(**fields), ""))
            name = fields["DEVPATH"].rpartition("/")[2]
            device, colon, number = name.partition(":")
            isMeant = device == (busId or self.busId) and fields["SUBSYSTEM"] == "usb"
            if not isMeant or fields["ACTION"] == "change":
                continue
            self.assertEqual(fields["DEVTYPE"], "usb_interface" if colon else "usb_device")
            words = [fields["ACTION"], f":{number}" if colon else fields.get("DRIVER", "")]
            received.append(" ".join(filter(None, words)))
