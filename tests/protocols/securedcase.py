"""
The export port with TLS, and clients with real connections, in one thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import select
import socket
import ssl
import termios
from collections.abc import Callable
from typing import Any, cast

from twisted.internet.address import IPv4Address
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.support.certificates import LAB, authority, signed, trusting
from tests.support.fixtures import (
    EVERYBODY,
    STICK,
    UNO,
    MemoryTransport,
    PatientBackend,
    PromptBackend,
    Wire,
    asked,
    changed,
)
from usbip_server.model.device import DeviceState, Holder, UsbDevice
from usbip_server.model.devicerules import Rule
from usbip_server.model.options import Limits
from usbip_server.model.policy import Policy
from usbip_server.net.certificates import Tls, read
from usbip_server.net.ktls import OP_ENABLE_KTLS
from usbip_server.protocols.exporter import ExporterFactory
from usbip_server.protocols.exporter_tls import Secured, SecuredFactory
from usbip_server.runtime import repeats
from usbip_server.server.config import LiveSettings, Settings
from usbip_server.server.core import Core
from usbip_server.testing.reactor import FakeReactor

ADDRESS = IPv4Address("TCP", "192.0.2.8", 40000)
LIST = bytes.fromhex("0111 8005 00000000")
IMPORT = bytes.fromhex("0111 8003 00000000") + UNO.busId.encode().ljust(32, b"\0")
BOUND = changed(UNO, state=DeviceState.BOUND)

ROUNDS = 20000
"""Turns of the reactor, at most, until something has to be the case."""


def connected() -> tuple[socket.socket, socket.socket]:
    """The ends of a TCP connection, the client's and ours; neither blocks."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), 10)
        server, _ = listener.accept()
    for end in (client, server):
        end.setblocking(False)
    return client, server


