"""
Tests of L{usbip_server.protocols.exporter_tls} and what it is made with: USB traffic over TLS.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import ssl
import struct
from typing import Any

from twisted.logger import LogLevel

from tests.protocols.securedcase import (
    BOUND,
    IMPORT,
    SecuredTestCase,
    TlsClient,
    connected,
    hasKtls,
    openFiles,
)
from tests.support.certificates import trusting
from tests.support.fixtures import EVERYBODY, UNO, PatientBackend
from usbip_server.model.device import DeviceState, Encryption, Holder
from usbip_server.model.usbip import OpStatus, encodeImport, encodeRefusal
from usbip_server.net.keepalive import KeepAlive
from usbip_server.net.relay import CHUNK
from usbip_server.net.tlssocket import CLOSING_SECONDS, TlsSocket
from usbip_server.server.config import Settings

MUCH = 4 * 1024 * 1024
SOME = random.Random(42).randbytes(MUCH)
OTHER = random.Random(43).randbytes(MUCH)

ROOM = 16 * 1024 * 1024
"""More than all buffers on the way take."""

RESET = struct.pack("ii", 1, 0)


class SessionTestCase(SecuredTestCase):
    """
    A client that has a device.
    """

    def tries(self, data: bytes) -> int:
        """The device sends as much as it can; how much?"""
        sent = 0
        with memoryview(data) as view, contextlib.suppress(BlockingIOError):
            while sent < len(data):
                sent += self.device.send(view[sent : sent + CHUNK])
        return sent

    def reads(self) -> bytes:
        """The device reads what there is."""
        with contextlib.suppress(BlockingIOError):
            return self.device.recv(CHUNK)
        return b""

    def readsAll(self, size: int) -> bytes:
        """The device reads until it has so many bytes."""
        read = bytearray()

        def hasAll() -> bool:
            read.extend(self.reads())
            return len(read) >= size

        self.until(hasAll)
        return bytes(read)

    def assertOver(self, told: int = 0) -> None:
        """The session is over on both sides, was looked after, and nothing is left."""
        self.until(lambda: not self.factory.relayed and self.wires[-1].lost)
        self.quiet()
        self.reactor.advance(0)
        self.assertEqual(self.backend.refreshed, [UNO.busId])
        self.reactor.advance(2)  # until it was looked at often enough
        self.assertNothingLeft()
        self.assertEqual(len(self.told()), told)

    def assertEndsAtDevice(self) -> None:
        """What the device has is shut down."""
        self.until(lambda: select.select([self.device], [], [], 0)[0])
        with contextlib.suppress(ConnectionResetError):
            self.assertEqual(self.device.recv(1), b"")


class RelayTests(SessionTestCase):
    """
    The kernel does not encrypt: everything passes through here.
    """

    def test_given(self) -> None:
        """
        The device gets one end of a socket pair and never the connection; the log and the
        holder show that.
        """
        self.imports()
        self.assertEqual(self.device.family, socket.AF_UNIX)
        holder = Holder(address="192.0.2.8", since=1000.0, encryption=Encryption.RELAY)
        self.assertEqual(self.backend.calls[0].holder, holder)
        [line] = self.told(LogLevel.info)
        self.assertIn("the kernel has no keys for sending and receiving", line)

    def test_order(self) -> None:
        """The device gets its end before the client gets its reply."""
        self.backend = PatientBackend((BOUND,))
        self.serve()
        client = self.asks(IMPORT)
        self.until(lambda: self.backend.calls)
        self.quiet()
        self.assertEqual(client.received, b"")
        device = self.backend.calls[0].succeed()
        self.until(lambda: len(client.received) == 320)
        self.assertEqual(bytes(client.received), encodeImport(device))

    def test_bothWays(self) -> None:
        """Bytes arrive unchanged in both directions, however much is sent at the same time."""
        client = self.imports()
        client.send(SOME)
        sent, read = 0, bytearray()

        def isDone() -> bool:
            nonlocal sent
            sent += self.tries(OTHER[sent : sent + CHUNK])
            read.extend(self.reads())
            return len(read) == len(client.received) == MUCH

        self.until(isDone)
        self.assertTrue(read == SOME)
        self.assertTrue(client.received == OTHER)
        self.assertEqual(self.told(), [])

    def test_small(self) -> None:
        """A single byte is relayed at once."""
        client = self.imports()
        for byte in (b"a", b"b"):
            client.send(byte)
            self.assertEqual(self.readsAll(1), byte)
            self.device.send(byte)
            self.until(lambda byte=byte: client.received == byte)  # type: ignore[misc]
            client.received.clear()

    def test_slowDevice(self) -> None:
        """A device that does not read stops its client, and no memory is used for the bytes."""
        client = self.imports()
        client.send(SOME, OTHER, SOME, OTHER)
        self.quiet()
        self.assertGreater(client.unsent, 0)
        self.assertEqual([writer.logPrefix() for writer in self.reactor.writers], ["relay"])
        self.assertNotIn("TLS", [reader.logPrefix() for reader in self.reactor.readers])
        read = self.readsAll(4 * MUCH)
        self.assertTrue(read == SOME + OTHER + SOME + OTHER)

    def test_slowClient(self) -> None:
        """A client that does not read stops the device."""
        client = self.imports()
        client.isReading = False
        sent = 0
        while more := self.tries(SOME):
            sent += more
            self.quiet()
            self.assertLess(sent, ROOM)
        client.isReading = True
        self.until(lambda: len(client.received) == sent)
        whole = SOME * (1 + sent // MUCH)
        self.assertTrue(client.received == whole[:sent] or sent > MUCH)

    def test_clientLeaves(self) -> None:
        """
        When a client disconnects, with close_notify, without, or by a reset, the session
        ends, and the next client can import the device.
        """
        for end in (self.takesLeave, TlsClient.close, self.cutsOff):
            self.backend.refreshed.clear()
            before = openFiles()
            client = self.imports()
            client.send(b"the last")
            self.assertEqual(self.readsAll(8), b"the last")
            end(client)
            self.assertEndsAtDevice()
            self.assertOver()
            if end == self.takesLeave:
                client.ssl.unwrap()  # it is answered in the same way
            self.leave()
            self.assertLessEqual(openFiles(), before + 2)  # epoll sets
            self.backend.inventory.replace([BOUND], {BOUND.busId})

    def test_leavesWithTheLast(self) -> None:
        """
        close_notify right behind the last data is recognized, although the socket does not
        become readable again.
        """
        client = self.imports()
        client.ssl.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.send(b"the last")
        self.takesLeave(client)
        self.reactor.deliver()
        self.reactor.advance(0)
        self.assertEqual(self.device.recv(CHUNK), b"the last")
        self.assertEqual(self.device.recv(CHUNK), b"")

    def takesLeave(self, client: TlsClient) -> None:
        """A client ends TLS properly, and waits."""
        with contextlib.suppress(ssl.SSLWantReadError):
            client.ssl.unwrap()

    def cutsOff(self, client: TlsClient) -> None:
        """A client's connection is reset."""
        client.ssl.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()

    def test_deviceEnds(self) -> None:
        """
        When the device's end is closed or shut down, as by a kick or an unplug, the client
        receives everything sent before, and close_notify.
        """
        for end in (socket.socket.close, lambda device: device.shutdown(socket.SHUT_RDWR)):
            self.backend.refreshed.clear()
            client = self.imports()
            self.device.send(b"the last")
            end(self.device)
            self.ends(client)
            self.assertEqual(bytes(client.received), b"the last")
            self.assertOver()
            self.leave()
            self.backend.inventory.replace([BOUND], {BOUND.busId})

    def test_notTaken(self) -> None:
        """A client that does not read what is left is disconnected after a while."""
        client = self.imports()
        client.isReading = False
        while self.tries(SOME):
            self.quiet()
        self.device.close()
        self.quiet()
        self.assertFalse(self.wires[-1].lost)
        self.reactor.advance(CLOSING_SECONDS)
        self.assertOver()

    def test_garbage(self) -> None:
        """
        Bytes that are not valid records end the session and are logged once; the device
        receives none of them.
        """
        client = self.imports()
        with socket.socket(fileno=os.dup(client.ssl.fileno())) as below:
            below.send(b"\x17\x03\x03\x00\x20" + bytes(32))
        self.assertEndsAtDevice()
        self.assertOver(told=1)

    def test_daemonStops(self) -> None:
        """
        A relayed session ends with the daemon, which is logged; the client receives
        close_notify.
        """
        client = self.imports()
        self.exporter.close()
        self.factory.close()
        self.assertIn("ends with the daemon", self.told(LogLevel.info)[-1])
        self.ends(client)
        self.assertEndsAtDevice()
        self.assertOver()

    def test_daemonStopsMeanwhile(self) -> None:
        """A device is released if its client was disconnected during the hand-over."""
        self.backend = PatientBackend((BOUND,))
        self.serve()
        before = openFiles()
        client = self.asks(IMPORT)
        self.until(lambda: self.backend.calls)
        self.exporter.close()
        self.ends(client)
        self.assertEqual(client.received, b"")
        self.backend.calls[0].succeed()
        self.assertOver()
        self.leave()
        self.assertLessEqual(openFiles(), before + 2)

    def test_connection(self) -> None:
        """
        The keepalive options are set on the client's connection. The traffic is counted on it, so
        it is more than the USB traffic.
        """
        self.settings.replace(Settings(access=EVERYBODY, keepalive=KeepAlive(idle=11)))
        client = self.imports()
        connection: socket.socket = self.wires[-1].transport.getHandle()  # type: ignore[attr-defined]
        self.assertEqual(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE), 11)
        client.send(b"x" * 1000)
        self.readsAll(1000)
        [device] = self.backend.inventory.snapshot.devices[:1]
        traffic = self.core.dispatcher.traffic(device)
        assert traffic is not None
        self.assertGreater(traffic.bytesIn, 1000)
        self.assertGreater(traffic.bytesOut, 320)

    def test_refused(self) -> None:
        """
        With C{require_ktls} a client is refused if the kernel cannot encrypt; the log says
        why and what to do, and no descriptor is left open.
        """
        self.settings.replace(Settings(access=EVERYBODY, requireKtls=True))
        before = openFiles()
        client = self.asks(IMPORT)
        self.ends(client)
        self.assertEqual(bytes(client.received), encodeRefusal(OpStatus.NA))
        self.assertTold("modprobe tls")
        self.leave()
        self.assertEqual(openFiles(), before)
        self.assertEqual(self.backend.calls, [])
        self.assertIs(self.backend.inventory.snapshot.devices[0].state, DeviceState.BOUND)


