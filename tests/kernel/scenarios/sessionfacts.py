"""The facts of L{tests.kernel.facts.sessions} on real kernels, and those that need a real process
or a real network."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import subprocess
import sys
import threading

from twisted.trial.unittest import SynchronousTestCase

from tests.kernel import guest
from tests.kernel.facts.cases import DEVICES
from tests.kernel.facts.sessions import ConnectionFacts, SessionFacts
from tests.kernel.facts.usbiphost import PLUGGED, UNPLUGGED
from tests.kernel.scenarios.facts import (
    CMD_SUBMIT,
    DEVICE,
    HIGH,
    RealMachine,
    attachAt,
    attachHere,
    detachAll,
    deviceId,
)
from tests.support.forking import enterNetwork
from usbip_server.kernel.importers import USBIPD_PORT
from usbip_server.net.keepalive import KeepAlive

SILENCE = 5.0
"""Seconds in which nothing happens, where nothing is to happen."""


class SessionTests(RealMachine, SessionFacts, SynchronousTestCase):
    """Sessions."""

    def test_beginWhileReset(self) -> None:
        """Section 3: a session that is to begin while the device is being reset is not refused: the
        writer waits until the reset is over. (C{event_handler} in
        C{drivers/usb/usbip/usbip_event.c} holds the lock that C{usbip_sockfd_store} takes.)"""
        self.bind()
        self.begin()
        resets = guest.dmesg().count("reset high-speed")
        self.hand("-1")
        guest.waitUntil(lambda: guest.dmesg().count("reset high-speed") > resets, "it is reset")
        client = self.begin()
        self.assertEqual(self.status(), 2)
        client.setblocking(False)
        self.assertRaises(BlockingIOError, client.recv, 1)

    def test_statusCannotBePolled(self) -> None:
        """Section 2: C{poll} of C{usbip_status} does not return when it changes."""
        self.bind()
        with open(f"/sys/{DEVICES}/{self.busId}/usbip_status") as file:
            file.read()
            poll = select.poll()
            poll.register(file, select.POLLPRI | select.POLLERR)
            poll.poll(0)
            before = poll.poll(0)
            self.leave(self.begin())
            self.untilAvailable()
            self.assertEqual(poll.poll(0), before)

    def test_sessionSurvivesItsProcess(self) -> None:
        """Section 3: a session goes on when the process that began it is killed at once, and the
        imported device is usable."""
        self.bind()
        server, client = self.pair()
        path = f"/sys/{DEVICES}/{self.busId}/usbip_sockfd"
        program = (
            "import os, sys; open(sys.argv[1], 'w').write(sys.argv[2]); os.kill(os.getpid(), 9)"
        )
        ended = subprocess.run(
            [sys.executable, "-c", program, path, str(server.fileno())],
            pass_fds=[server.fileno()],
            check=False,
        )
        self.assertEqual(ended.returncode, -9)
        server.close()
        self.assertEqual(self.status(), 2)
        busId = attachAt(self.system, client, deviceId(self.system, self.busId))
        client.close()
        self.assertEqual(guest.attribute(busId, "product"), DEVICE.product)
        self.assertEqual(self.status(), 2)

    def test_ueventsOfImportAtServer(self) -> None:
        """Section 2: what is announced of a device that a client imports. It has an interface from
        then on, without a driver, which is removed and added again for each later client. Nothing
        is announced when the client leaves."""
        self.bind()
        for changes in (["add :1.0"], ["remove :1.0", "add :1.0"]):
            self.assertAnnounced(self.importHere, *changes)
            self.assertTrue(self.hasInterface())
            self.assertAnnounced(self.leaveHere)
            self.assertTrue(self.hasInterface())
        self.assertAnnounced(self.unplug, "remove :1.0", "unbind", "remove")

    def test_ueventsOfImportAtClient(self) -> None:
        """Section 2: at the client an imported device has the uevents of plugging in and
        unplugging."""
        self.bind()
        uevents = self.ueventSocket()
        self.importHere()
        self.leaveHere()
        self.assertEqual(self.announced(uevents, self.imported), [*PLUGGED, *UNPLUGGED])

    def importHere(self) -> None:
        """Import the bound device on this machine, and wait until its drivers have it."""
        self.imported = attachHere(self.system, DEVICE, HIGH)
        # Of a device that is gone while it is probed no "bind" is announced.
        folder = guest.DEVICES_FOLDER / self.imported
        guest.waitUntil(
            lambda: [*folder.glob("*:*/0003:*/hidraw/hidraw*")], "its keyboard can be opened"
        )

    def leaveHere(self) -> None:
        """Detach it, and wait until the device is available again."""
        detachAll()
        guest.waitGone(self.imported)
        self.untilAvailable()

    def test_stockTool(self) -> None:
        """Sections 1 and 6: stock C{usbip} unbinds what was bound by writes of our own, during a
        session too, and frees the entry; writes of our own unbind what it has bound."""
        for isUsed in (False, True):
            self.bind()
            client = self.begin() if isUsed else None
            guest.check("usbip", "unbind", "-b", self.busId)
            self.assertEqual((self.driver(), self.table()), ("usb", []))
            if client is not None:
                self.assertEqual(client.recv(1), b"")
        guest.check("usbip", "bind", "-b", self.busId)
        self.assertEqual((self.status(), self.table()), (1, [self.busId]))
        self.unbind()
        self.assertEqual((self.driver(), self.table()), ("usb", [self.busId]))
        guest.check("usbip", "bind", "-b", self.busId)
        guest.check("usbip", "unbind", "-b", self.busId)
        self.assertEqual(self.table(), [])

    def test_driversProbe(self) -> None:
        """Section 1: C{drivers_probe} restores a device though its entry is still there."""
        self.bind()
        self.write(f"usbip-host/unbind={self.busId}")
        self.system.write("bus/usb/drivers_probe", self.busId.encode())
        self.assertEqual((self.driver(), self.table()), ("usb", [self.busId]))

    def test_endWakesEpoll(self) -> None:
        """Section 2: C{EPOLLRDHUP} on a copy of the descriptor wakes at the end of a session, and
        not when data come."""
        self.bind()
        server, client = self.pair()
        self.hand(str(server.fileno()))
        with select.epoll() as epoll:
            epoll.register(server, select.EPOLLRDHUP)
            busId = attachAt(self.system, client, deviceId(self.system, self.busId))
            client.close()
            self.assertEqual(epoll.poll(0), [])
            detachAll()
            self.assertTrue(epoll.poll(20))
        guest.waitGone(busId)


class VanishingTests(RealMachine, SynchronousTestCase):
    """Section 6, D9: the network to a client is down."""

    def setUp(self) -> None:
        super().setUp()
        self.elsewhere = guest.Elsewhere()
        self.elsewhere.__enter__()
        self.addCleanup(self.elsewhere.__exit__)
        self.bind()
        self.client = socketElsewhere(self.elsewhere)
        self.addCleanup(self.client.close)
        with socket.create_server((self.elsewhere.server, USBIPD_PORT)) as listening:
            self.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            self.client.connect((self.elsewhere.server, USBIPD_PORT))
            self.server, _ = listening.accept()
        self.addCleanup(self.server.close)
        self.hand(str(self.server.fileno()))

    def test_idleSessionDoesNotEnd(self) -> None:
        """D9: without keepalive options a session of a vanished client does not end. C{-1} frees
        the device."""
        self.assertKept()

    def test_unbind(self) -> None:
        """Section 6: a vanished client does not delay an unbind."""
        self.elsewhere.vanish()
        self.unbind()
        self.assertEqual(self.driver(), "usb")

    def test_keepAliveAfterHandOver(self) -> None:
        """Section 6: keepalive options that are set after the hand-over end the session."""
        KeepAlive(idle=1, interval=1, count=1, userTimeout=1).apply(self.server)
        self.assertFreed()

    def test_userTimeoutWithUnsentData(self) -> None:
        """Section 6: with unacknowledged data C{TCP_USER_TIMEOUT} ends the session, also if it is
        set after the hand-over."""
        self.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1500)
        self.fillBuffers()
        self.assertFreed()

    def test_keepAliveWithUnsentData(self) -> None:
        """Section 6: with unacknowledged data, keepalive options alone do not end the session."""
        self.server.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT):
            self.server.setsockopt(socket.IPPROTO_TCP, option, 1)
        self.fillBuffers()
        self.assertKept()

    def fillBuffers(self) -> None:
        """Send requests until the answers, which the client does not read, fill all buffers."""
        number = deviceId(self.system, self.busId)
        request = b"\x80\x06\0\x01\0\0\x12\0"
        self.client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for sequence in range(1, 2000):
                basic = struct.pack(">5I", CMD_SUBMIT, sequence, number, 1, 0)
                self.client.send(basic + struct.pack(">I4i8s", 0, 18, 0, 0, 0, request))
        guest.waitUntil(lambda: self.elsewhere.unsent() > 0, "the client's buffer is full")

    def hasEnded(self, seconds: float) -> bool:
        """Cut the network; does the session end within some seconds?"""
        self.elsewhere.vanish()
        with select.epoll() as epoll:
            epoll.register(self.server, select.EPOLLRDHUP)
            return bool(epoll.poll(seconds))

    def assertFreed(self) -> None:
        """When the network is down the session ends, and the device is free."""
        self.assertTrue(self.hasEnded(20))
        self.untilAvailable()

    def assertKept(self) -> None:
        """When the network is down the session goes on, until it is ended by C{-1}."""
        self.assertFalse(self.hasEnded(SILENCE))
        self.assertEqual(self.status(), 2)
        self.hand("-1")
        self.untilAvailable()


def socketElsewhere(elsewhere: guest.Elsewhere) -> socket.socket:
    """A TCP socket in another network namespace. A socket belongs to the namespace of the thread
    that makes it."""
    made: list[socket.socket] = []

    def make() -> None:
        enterNetwork(f"/run/netns/{elsewhere.name}")
        made.append(socket.socket())

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    (only,) = made
    return only


class ConnectionTests(RealMachine, ConnectionFacts, SynchronousTestCase):
    """The list of TCP connections."""

    def importDevice(self) -> None:
        with socket.create_server(("127.0.0.1", USBIPD_PORT)) as listening:
            address = ("127.0.0.1", USBIPD_PORT)
            self.client = socket.create_connection(address, source_address=(self.address, 0))
            self.addCleanup(self.client.close)
            ours, _ = listening.accept()
        with ours:
            self.hand(str(ours.fileno()))

    def releaseDevice(self) -> None:
        self.client.close()
