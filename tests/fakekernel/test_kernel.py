"""
The kernel in memory has the sins of the real one: our tests would notice them.
"""

from __future__ import annotations

import errno
import os
import socket

from twisted.trial.unittest import SynchronousTestCase

from usbip_server.testing import FakeKernel, KernelBug

DRIVERS = "bus/usb/drivers/"


DEVICE = "bus/usb/devices/1-1/"


class FakeKernelTests(SynchronousTestCase):
    """
    Each deadly order of writes, by its number in the list of them.
    """

    def setUp(self) -> None:
        self.kernel = FakeKernel()
        self.kernel.plug("1-1")

    def write(self, *steps: str) -> None:
        """Write some steps, C{attribute=text}."""
        for step in steps:
            attribute, _, text = step.partition("=")
            self.kernel.write(DRIVERS + attribute, text.encode())

    def bind(self) -> None:
        """What a proper bind writes."""
        self.write("usb/unbind=1-1", "usbip-host/match_busid=add 1-1", "usbip-host/bind=1-1")

    def assertDead(self, *steps: str) -> None:
        """These steps kill it, and it stays dead."""
        with self.assertRaises(KernelBug):
            self.write(*steps)
        with self.assertRaises(KernelBug):
            self.kernel.list("bus/usb/devices")

    def refused(self, number: int, *steps: str) -> None:
        """These steps are refused."""
        with self.assertRaises(OSError) as caught:
            self.write(*steps)
        self.assertEqual(caught.exception.errno, number)

    def test_rebindBound(self) -> None:
        """1: rebind of a bound device, then unbind."""
        self.bind()
        self.write("usbip-host/rebind=1-1")
        self.assertDead("usbip-host/unbind=1-1")

    def test_rebindNeverBound(self) -> None:
        """2: rebind of a bus id that was never bound."""
        self.write("usbip-host/match_busid=add 1-1")
        self.assertDead("usbip-host/rebind=1-1")

    def test_rebindUnplugged(self) -> None:
        """3: rebind of a bus id whose device was unplugged since."""
        self.bind()
        self.kernel.unplug("1-1")
        self.kernel.plug("1-1")
        self.assertDead("usbip-host/rebind=1-1")

    def test_delBound(self) -> None:
        """4: del of a bound device makes every later bind fail."""
        self.bind()
        self.write("usbip-host/match_busid=del 1-1", "usbip-host/unbind=1-1")
        self.refused(errno.ENODEV, "usbip-host/match_busid=add 1-1", "usbip-host/bind=1-1")

    def test_rebindSafely(self) -> None:
        """Rebind of a device that is with its driver again frees its place."""
        self.bind()
        self.write("usbip-host/unbind=1-1", "usb/bind=1-1", "usbip-host/rebind=1-1")
        self.assertEqual(self.kernel.table(), [])
        self.assertEqual(self.kernel.driver("1-1"), "usb")

    def test_lineFeed(self) -> None:
        """A line feed becomes a part of the name."""
        self.write("usbip-host/match_busid=add 1-1\n", "usb/unbind=1-1")
        self.refused(errno.ENODEV, "usbip-host/bind=1-1")

    def test_full(self) -> None:
        """The 17th name does not fit."""
        self.kernel.fillTable(*map(str, range(16)))
        self.refused(errno.ENOMEM, "usbip-host/match_busid=add 1-1")

    def test_busy(self) -> None:
        """A device that has a driver is busy."""
        self.refused(errno.EBUSY, "usbip-host/match_busid=add 1-1", "usbip-host/bind=1-1")

    def test_unknown(self) -> None:
        """An unknown bus id, a bad verb."""
        self.refused(errno.ENODEV, "usb/unbind=7-7")
        self.refused(errno.ENODEV, "usbip-host/rebind=7-7")
        self.refused(errno.EINVAL, "usbip-host/match_busid=put 7-7")

    def test_end(self) -> None:
        """A session is ended by what is written to the device, which is reset then."""
        self.bind()
        self.kernel.importDevice("1-1")
        self.kernel.resetting = 2
        self.kernel.write(f"{DEVICE}usbip_sockfd", b"-1\n")
        status = [self.kernel.read(f"{DEVICE}usbip_status") for _ in range(4)]
        self.assertEqual(status, [b"2\n", b"2\n", b"1\n", b"1\n"])

    def test_endRefused(self) -> None:
        """Where there is no session that is invalid, as is anything else; what is not bound
        does not have it at all."""
        self.refusedSocket(errno.ENOENT, "-1")
        self.bind()
        self.refusedSocket(errno.EINVAL, "-1")
        self.refusedSocket(errno.EINVAL, "x")

    def refusedSocket(self, number: int, text: str) -> None:
        """What is written for a connection is refused."""
        with self.assertRaises(OSError) as caught:
            self.kernel.write(f"{DEVICE}usbip_sockfd", text.encode())
        self.assertEqual(caught.exception.errno, number)

    def connect(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> list[socket.socket]:
        """Both ends of a connection."""
        ends = socket.socketpair(type=kind)
        for end in ends:
            end.settimeout(0)
            self.addCleanup(end.close)
        return list(ends)

    def begin(self) -> socket.socket:
        """A session begins. Its other end."""
        ours, client = self.connect()
        self.kernel.write(f"{DEVICE}usbip_sockfd", f"{ours.fileno()}\n".encode())
        ours.close()
        return client

    def test_begin(self) -> None:
        """A session begins with the descriptor of a connection, of which it keeps a reference,
        and from which nothing is read here."""
        self.bind()
        client = self.begin()
        client.send(b"x")
        self.assertEqual(self.kernel.read(f"{DEVICE}usbip_status"), b"2\n")
        self.assertRaises(BlockingIOError, client.recv, 1)
        self.refusedSocket(errno.EINVAL, str(client.fileno()))  # it has one
        self.kernel.unplug("1-1")

    def test_beginRefused(self) -> None:
        """What is no socket of this process, or none of a stream, is invalid."""
        self.bind()
        datagrams, _ = self.connect(socket.SOCK_DGRAM)
        before = os.listdir("/proc/self/fd")
        with open(os.devnull) as file:
            for number in (datagrams.fileno(), file.fileno(), 12345, 1 << 40, -2):
                self.refusedSocket(errno.EINVAL, str(number))
        self.assertEqual(os.listdir("/proc/self/fd"), before)
        self.assertEqual(self.kernel.read(f"{DEVICE}usbip_status"), b"1\n")

    def test_shutDown(self) -> None:
        """Whatever ends a session, the connection is shut down."""
        for end in (
            lambda: self.kernel.write(f"{DEVICE}usbip_sockfd", b"-1"),
            lambda: self.kernel.releaseDevice("1-1"),
            lambda: self.kernel.breakDevice("1-1"),
            lambda: self.write("usbip-host/unbind=1-1"),
            lambda: self.kernel.unload(),
            lambda: self.kernel.unplug("1-1"),
        ):
            self.kernel = FakeKernel()
            self.kernel.plug("1-1")
            self.bind()
            client = self.begin()
            end()
            self.assertEqual(client.recv(1), b"")