class Tls13Tests(SessionTestCase):
    """
    With TLS 1.3, for an OpenSSL that can hand the keys of that over.
    """

    def context(self) -> ssl.SSLContext:
        context = super().context()
        context.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
        return context

    def test_traffic(self) -> None:
        """
        With TLS 1.3 the session is relayed too, and a request right behind the handshake is
        answered.
        """
        client = self.imports()
        self.assertEqual(client.ssl.version(), "TLSv1.3")
        client.send(SOME)
        self.assertTrue(self.readsAll(MUCH) == SOME)
        self.device.send(b"pong")
        self.until(lambda: client.received == b"pong")
        client.close()
        self.assertEndsAtDevice()
        self.assertOver()


class GivenAwayTests(SecuredTestCase):
    """
    A connection that another one has.
    """

    def setUp(self) -> None:
        super().setUp()
        below, self.server = connected()
        self.addCleanup(self.server.close)
        self.closed: list[Exception | None] = []
        received: list[Any] = []
        self.tls = TlsSocket(
            self.server,
            self.context(),
            self.reactor,
            lambda: None,
            received.append,
            self.closed.append,
        )
        self.client = TlsClient(below, trusting())
        self.clients.append(self.client)
        self.tls.start()
        self.until(lambda: self.client.isShaken)
        self.quiet()

    def test_silent(self) -> None:
        """
        After C{giveAway} what was written is sent; then nothing is sent, not even
        close_notify, nothing is read, and the connection stays open.
        """
        before = openFiles()
        self.tls.write(b"answer")
        self.tls.giveAway()
        self.until(lambda: self.client.received == b"answer")
        self.assertEqual(openFiles(), before - 1)
        self.assertEqual((self.reactor.readers, self.reactor.writers), ([], []))
        self.client.send(b"traffic")
        self.quiet()
        self.assertGreater(len(self.server.recv(100, socket.MSG_PEEK)), 7)
        self.assertEqual(self.closed, [])
        for _ in range(2):
            self.tls.loseConnection()
        self.assertEqual(self.closed, [None])
        self.quiet()
        self.assertEqual((self.client.hasEnded, self.client.error), (False, None))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_late(self) -> None:
        """What could not be sent at once is sent before that."""
        self.client.isReading = False
        for _ in range(4):
            self.tls.write(SOME)
        self.assertGreater(self.tls.unsent, 0)
        self.tls.giveAway()
        self.assertEqual(self.reactor.writers, [self.tls])
        self.client.isReading = True
        self.until(lambda: len(self.client.received) == 4 * MUCH)
        self.assertTrue(self.client.received == 4 * SOME)
        self.assertEqual((self.reactor.readers, self.reactor.writers), ([], []))

    def test_gone(self) -> None:
        """The end of a connection before that is reported."""
        self.client.isReading = False
        for _ in range(4):
            self.tls.write(SOME)
        self.tls.giveAway()
        self.client.ssl.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.client.close()
        self.until(lambda: self.closed)
        self.assertIsInstance(self.closed[0], OSError)
        self.assertEqual((self.reactor.readers, self.reactor.writers), ([], []))


