"""
Tests of L{usbip_server.protocols.exporter}.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import cast

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

import usbip_server.testing  # noqa: F401 - its errors are none that a client could be told
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
    threeWays,
)
from usbip_server.model.device import DeviceState, Encryption, Holder, Lease
from usbip_server.model.devicerules import Match, Rule, Share
from usbip_server.model.errors import (
    BackendUnavailable,
    ClientError,
    DeviceAwaited,
    DeviceInUse,
    DeviceLeased,
    DeviceMounted,
    DeviceNotFound,
    InvalidRequest,
    NotAllowed,
    NotDone,
    NotLeased,
    OperationFailed,
    OperationTimedOut,
    ShareError,
    StillWorking,
)
from usbip_server.model.options import Limits
from usbip_server.model.policy import Grant, Policy, Principal, Right, Who
from usbip_server.model.usbip import OpStatus, encodeImport, encodeList, encodeRefusal
from usbip_server.net.keepalive import KeepAlive
from usbip_server.protocols.exporter import (
    REQUEST_SECONDS,
    STATUS_OF,
    Exporter,
    ExporterFactory,
    statusOf,
)
from usbip_server.runtime import repeats
from usbip_server.server.config import LiveSettings, Settings
from usbip_server.server.core import Core
from usbip_server.testing.reactor import FakeReactor

ADDRESS = IPv4Address("TCP", "192.0.2.8", 40000)
LIST = bytes.fromhex("0111 8005 00000000")
IMPORT = bytes.fromhex("0111 8003 00000000") + UNO.busId.encode().ljust(32, b"\0")
BOUND = changed(UNO, state=DeviceState.BOUND)
HOLDER = Holder(address="192.0.2.8", since=1000.0)


class SocketTransport(MemoryTransport):
    """
    A connection in memory, with a socket to hand over.

    @ivar client: the other end of the socket.
    """

    def __init__(self, address: IAddress = ADDRESS) -> None:
        super().__init__(address)
        self.hostAddr = address
        self.client, self._server = socket.socketpair()
        self._server.setblocking(False)

    def getHandle(self) -> socket.socket:
        """See C{twisted.internet.interfaces.ISystemHandle}."""
        return self._server

    def close(self) -> None:
        """Close both ends."""
        self.client.close()
        self._server.close()


def subclasses(kind: type[ShareError]) -> Iterator[type[ShareError]]:
    """All subclasses of a class."""
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


class ExporterTestCase(SynchronousTestCase):
    """
    The export port of a daemon.
    """

    most = 3

    def setUp(self) -> None:
        self.patch(repeats, "IN_FULL", 10_000)
        self.reactor = FakeReactor()
        self.backend: PatientBackend = PromptBackend((BOUND, STICK))
        self.serve()

    def serve(self, *rules: Rule) -> None:
        """Start another daemon, with these rules."""
        settings = Settings(
            access=EVERYBODY, devices=rules, limits=Limits(connections=2 * self.most)
        )
        self.settings = LiveSettings(settings)
        self.core = Core(
            self.backend,
            self.reactor,
            self.settings,
            now=lambda: 1000.0,
        )
        asked(self.core.start())
        self.factory = ExporterFactory(self.core.dispatcher, self.settings, self.reactor)
        self.logged: list[LogEvent] = []
        observer = cast(ILogObserver, self.logged.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def connect(self) -> Wire:
        """A new connection."""
        protocol = self.factory.buildProtocol(ADDRESS)
        assert isinstance(protocol, Exporter)
        transport = SocketTransport()
        self.addCleanup(transport.close)
        return Wire(protocol, transport)

    def leaves(self, wire: Wire) -> None:
        """Have a client close a connection that carries traffic."""
        assert isinstance(wire.transport, SocketTransport)
        wire.transport.client.close()
        self.reactor.deliver()
        wire.turn()

    def told(self, level: LogLevel = LogLevel.warn) -> list[str]:
        """The lines that were logged at a level."""
        return [
            formatEvent(event)
            for event in self.logged
            if event["log_level"] is level
            and event["log_namespace"].endswith((".exporter.Exporter", ".audit.Audit"))
        ]

    def assertAnswered(self, wire: Wire, answer: bytes, left: int = 0) -> None:
        """The client got the reply and nothing else, and the connection is closed."""
        wire.turn()
        self.assertEqual(wire.received, answer)
        self.assertTrue(wire.lost)
        self.assertFalse(wire.transport.aborted)
        if left:
            self.assertEqual(len(self.factory.connections), left)
        else:
            self.assertNothingLeft()

    def assertCutOff(self, wire: Wire, because: str) -> None:
        """The client got nothing, the connection was aborted, and that is logged once."""
        wire.turn()
        self.assertEqual(wire.received, b"")
        self.assertTrue(wire.transport.aborted and wire.lost)
        [line] = self.told()
        self.assertIn("192.0.2.8", line)
        self.assertIn(because, line)
        self.assertNothingLeft()
        self.logged.clear()

    def assertNothingLeft(self) -> None:
        """No connection and no timer is left."""
        self.assertEqual(self.factory.connections, {})
        self.assertEqual(self.reactor.getDelayedCalls(), [])


class AnswerTests(ExporterTestCase):
    """
    Replies.
    """

    def become(self, state: DeviceState) -> None:
        """Give the device another state."""
        self.backend.inventory.replace([changed(UNO, state=state)], {UNO.busId})

    def test_replies(self) -> None:
        """
        OP_REQ_DEVLIST is answered with the importable devices, OP_REQ_IMPORT with the device or
        with a status only, for which one line is logged; then the connection is closed, unless it
        carries a session.
        """
        for request, state, reply in (
            (LIST, DeviceState.BOUND, encodeList([BOUND])),
            (IMPORT, DeviceState.FREE, encodeRefusal(OpStatus.NODEV)),
            (IMPORT, DeviceState.BOUND, encodeImport(BOUND)),
        ):
            for way, segments in threeWays([request]):
                self.become(state)
                wire = self.connect()
                wire.send(*segments)
                self.assertEqual(wire.received, reply, way)
                if len(reply) == 320:
                    self.leaves(wire)
                    self.assertTrue(wire.lost)
                else:
                    self.assertAnswered(wire, reply)
                    self.assertEqual(len(self.told(LogLevel.info)), len(reply) == 8, way)
                self.assertEqual(self.told(), [], way)
                self.logged.clear()

    def test_busy(self) -> None:
        """A second client gets the status for a busy device; the first one keeps it."""
        first, second = self.connect(), self.connect()
        first.send(IMPORT)
        second.send(IMPORT)
        self.assertAnswered(second, encodeRefusal(OpStatus.DEV_BUSY))
        self.assertFalse(first.ended)

    def test_noDevices(self) -> None:
        """Without USB the list is empty, because OP_REP_DEVLIST has no status for that."""
        self.backend.inventory.trouble = "no USB here"
        for request, reply in ((LIST, encodeList([])), (IMPORT, encodeRefusal(OpStatus.NA))):
            wire = self.connect()
            wire.send(request)
            self.assertAnswered(wire, reply)

    def test_bug(self) -> None:
        """A bug is logged, and the connection is aborted."""

        def importable(principal: Principal) -> None:
            raise ZeroDivisionError

        self.patch(self.core.dispatcher, "importable", importable)
        wire = self.connect()
        wire.send(LIST)
        wire.turn()
        self.assertTrue(wire.lost and wire.transport.aborted)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertNothingLeft()

    def test_notRead(self) -> None:
        """
        A client that does not read its reply is disconnected after a while, which is logged unless
        the daemon stops.
        """
        for stops in (False, True):
            wire = self.connect()
            if stops:
                lingering = self.patch(wire.transport, "loseConnection", lambda: None)
                self.factory.close()
                lingering.restore()
            else:
                wire.protocol.dataReceived(LIST)
            self.assertFalse(wire.transport.aborted)
            self.reactor.advance(REQUEST_SECONDS)
            self.assertTrue(wire.transport.aborted)
            wire.turn()
            told = [] if stops else ["192.0.2.8 did not read its reply within 10 s"]
            self.assertEqual(self.told(), told)
            self.assertNothingLeft()
            self.logged.clear()


class StatusTests(SynchronousTestCase):
    """
    The status for each error.
    """

    def test_coversTheFamily(self) -> None:
        """Every error has a status."""
        uncovered = {
            kind
            for kind in subclasses(ShareError)
            if kind.__module__.startswith("usbip_server.")
            and not issubclass(kind, ClientError)
            and not any(known in kind.__mro__ for known in STATUS_OF)
        }
        self.assertEqual(uncovered, set())
        self.assertNotIn(OpStatus.OK, STATUS_OF.values())

    def test_statuses(self) -> None:
        """The statuses are those that a stock C{usbipd} would send, as far as it knows them."""
        lease = Lease(owner="ci-1", address="192.0.2.7")
        for error, status in (
            (DeviceInUse(UNO), OpStatus.DEV_BUSY),
            (DeviceLeased(UNO, lease, 3), OpStatus.DEV_BUSY),
            (DeviceAwaited(UNO, 1), OpStatus.DEV_BUSY),
            (StillWorking(UNO, "x"), OpStatus.DEV_BUSY),
            (NotDone("x"), OpStatus.DEV_BUSY),
            (DeviceNotFound("x"), OpStatus.NODEV),
            (NotAllowed("x"), OpStatus.NODEV),
            (OperationFailed(UNO, "x"), OpStatus.DEV_ERR),
            (OperationTimedOut(UNO, "x"), OpStatus.DEV_ERR),
            (DeviceMounted(UNO, ["/"]), OpStatus.DEV_ERR),
            (NotLeased(UNO), OpStatus.DEV_ERR),
            (BackendUnavailable("x"), OpStatus.NA),
            (InvalidRequest("x"), OpStatus.ERROR),
        ):
            self.assertIs(statusOf(error), status)


class HandedOverTests(ExporterTestCase):
    """
    A connection that carries traffic.
    """

    def patiently(self) -> Wire:
        """A client that waits for its device."""
        self.backend = PatientBackend((BOUND,))
        self.serve()
        wire = self.connect()
        wire.send(IMPORT)
        return wire

    def test_order(self) -> None:
        """
        The device gets the connection before the client gets its reply, until when the
        client sends nothing: no byte is lost. Nothing is read after the request.
        """
        wire = self.patiently()
        self.assertEqual([call.verb for call in self.backend.calls], ["export"])
        self.assertEqual((wire.received, wire.transport.producerState), (b"", "paused"))
        self.backend.calls[0].succeed()
        self.assertEqual(wire.received, encodeImport(BOUND))
        wire.send(b"traffic")
        self.assertEqual(wire.transport.producerState, "paused")
        self.assertFalse(wire.ended)

    def test_end(self) -> None:
        """The connection stays open as long as the session, and is closed then."""
        wire = self.connect()
        wire.send(IMPORT)
        self.reactor.advance(86400)
        self.reactor.deliver()
        wire.turn()
        self.assertFalse(wire.ended)
        self.leaves(wire)
        self.assertTrue(wire.lost)
        self.assertFalse(wire.transport.aborted)
        self.assertEqual(self.told(), [])

    def test_lostFirst(self) -> None:
        """If Twisted loses the connection first, the end of the session is still detected."""
        wire = self.connect()
        wire.send(IMPORT)
        wire.drop()
        wire.transport.getHandle().close()  # type: ignore[attr-defined]
        self.leaves(wire)
        self.reactor.advance(0)
        self.assertEqual(self.backend.refreshed, [UNO.busId])

    def test_daemonStops(self) -> None:
        """When the daemon stops, sessions go on, and connections without a session are closed."""
        carrying, idle, half = self.connect(), self.connect(), self.connect()
        carrying.send(IMPORT)
        half.send(IMPORT[:-1])
        self.factory.close()
        for wire in (carrying, idle, half):
            wire.turn()
        self.assertEqual([wire.lost for wire in (carrying, idle, half)], [False, True, True])
        self.assertEqual(self.told(), [])
        self.assertNothingLeft()

    def test_daemonStopsMeanwhile(self) -> None:
        """When the daemon stops, a client that waits for its reply gets no device."""
        wire = self.patiently()
        self.factory.close()
        wire.turn()
        self.assertTrue(wire.lost)
        self.backend.calls[0].fail(OperationFailed(UNO, "the daemon stops"))
        self.assertEqual(wire.received, b"")
        self.assertNothingLeft()

    def test_notCounted(self) -> None:
        """Connections with a session do not count for the limit."""
        devices = [changed(BOUND, busId=f"1-{port}") for port in range(1, 2 * self.most)]
        self.backend.inventory.replace(devices)
        for device in devices:
            wire = self.connect()
            wire.send(IMPORT[:8] + device.busId.encode().ljust(32, b"\0"))
            self.assertEqual(len(wire.received), 320)
        self.assertEqual(self.factory.connections, {})

    def test_options(self) -> None:
        """The keepalive options in force are set on the connection before it is handed over."""
        self.backend = PatientBackend((BOUND,))
        self.serve()
        self.settings.replace(Settings(access=EVERYBODY, keepalive=KeepAlive(idle=11)))
        wire = self.connect()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname(), 10)
            server, _ = listener.accept()
        self.addCleanup(client.close)
        self.addCleanup(server.close)
        server.setblocking(False)
        self.patch(wire.transport, "getHandle", lambda: server)
        wire.send(IMPORT)
        self.assertEqual(server.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE), 11)
        self.assertEqual(len(self.backend.calls), 1)

    def test_onImport(self) -> None:
        """A device that is bound for an import is described as it is after the bind."""
        self.serve(Rule(match=Match(bus="1-2"), share=Share.ON_IMPORT))
        wire = self.connect()
        wire.send(IMPORT[:8] + b"1-2".ljust(32, b"\0"))
        self.assertEqual(wire.received, encodeImport(STICK))
        self.assertEqual([call.verb for call in self.backend.calls], ["bind", "export"])


class BadTests(ExporterTestCase):
    """
    Connections that are not those of USB/IP clients.
    """

    def test_garbage(self) -> None:
        """Bytes that are no request end the connection, and one line is logged."""
        bad = struct.pack(">HHI", 0x0111, 0x8005, 7)
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\0", bad, LIST[:3] + b"\0" * 5, IMPORT[::-1]):
            for _, segments in threeWays([garbage]):
                wire = self.connect()
                wire.send(*segments)
                self.assertCutOff(wire, "not a USB/IP client")

    def test_goesOn(self) -> None:
        """What follows them is not logged again."""
        wire = self.connect()
        wire.protocol.dataReceived(b"GET")
        wire.protocol.dataReceived(b" / HTTP/1.1")
        self.assertCutOff(wire, "not a USB/IP client")

    def test_early(self) -> None:
        """
        A client that sends data before its reply gets no device, because the device would read it
        as USB traffic; nor does one that disconnects. That is detected too if it is still in the
        kernel's buffer.
        """
        for request in (LIST, IMPORT):
            for more in (b"\0", 48 * b"\1", request):
                wire = self.connect()
                wire.send(request + more)
                self.assertCutOff(wire, "unexpected data after the request")
        for more, because in ((b"\0", "unexpected data"), (b"", "disconnected before the reply")):
            wire = self.connect()
            assert isinstance(wire.transport, SocketTransport)
            wire.transport.client.sendall(more)
            if not more:
                wire.transport.client.close()
            wire.send(IMPORT)
            self.assertCutOff(wire, because)
        self.assertEqual(self.backend.calls, [])

    def test_whileBinding(self) -> None:
        """It is detected too if it arrives while the device is being bound."""
        self.backend = PatientBackend((UNO,))
        self.serve(Rule(match=Match(bus="*"), share=Share.ON_IMPORT))
        wire = self.connect()
        wire.send(IMPORT)
        assert isinstance(wire.transport, SocketTransport)
        wire.transport.client.sendall(b"\0")
        self.backend.calls[0].succeed()
        self.assertAnswered(wire, encodeRefusal(OpStatus.ERROR))
        self.assertEqual(len(self.backend.calls), 1)

    def test_slow(self) -> None:
        """
        A client without a complete request within ten seconds is disconnected, which is logged,
        also if it sends byte by byte, or nothing.
        """
        for request in (IMPORT[:9], b""):
            wire = self.connect()
            for second in range(9):
                wire.send(request[second : second + 1])
                self.reactor.advance(1)
            self.assertFalse(wire.ended)
            self.reactor.advance(1.1)
            self.assertCutOff(wire, "within 10 s")

    def test_truncated(self) -> None:
        """
        A client that disconnects in the middle of its request is logged once, and one that has sent
        nothing is not.
        """
        for request in (LIST, IMPORT):
            for length in range(len(request)):
                wire = self.connect()
                wire.send(request[:length])
                self.assertEqual(self.told(), [])
                wire.drop()
                self.assertEqual(len(self.told()), bool(length))
                self.logged.clear()
                self.assertNothingLeft()
        self.assertEqual(self.backend.calls, [])

    def test_tooMany(self) -> None:
        """
        Connections beyond the limit of a client are refused, which is logged once; others and, when
        one has ended, the same client are accepted.
        """
        wires = [self.connect() for _ in range(self.most)]
        for _ in range(5):
            wire = self.connect()
            self.assertTrue(wire.transport.aborted)
            wire.turn()
        [line] = [formatEvent(event) for event in self.logged]
        self.assertIn("192.0.2.8 refused: the limit of 3 connections of one client", line)
        local = self.connectLocally()
        local.send(LIST)
        self.assertAnswered(local, encodeList([BOUND]), left=self.most)
        wires[0].drop()
        wire = self.connect()
        wire.send(LIST)
        self.assertEqual(wire.received, encodeList([BOUND]))

    def test_unixSocket(self) -> None:
        """A client on a unix socket is local."""
        self.backend = PatientBackend((BOUND,))
        self.serve()
        wire = self.connectLocally()
        wire.send(IMPORT)
        holder = Holder(address="local", since=1000.0, encryption=Encryption.NONE)
        self.assertEqual(self.backend.calls[0].holder, holder)

    def test_unixUser(self) -> None:
        """The user of a client on a unix socket is known, and access rules for users apply."""
        guest = Policy(
            principals={"guest": Who(uid=os.getuid())},
            allow=(Grant(who="anyone"),),
            deny=(Grant(who="guest", commands=Right.IMPORT),),
        )
        self.core.reload(Settings(access=guest))
        wire = self.connectLocally()
        wire.send(IMPORT)
        self.assertAnswered(wire, encodeRefusal(OpStatus.NODEV))
        wire = self.connect()
        wire.send(IMPORT)
        self.assertEqual(wire.received, encodeImport(BOUND))

    def connectLocally(self) -> Wire:
        """A new connection, by a unix socket."""
        transport = SocketTransport(UNIXAddress(None))
        self.addCleanup(transport.close)
        return Wire(self.factory.buildProtocol(UNIXAddress(None)), transport)
