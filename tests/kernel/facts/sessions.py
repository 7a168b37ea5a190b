"""Facts about sessions: C{usbip_sockfd}, C{usbip_status}, and the list of TCP connections."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

from tests.kernel.facts.cases import DEVICES, HostFactCase
from usbip_server.kernel.importers import USBIPD_PORT, established


class SessionFacts(HostFactCase):
    """C{usbip_sockfd} and C{usbip_status}: sections 3, 5 and 6."""

    def test_sessionBegins(self) -> None:
        """Section 3: a session begins with the descriptor of a stream socket, of which the kernel
        keeps a reference of its own: to close the descriptor does not disturb the session. Section
        5: a socket of a pair works. During a session another one is refused."""
        self.bind()
        client = self.begin()
        self.assertEqual(self.status(), 2)
        other, _ = self.pair()
        self.refusedSocket(errno.EINVAL, str(other.fileno()))
        client.setblocking(False)
        self.assertRaises(BlockingIOError, client.recv, 1)
        self.assertEqual(self.status(), 2)

    def test_descriptorRefused(self) -> None:
        """Section 3: a descriptor that is not a stream socket of this process, and text that is not
        a number, is refused with EINVAL, and no reference is kept. A device that is not bound does
        not have the attribute."""
        self.refusedSocket(errno.ENOENT, "-1")
        self.bind()
        datagrams, _ = self.pair(socket.SOCK_DGRAM)
        udp = socket.socket(type=socket.SOCK_DGRAM)
        self.addCleanup(udp.close)
        before = os.listdir("/proc/self/fd")
        with open(os.devnull) as file:
            numbers = (datagrams.fileno(), udp.fileno(), file.fileno(), 12345, -2)
            for text in (*map(str, numbers), "x", "-", " \n"):
                self.refusedSocket(errno.EINVAL, text)
        self.assertEqual(os.listdir("/proc/self/fd"), before)
        self.assertEqual(self.status(), 1)

    def test_blanksTolerated(self) -> None:
        """Section 3: blanks before the number are skipped, and what follows it is not looked at."""
        self.bind()
        ours, _ = self.pair()
        self.hand(f" {ours.fileno()}x\n")
        self.assertEqual(self.status(), 2)

    def test_minusOneEndsSession(self) -> None:
        """Sections 3 and 6: C{-1} ends a session. The device is reset then: for a moment its status
        is still 2. Without a session C{-1} is refused."""
        self.bind()
        self.refusedSocket(errno.EINVAL, "-1")
        client = self.begin()
        self.hand("-1\n")
        self.assertEqual(self.status(), 2)
        self.untilAvailable()
        self.assertEqual(client.recv(1), b"")
        self.refusedSocket(errno.EINVAL, "-1")
        self.begin()
        self.assertEqual(self.status(), 2)

    def test_beginAfterEnd(self) -> None:
        """Section 3: a session that follows upon another is refused with EINVAL for as long as the
        reset has not begun. (Once it has begun, a real kernel lets the writer wait until it is
        over, and the session begins.)"""
        self.bind()
        self.begin()
        self.hand("-1")
        other, client = self.pair()
        client.setblocking(False)
        try:
            self.hand(str(other.fileno()))
        except OSError as error:
            self.assertEqual(error.errno, errno.EINVAL)
            self.untilAvailable()
            self.hand(str(other.fileno()))
        self.assertEqual(self.status(), 2)
        self.assertRaises(BlockingIOError, client.recv, 1)

    def test_clientCloses(self) -> None:
        """Section 3: when the client closes its end, the status is 1 after the reset. A copy of the
        descriptor that is kept is then at end of file."""
        self.bind()
        ours, client = self.pair()
        ours.settimeout(10)
        self.hand(str(ours.fileno()))
        self.leave(client)
        self.assertEqual(self.status(), 2)
        self.untilAvailable()
        self.assertEqual(ours.recv(1), b"")

    def test_connectionIsShutDown(self) -> None:
        """Section 3: the kernel shuts the connection down at the end of a session, for each way to
        end one, though a copy of the descriptor is kept."""
        for end in (
            lambda client: self.hand("-1"),
            self.breakSession,
            lambda client: self.write(f"usbip-host/unbind={self.busId}"),
            lambda client: self.unload(),
            lambda client: self.unplug(),
        ):
            self.load()
            if self.driver() == "usb":
                self.take()
            if self.driver() is None:
                self.write(f"usbip-host/match_busid=add {self.busId}")
                self.write(f"usbip-host/bind={self.busId}")
            elif self.status() != 1:
                self.until(lambda: self.status() in (1, 3), "the device is reset")
                self.write(f"usbip-host/unbind={self.busId}", f"usbip-host/bind={self.busId}")
            ours, client = self.pair()
            self.hand(str(ours.fileno()))
            client.settimeout(10)
            end(client)
            self.assertEqual(client.recv(1), b"")
            ours.close()

    def test_statusOfError(self) -> None:
        """Section 2: a device that C{usbip-host} cannot use any more has the status 3: new sessions
        and C{-1} are refused, until it is unbound and bound."""
        self.bind()
        client = self.begin()
        self.breakSession(client)
        self.until(lambda: self.status() == 3, "the device has the status of an error")
        self.assertEqual(client.recv(1), b"")
        self.refusedSocket(errno.EINVAL, "-1")
        ours, _ = self.pair()
        self.refusedSocket(errno.EINVAL, str(ours.fileno()))
        self.write(f"usbip-host/unbind={self.busId}", f"usbip-host/bind={self.busId}")
        self.assertEqual(self.status(), 1)

    def test_unplugWhileUsed(self) -> None:
        """Section 6: when a device is unplugged during a session, the session ends; the entry
        stays."""
        self.bind()
        client = self.begin()
        self.unplug()
        self.assertEqual(client.recv(1), b"")
        self.assertNotIn(self.busId, self.system.list(DEVICES))
        self.assertEqual(self.table(), [self.busId])
        self.assertEqual(self.assertRaises(OSError, self.status).errno, errno.ENOENT)

    def test_unbindWhileUsed(self) -> None:
        """Section 6: when a device is unbound during a session, the session ends. There is no
        session when it is bound again."""
        self.bind()
        client = self.begin()
        self.unbind()
        self.assertEqual((self.driver(), client.recv(1)), ("usb", b""))
        self.bindAgain()
        self.assertEqual(self.status(), 1)


class ConnectionFacts(HostFactCase):
    """The kernel's list of TCP connections.

    @ivar importDevice: imports the bound device, as a client at L{address}.
    @ivar releaseDevice: ends that client's session at the client."""

    address = "127.0.0.9"
    importDevice: Callable[[], None]
    releaseDevice: Callable[[], None]

    def clients(self) -> list[str]:
        """The addresses that are connected to the port of USB/IP."""
        return [each.remote for each in established(self.system.connections(), USBIPD_PORT)]

    def test_connection(self) -> None:
        """Section 3: the connection of a session is in the list of TCP connections for as long as
        the session lasts."""
        self.bind()
        self.assertEqual(self.clients(), [])
        self.importDevice()
        self.assertEqual((self.status(), self.clients()), (2, [self.address]))
        self.releaseDevice()
        self.untilAvailable()
        self.until(lambda: not self.clients(), "the connection is gone")

    def test_connectionUnbound(self) -> None:
        """Section 3: the connection of a device that is unbound is gone from the list."""
        self.bind()
        self.importDevice()
        self.assertEqual(self.clients(), [self.address])
        self.unbind()
        self.until(lambda: not self.clients(), "the connection is gone")