class KtlsTests(SessionTestCase):
    """
    The kernel encrypts. (Elsewhere than here it is proved where all kernels can.)
    """

    ktls = True
    if not hasKtls():
        skip = "this kernel has no module tls"

    def test_given(self) -> None:
        """The device gets the connection itself, and what it sends is encrypted."""
        client = self.imports()
        self.assertEqual(self.device.family, socket.AF_INET)
        self.assertEqual(self.factory.relayed, set())
        assert self.backend.calls[0].holder is not None
        self.assertIs(self.backend.calls[0].holder.encryption, Encryption.KTLS)
        client.send(b"ping")
        self.assertEqual(self.readsAll(4), b"ping")
        self.device.send(b"pong")
        self.until(lambda: client.received == b"pong")

    def test_ends(self) -> None:
        """Either side can end the session, and no descriptor is left open."""
        before = openFiles()
        for isClients in (True, False):
            self.backend.refreshed.clear()
            client = self.imports()
            if isClients:
                client.close()
                self.until(lambda: self.wires[-1].lost)
            else:
                self.device.shutdown(socket.SHUT_RDWR)
                self.until(lambda client=client: client.error)  # type: ignore[misc]
            self.assertOver()
            self.leave()
            self.backend.inventory.replace([BOUND], {BOUND.busId})
        self.assertLessEqual(openFiles(), before + 2)

    def test_daemonStops(self) -> None:
        """A session with kernel TLS outlasts the daemon."""
        client = self.imports()
        self.exporter.close()
        self.factory.close()
        client.send(b"ping")
        self.assertEqual(self.readsAll(4), b"ping")

    def test_pipelined(self) -> None:
        """A client that sends data before its reply gets no device."""
        client = self.connect()
        client.says(IMPORT, b"more")
        self.assertTold("after the request")
        self.assertEqual(self.backend.calls, [])