def openFiles() -> int:
    """How many this process has, without what only waits to be forgotten."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def hasKtls() -> bool:
    """Can this kernel encrypt connections that this OpenSSL has begun?"""
    client, server = connected()
    try:
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, 31, b"tls")  # TCP_ULP
    except OSError:
        return False
    finally:
        client.close()
        server.close()
    return True


class TcpTransport(MemoryTransport):
    """
    Twisted's part of a TCP connection.
    """

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(ADDRESS)
        self.hostAddr = ADDRESS
        self._connection = connection

    def getHandle(self) -> socket.socket:
        """See C{twisted.internet.interfaces.ISystemHandle}."""
        return self._connection

    def close(self) -> None:
        """What Twisted does when it is over."""
        if self._connection.fileno() >= 0:
            with contextlib.suppress(OSError):  # it is over already
                self._connection.shutdown(socket.SHUT_RDWR)
            self._connection.close()


class TlsClient:
    """
    A client.

    @ivar received: what it has got.
    @ivar isShaken: is its handshake done?
    @ivar hasEnded: has the server taken leave?
    @ivar error: what has gone wrong.
    @ivar isReading: does it read?
    """

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        self.received = bytearray()
        self.isShaken = self.hasEnded = False
        self.isReading = True
        self.error: OSError | None = None
        self._out = bytearray()
        self.ssl = context.wrap_socket(
            connection,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
            server_hostname="localhost",
        )

    @property
    def unsent(self) -> int:
        """Bytes that it could not send yet."""
        return len(self._out)

    def send(self, *records: bytes) -> None:
        """Send something, each in a record of its own."""
        for record in records:
            self._out += record
            self.turn()

    def turn(self) -> None:
        """Do what can be done now."""
        if self.error is not None or self.hasEnded or self.ssl.fileno() < 0:
            return
        try:
            self._turn()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            self.error = error

    def _turn(self) -> None:
        if not self.isShaken:
            self.ssl.do_handshake()
            self.isShaken = True
        while self._out:
            try:
                del self._out[: self.ssl.send(self._out)]
            except ssl.SSLWantWriteError:
                break
        while self.isReading:
            data = self.ssl.recv(65536)
            if not data:
                self.hasEnded = True
                return
            self.received += data

    def says(self, *records: bytes) -> None:
        """Send something, each in a record of its own, and wait until it is there to be read; not
        that somebody has."""
        for record in records:
            self.ssl.send(record)
        while fcntl.ioctl(self.ssl, termios.TIOCOUTQ, bytes(4)) != bytes(4):
            pass  # not everything is acknowledged

    def fileno(self) -> int:
        """Of its connection; less than 0: that is over."""
        return -1 if self.error or self.hasEnded else self.ssl.fileno()

    def close(self) -> None:
        """Leave without a word."""
        self.ssl.close()


class KeepingBackend(PromptBackend):
    """
    A backend that keeps what it is given, as the kernel does.

    @ivar given: that, by bus id.
    """

    def __init__(self, devices: tuple[UsbDevice, ...], given: dict[str, socket.socket]) -> None:
        super().__init__(devices)
        self.given = given

    async def export(
        self, device: UsbDevice, connection: socket.socket, holder: Holder, deadline: float
    ) -> UsbDevice:
        kept = connection.dup()
        kept.setblocking(False)
        try:
            exported = await super().export(device, connection, holder, deadline)
        except BaseException:
            kept.close()
            raise
        self.given[device.busId] = kept
        return exported


class SecuredTestCase(SynchronousTestCase):
    """
    The export port of a daemon.

    @cvar isMutual: do clients have to show a certificate?
    @cvar ktls: may the kernel encrypt, if it can?
    """

    isMutual = False
    ktls = False
    most = 3

    def setUp(self) -> None:
        self.patch(repeats, "IN_FULL", 10_000)
        self.reactor = FakeReactor()
        self.given: dict[str, socket.socket] = {}
        self.backend: PatientBackend = KeepingBackend((BOUND, STICK), self.given)
        self.clients: list[TlsClient] = []
        self.wires: list[Wire] = []
        self.logged: list[LogEvent] = []
        observer = cast(ILogObserver, self.logged.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.addCleanup(self.leave)
        self.serve()

    def serve(self, *rules: Rule, access: Policy = EVERYBODY) -> None:
        """Another daemon, with these rules."""
        settings = Settings(access=access, devices=rules, limits=Limits(connections=2 * self.most))
        self.settings = LiveSettings(settings)
        self.core = Core(self.backend, self.reactor, self.settings, now=lambda: 1000.0)
        asked(self.core.start())
        self.exporter = ExporterFactory(self.core.dispatcher, self.settings, self.reactor)
        context = self.context()
        self.factory = SecuredFactory(self.exporter, lambda: context, self.settings, self.reactor)
        self.logged.clear()

    def context(self) -> ssl.SSLContext:
        """The server's."""
        folder = self.mktemp()
        certificate, key = signed("server").write(folder, "server")
        ca, _ = authority(LAB).write(folder, "ca")
        tls = Tls(certificate=certificate, key=key, clientCa=ca, requireClientCertificate=True)
        if not self.isMutual:
            tls = Tls(certificate=certificate, key=key)
        context = read(tls).context
        if not self.ktls:
            context.options &= ~OP_ENABLE_KTLS
        return context

    def certificate(self, name: str, by: str = LAB) -> tuple[str, str]:
        """The files of a client's."""
        return signed(name, by).write(self.mktemp(), name)

    def open(self) -> socket.socket:
        """A connection without TLS: the client's end."""
        client, server = connected()
        self.serveOne(client, server)
        return client

    def serveOne(self, client: socket.socket, server: socket.socket) -> None:
        """Serve a connection; both of its ends are closed when the test is over."""
        transport = TcpTransport(server)
        self.addCleanup(transport.close)
        self.addCleanup(client.close)
        protocol = self.factory.buildProtocol(ADDRESS)
        assert isinstance(protocol, Secured)
        self.wires.append(Wire(protocol, transport))

    def connect(self, context: ssl.SSLContext | None = None) -> TlsClient:
        """A client that gets through its handshake, or fails in it."""
        client = TlsClient(self.open(), context or trusting())
        self.clients.append(client)
        self.until(lambda: client.isShaken or client.error is not None)
        return client

    def asks(self, *records: bytes, context: ssl.SSLContext | None = None) -> TlsClient:
        """A client that asks for something."""
        client = self.connect(context)
        client.send(*records)
        self.turn()
        return client

    def imports(self) -> TlsClient:
        """A client that is given the device."""
        client = self.asks(IMPORT)
        self.until(lambda: len(client.received) == 320)
        client.received.clear()
        return client

    @property
    def device(self) -> socket.socket:
        """What the device was given."""
        return self.given[UNO.busId]

    def turn(self) -> None:
        """A turn of the reactor, and one of the clients."""
        self.reactor.deliver()
        for client in self.clients:
            client.turn()
        for wire in self.wires:
            wire.turn()
            if wire.lost:
                assert isinstance(wire.transport, TcpTransport)
                wire.transport.close()

    def until(self, isSo: Callable[[], Any]) -> None:
        """Turn until something is the case."""
        for _ in range(ROUNDS):
            if isSo():
                return
            self.turn()
            self.wait()
        self.fail("it does not come to that")

    def wait(self) -> bool:
        """Wait a moment for something to come, also on a busy machine; does it?"""
        files: list[Any] = [*self.reactor.readers, *self.clients]
        return bool(select.select([file for file in files if file.fileno() >= 0], [], [], 0.002)[0])

    def ends(self, client: TlsClient) -> None:
        """The server takes leave of a client, properly."""
        self.until(lambda: client.hasEnded or client.error)
        self.assertIsNone(client.error)

    def quiet(self) -> None:
        """Turn until there is nothing more to do."""
        for _ in range(60):
            self.turn()
            if not self.wait():
                break
        self.turn()

    def told(self, level: LogLevel = LogLevel.warn) -> list[str]:
        """What the port has logged, at a level."""
        return [
            formatEvent(event)
            for event in self.logged
            if event["log_level"] is level
            and {"protocols", "net"} & set(event["log_namespace"].split("."))
        ]

    def leave(self) -> None:
        """All clients go, and what the device was given is closed."""
        for client in self.clients:
            client.close()
        while self.given:
            self.given.popitem()[1].close()
        self.quiet()
        self.clients.clear()
        self.wires.clear()

    def assertNothingLeft(self) -> None:
        """No connection, and nothing that would happen."""
        self.assertEqual(self.exporter.connections, {})
        self.assertEqual(self.factory.relayed, set())
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        readers = [reader for reader in self.reactor.readers if reader.logPrefix() != "sessions"]
        self.assertEqual((readers, self.reactor.writers), ([], []))

    def assertTold(self, because: str) -> None:
        """One line says why, and nothing is left."""
        self.until(lambda: self.wires[-1].lost)
        [line] = self.told()
        self.assertIn("192.0.2.8", line)
        self.assertIn(because, line)
        self.assertNothingLeft()
        self.logged.clear()
