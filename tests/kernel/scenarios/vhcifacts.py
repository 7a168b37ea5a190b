"""The facts of L{tests.kernel.facts.vhci} on real kernels."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

from tests.kernel import guest
from tests.kernel.daemoncase import GuestCase
from tests.kernel.facts.vhci import FREE, HIGH, SUPER, VHCI, VhciFacts
from usbip_server.kernel.system import System

DEVICES = {HIGH: guest.KEYBOARD, SUPER: guest.FAST_DISK}
"""By their speed."""

SUPER_PLUS = 6
"""C{USB_SPEED_SUPER_PLUS}."""


def isSuperPlusKnown() -> bool:
    """Does C{vhci_hcd} support speeds above 5 Gbit/s?"""
    version = os.uname().release.split(".")
    return (int(version[0]), int(version[1])) >= (6, 12)


class VhciTests(VhciFacts, GuestCase):
    """The facts of L{VhciFacts}: the server is this machine's C{usbip-host}."""

    def setUp(self) -> None:
        super().setUp()
        self.system = System()
        self.busId = ""

    def test_superPlus(self) -> None:
        """Section 4: Linux 6.1 refuses the speed C{USB_SPEED_SUPER_PLUS} with EINVAL, and the speed
        of its fast hubs is 5000. Linux 6.12 accepts it at the same hub, whose speed is 10000."""
        ours, deviceId = self.serve(SUPER)
        line = f"0 {ours.fileno()} {deviceId} {SUPER_PLUS}"
        number = self.numbersOf("ss")[0]
        if isSuperPlusKnown():
            self.attach(line)
            self.settled(number)
            self.assertEqual(self.line(number)[3], "006")
        else:
            self.assertRefused(errno.EINVAL, self.attach, line)
        speeds = {
            self.system.read(f"{VHCI}/{name}/speed")
            for name in self.system.directories(VHCI)
            if name.startswith("usb")
        }
        self.assertEqual(speeds, {b"480\n", b"10000\n" if isSuperPlusKnown() else b"5000\n"})

    def serve(self, speed: int) -> tuple[socket.socket, int]:
        device = DEVICES[speed]
        self.busId = device.busId
        if speed == SUPER:
            self.plugFastDisk()
        guest.waitPresent(device.busId)
        ours, server = socket.socketpair()
        self.addCleanup(guest.forget, device.busId)
        self.addCleanup(self._detach)
        self.addCleanup(ours.close)
        guest.check("usbip", "bind", "-b", device.busId)
        with server:
            self._write("usbip_sockfd", str(server.fileno()))
        bus, number = (int(str(guest.attribute(device.busId, n))) for n in ("busnum", "devnum"))
        return ours, bus << 16 | number

    def _detach(self) -> None:
        """Free all ports, and wait until the devices are gone, which is later. D12: a device that
        is attached to a port before that may replace the old one, and the state of the port stays
        5."""
        for number, line in enumerate(self.lines()):
            if int(line.split()[2]) != FREE:
                self.system.write(f"{VHCI}/detach", str(number).encode())
        guest.waitNothingImported()
        self.until(self.hasEndedAtServer, "the server's device is available")

    def endAtServer(self) -> None:
        self._write("usbip_sockfd", "-1")

    def hasEndedAtServer(self) -> bool:
        return guest.usbipStatus(self.busId) == 1

    def until(self, condition: Callable[[], object], what: str) -> None:
        guest.waitUntil(condition, what, 20.0)

    def _write(self, name: str, text: str) -> None:
        self.system.write(f"bus/usb/devices/{self.busId}/{name}", text.encode())


del GuestCase  # base classes are not run
