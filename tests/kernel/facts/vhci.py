"""Facts about C{vhci_hcd}."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Callable

from tests.kernel.facts.cases import FactCase

VHCI = "devices/platform/vhci_hcd.0"

LOW, HIGH, SUPER = 1, 3, 5
"""C{enum usb_device_speed}."""

FREE, INITIALISING, USED = 4, 5, 6
"""C{VDEV_ST_NULL}, C{VDEV_ST_NOTASSIGNED} and C{VDEV_ST_USED} (C{include/uapi/linux/usbip.h})."""

HEADER = "hub port sta spd dev      sockfd local_busid"
EMPTY = "000 00000000 000000 0-0"
"""What the line of a port ends with that has no device, or none yet."""


class VhciFacts(FactCase):
    """Mix this into a test case for each kind of machine. Each test begins with C{vhci_hcd} loaded
    and all ports free.

    @ivar serve: begins a session at a server of a device of a speed, L{HIGH} or L{SUPER}; returns
        the client's end of the connection, a socket of a pair, and the number of the device. Called
        once in a test.
    @ivar endAtServer: ends the session at the server.
    @ivar hasEndedAtServer: has the server noticed the end of the session?"""

    serve: Callable[[int], tuple[socket.socket, int]]
    endAtServer: Callable[[], None]
    hasEndedAtServer: Callable[[], bool]

    def lines(self) -> list[str]:
        """The lines of all ports."""
        found: list[str] = []
        names = ("status", *(f"status.{number}" for number in range(1, self.controllers())))
        for name in names:
            header, *lines = self.system.read(f"{VHCI}/{name}").decode().splitlines()
            self.assertEqual(header, HEADER)
            found += lines
        self.assertEqual(len(found), int(self.system.read(f"{VHCI}/nports")))
        return found

    def line(self, number: int) -> list[str]:
        """The fields of a port's line."""
        return self.lines()[number].split()

    def state(self, number: int) -> int:
        """The state of a port."""
        return int(self.line(number)[2])

    def numbersOf(self, hub: str) -> list[int]:
        """The numbers of the ports of a kind of hub, C{hs} or C{ss}."""
        return [n for n, line in enumerate(self.lines()) if line.startswith(f"{hub} ")]

    def attach(self, text: str) -> None:
        """Write to C{attach}."""
        self.system.write(f"{VHCI}/attach", text.encode())

    def detach(self, text: str) -> None:
        """Write to C{detach}."""
        self.system.write(f"{VHCI}/detach", text.encode())

    def untilFree(self, number: int) -> None:
        """Wait until a port is free."""
        self.until(lambda: self.state(number) == FREE, "the port is free")

    def untilNoticed(self) -> None:
        """Wait until the server has noticed that the session has ended."""
        self.until(self.hasEndedAtServer, "the server has noticed")

    def imported(self, speed: int = HIGH, port: int | None = None) -> int:
        """Import a device over a socket of a pair, whose descriptor is closed afterwards.

        @param port: the port; by default the first of the right kind.
        @return: the port."""
        ours, self.deviceId = self.serve(speed)
        if port is None:
            port = self.numbersOf("ss" if speed == SUPER else "hs")[0]
        with ours:
            self.descriptor = ours.fileno()
            self.attach(f"{port} {self.descriptor} {self.deviceId} {speed}")
        return port

    def settled(self, number: int) -> str:
        """Wait until a port has a device, and the device its interface: what is detached before
        that may keep the kernel from using the port for a while.

        @return: the folder of the device."""
        self.until(lambda: self.state(number) == USED, "the port has a device")
        busId = self.line(number)[-1]
        folder = self.folder(busId, number)
        self.until(lambda: self.isThere(folder), "the device has a folder")
        self.until(lambda: f"{busId}:1.0" in self.system.directories(folder), "it has an interface")
        return folder

    def assertUsed(self, number: int, speed: int) -> str:
        """Assert that a port comes to have the device; returns its folder."""
        folder = self.settled(number)
        hub = "ss" if speed == SUPER else "hs"
        expected = f"{hub} {number:04} 006 {speed:03} {self.deviceId:08x} {self.descriptor:06}"
        self.assertEqual(self.line(number), [*expected.split(), folder.rpartition("/")[2]])
        return folder

    def folder(self, busId: str, number: int) -> str:
        """The folder of the device at a port."""
        controller = number // (len(self.lines()) // self.controllers())
        bus = busId.partition("-")[0]
        return f"devices/platform/vhci_hcd.{controller}/usb{bus}/{busId}"

    def controllers(self) -> int:
        """How many controllers there are: each has a file."""
        names = self.system.list(VHCI)
        return sum(re.fullmatch(r"status(\.[1-9][0-9]*)?", name) is not None for name in names)

    def test_ports(self) -> None:
        """Section 4: the first controller's folder has C{attach}, C{detach}, C{nports}, and a
        status file for each controller, with a line for each port, first those of the high speed
        hub, then as many of the super speed hub."""
        self.assertLessEqual({"attach", "detach", "nports", "status"}, {*self.system.list(VHCI)})
        lines = self.lines()
        each = len(lines) // self.controllers() // 2
        for number, line in enumerate(lines):
            hub = "ss" if number // each % 2 else "hs"
            self.assertEqual(line, f"{hub}  {number:04} 004 {EMPTY}")

    def test_hubs(self) -> None:
        """Section 4: each controller has two hubs, with the speeds 480 and 5000 or more. (5000 in
        Linux 6.1, 10000 in Linux 6.12.)"""
        for controller in range(self.controllers()):
            folder = f"devices/platform/vhci_hcd.{controller}"
            names = self.system.directories(folder)
            hubs = [f"{folder}/{name}" for name in names if re.fullmatch("usb[0-9]+", name)]
            slow, fast = sorted(int(self.system.read(f"{hub}/speed")) for hub in hubs)
            self.assertEqual(slow, 480)
            self.assertIn(fast, (5000, 10000))

    def test_attachHighSpeed(self) -> None:
        """Sections 4 and 5: a high speed device is imported over a socket of a pair. While the
        kernel enumerates it the state is 5 and the other fields of the line are zero; then the
        state is 6 and the line has the device, and the descriptor as it was in the process that
        wrote it. The device gets a folder below that of its hub, which may be a moment later."""
        self.attachAt(HIGH)

    def test_attachSuperSpeed(self) -> None:
        """Sections 4 and 5: a super speed device is imported in the same way."""
        self.attachAt(SUPER)

    def attachAt(self, speed: int) -> None:
        """Import a device, check its line and its folder, and detach it."""
        number = self.imported(speed)
        self.assertEqual(self.line(number)[2:], ["005", *EMPTY.split()])
        folder = self.assertUsed(number, speed)
        mbit = 5000 if speed == SUPER else 480
        self.assertEqual(int(self.system.read(f"{folder}/speed")), mbit)
        self.assertFalse(self.hasEndedAtServer())
        self.detach(str(number))
        self.untilFree(number)
        self.assertEqual(self.line(number)[2:], ["004", *EMPTY.split()])
        self.untilNoticed()

    def test_speedSelectsHub(self) -> None:
        """Section 4: the speed selects the hub: a super speed device that is written to port 0, of
        the high speed hub, is at the same place of the super speed hub."""
        self.imported(SUPER, 0)
        self.assertUsed(self.numbersOf("ss")[0], SUPER)
        self.assertEqual(self.state(0), FREE)

    def test_usedPortRefused(self) -> None:
        """Section 4: a port that has a device is refused with EBUSY, also while the device is not
        known yet; a bad descriptor is refused with EINVAL all the same."""
        number = self.imported()
        other = socket.socket()
        self.addCleanup(other.close)
        self.assertEqual(self.state(number), INITIALISING)
        line = f"{number} {other.fileno()} 1 {HIGH}"
        self.assertRefused(errno.EBUSY, self.attach, line)
        self.assertUsed(number, HIGH)
        self.assertRefused(errno.EBUSY, self.attach, line)
        self.assertRefused(errno.EINVAL, self.attach, f"{number} 9999 1 {HIGH}")

    def test_attachRefused(self) -> None:
        """Section 4: EINVAL for an unknown speed or port, fewer than four numbers, a negative port,
        and what is no stream socket."""
        stream, datagrams = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
        self.addCleanup(stream.close)
        self.addCleanup(datagrams.close)
        with open("/dev/null") as file:
            self.assertRefused(
                errno.EINVAL,
                self.attach,
                f"0 {stream.fileno()} 1 0",
                f"0 {stream.fileno()} 1 7",
                f"{len(self.lines())} {stream.fileno()} 1 {LOW}",
                f"0 {stream.fileno()} 1",
                f"-1 {stream.fileno()} 1 {LOW}",
                "x",
                f"0 9999 1 {LOW}",
                f"0 {datagrams.fileno()} 1 {LOW}",
                f"0 {file.fileno()} 1 {LOW}",
            )

    def test_detachRefused(self) -> None:
        """Section 4: EINVAL for a port that is free or unknown, and for text that is not a
        number."""
        texts = ("0", str(len(self.lines())), "abc", "-1", "0 1", " 0")
        self.assertRefused(errno.EINVAL, self.detach, *texts)

    def test_lineFeedTolerated(self) -> None:
        """Section 4: a line feed after the numbers is tolerated, and so is more after those of
        C{attach}."""
        ours, deviceId = self.serve(HIGH)
        with ours:
            self.attach(f" 0  {ours.fileno()} {deviceId} {HIGH} 7\n")
        self.settled(0)
        self.detach("0\n")
        self.untilFree(0)

    def test_detachBeforeEnumerated(self) -> None:
        """Section 4: a device can be detached while the kernel enumerates it. (A real kernel may
        need long before it uses the port again: this is one that no other test uses.)"""
        number = self.imported(HIGH, self.numbersOf("hs")[-1])
        self.assertEqual(self.state(number), INITIALISING)
        self.detach(str(number))
        self.untilFree(number)
        self.untilNoticed()

    def test_serverEndsSession(self) -> None:
        """Section 4: when the server ends the session the port is free and the device gone."""
        number = self.imported()
        folder = self.assertUsed(number, HIGH)
        self.endAtServer()
        self.untilFree(number)
        self.until(lambda: not self.isThere(folder), "the device is gone")

    def isThere(self, folder: str) -> bool:
        """Is there such a folder?"""
        hub, _, busId = folder.rpartition("/")
        return busId in self.system.directories(hub)

    def test_keptDescriptorAtEndOfFile(self) -> None:
        """Section 4: a copy of the descriptor that we keep is at its end when the session is."""
        ours, deviceId = self.serve(HIGH)
        self.addCleanup(ours.close)
        ours.settimeout(10)
        self.attach(f"0 {ours.fileno()} {deviceId} {HIGH}")
        self.settled(0)
        self.detach("0")
        self.untilFree(0)
        self.untilNoticed()
        while ours.recv(4096):
            pass
