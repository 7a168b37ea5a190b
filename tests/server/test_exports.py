"""
Tests of L{usbip_server.server.exports}: who may import a device, and what becomes of the session.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import formatEvent

from tests.server.corecase import (
    ALWAYS,
    BOUND,
    EPOCH,
    ERROR,
    FREE,
    IN_USE,
    NEVER,
    ON_IMPORT,
    Client,
    CoreTestCase,
    lease,
)
from tests.support.fixtures import (
    ALICE,
    BOB,
    MOUSE,
    STICK,
    UNO,
    PatientBackend,
    PromptBackend,
    asked,
    changed,
)
from usbip_server.model.device import Encryption, Holder, UsbDevice
from usbip_server.model.devicerules import Hook, Match, Occasion, Rule, Share
from usbip_server.model.errors import (
    BackendUnavailable,
    DeviceInUse,
    DeviceLeased,
    DeviceNotFound,
    InvalidRequest,
    OperationFailed,
    OperationTimedOut,
    StillWorking,
)
from usbip_server.model.policy import LOCAL, Principal
from usbip_server.net.handover import SessionSocket
from usbip_server.server.devices.operations import EXPORT_SECONDS
from usbip_server.server.exports import JUST_FREED, REFRESH_AFTER, REFRESH_PAUSE

LENT = Rule(match=Match(bus="*"), share=Share.ON_IMPORT, unbind_released=True)
"""Bound for an import, and unbound after it."""


def holder(principal: Principal, since: float) -> Holder:
    """A client whose traffic is not encrypted."""
    return Holder(address=principal.address, since=since, encryption=Encryption.NONE)


class ExportingBackend(PromptBackend):
    """
    A backend that notices the end of a session only at a refresh.

    @ivar over: the bus ids of devices whose session is over.
    @ivar families: the families of the sockets that devices were given.
    """

    def __init__(self, devices: tuple[UsbDevice, ...]) -> None:
        super().__init__(devices)
        self.over: set[str] = set()
        self.families: list[socket.AddressFamily] = []

    async def refresh(self, device: UsbDevice) -> None:
        await super().refresh(device)
        now = self.inventory.get(device.busId)
        if now is not None and device.busId in self.over:
            self.over.discard(device.busId)
            self.inventory.replace([changed(now, state=BOUND, holder=None)], {now.busId})

    async def export(
        self, device: UsbDevice, connection: socket.socket, holder: Holder, deadline: float
    ) -> UsbDevice:
        self.families.append(socket.AddressFamily(connection.family))
        return await super().export(device, connection, holder, deadline)


class ExportsTestCase(CoreTestCase):
    """
    A core, and clients with real connections.

    @ivar ended: the clients whose session has ended, by their ends of the connections.
    """

    def setUp(self) -> None:
        super().setUp()
        self.ended: list[socket.socket] = []

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """The ends of a connection: the client's and the daemon's."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname(), 10)
            server, _ = listener.accept()
        server.setblocking(False)
        self.addCleanup(client.close)
        self.addCleanup(server.close)
        return client, server

    def imports(
        self, busId: str = UNO.busId, principal: Principal = BOB
    ) -> tuple[socket.socket, Deferred[UsbDevice]]:
        """A client imports a device: its end of the connection, and the result."""
        client, server = self.connect()
        carrier = SessionSocket(given=server, connection=server)
        return client, self.handOver(carrier, busId, principal, client)

    def handOver(
        self,
        carrier: SessionSocket,
        busId: str = UNO.busId,
        principal: Principal = BOB,
        client: Any = None,
    ) -> Deferred[UsbDevice]:
        """The result of an import over a connection."""
        handOver = self.core.dispatcher.handOver
        ended = lambda: self.ended.append(client)  # noqa: E731
        return asked(handOver(busId, Client(principal), carrier, ended))

    def given(self, busId: str = UNO.busId, principal: Principal = BOB) -> socket.socket:
        """A client gets a device at once: its end of the connection."""
        client, result = self.imports(busId, principal)
        self.assertIs(self.successResultOf(result).state, IN_USE)
        return client

    def denied(
        self, kind: type[Exception], busId: str = UNO.busId, principal: Principal = BOB
    ) -> str:
        """The error that an import fails with at once."""
        return self.error(kind, self.imports(busId, principal)[1])

    def leaves(self, client: socket.socket) -> None:
        """A client closes its connection, which the daemon notices."""
        client.close()
        self.clock.deliver()

    def bePatient(self) -> None:
        """From now on the test ends the operations of the backend."""
        self.backend = PatientBackend(self.devices)


class ImporterTests(ExportsTestCase):
    """
    Which client gets which device.
    """

    devices = (UNO, STICK)

    def test_bound(self) -> None:
        """A bound device is handed over; its holder and the time since when are shown."""
        self.start(Rule(match=Match(bus="*"), name="uno"))
        self.assertIn("attach it first", self.denied(DeviceNotFound))
        self.assertEqual(self.verbs, [])
        self.done("attach")
        self.sleep(7)
        _, result = self.imports()
        self.assertEqual(self.successResultOf(result).name, "uno")
        self.assertEqual(self.shown().holder, holder(BOB, EPOCH + 7))
        self.assertEqual(self.verbs, ["bind", "export"])
        self.assertEqual(self.heard[-1], ("imported", UNO.busId))
        self.assertEqual(self.backend.calls[-1].deadline, EXPORT_SECONDS)

    def test_notThere(self) -> None:
        """A device that is not plugged in, or that is never shared, cannot be imported."""
        self.start(NEVER)
        self.become(state=BOUND)
        for busId in ("1-7", UNO.busId):
            self.assertEqual(self.denied(DeviceNotFound, busId), f"there is no device {busId}")

    def test_inUse(self) -> None:
        """A device with a session of this daemon is in use: the next client is refused at once."""
        self.start(ON_IMPORT)
        self.given()
        for principal in (ALICE, BOB):
            reason = self.denied(DeviceInUse, principal=principal)
            self.assertIn(f"in use by {BOB.address} since", reason)
        self.assertEqual(self.backend.refreshed, [])
        self.given(STICK.busId)

    def test_lease(self) -> None:
        """
        A leased device can be imported only from the address that has leased it; when the lease
        ends, its session ends too.
        """
        self.start()
        for isUsed in (False, True):
            self.done("attach", Client(ALICE), lease=lease("ci-1", 60))
            self.assertIn("leased by ci-1", self.denied(DeviceLeased))
            client = self.given(principal=ALICE)
            if not isUsed:
                self.leaves(client)
                self.giveBack()
            self.sleep(60)
            self.assertIn("attach it first", self.denied(DeviceNotFound, principal=ALICE))
            self.assertEqual(self.verbs[-3:], ["bind", "export", "unbind"])

    def test_unavailable(self) -> None:
        """Without USB, or while the daemon stops, nothing can be imported."""
        self.start(ALWAYS)
        self.backend.inventory.trouble = "no USB here"
        self.denied(BackendUnavailable)
        self.backend.inventory.trouble = None
        self.successResultOf(asked(self.core.stop()))
        self.denied(BackendUnavailable)
        listing = asked(self.core.dispatcher.importable(Principal(LOCAL)))
        self.failureResultOf(listing, BackendUnavailable)

    def test_backendFails(self) -> None:
        """
        If the backend fails, the client gets the error, its connection is closed, and the next
        client gets the device.
        """
        self.bePatient()
        self.start()
        self.become(state=BOUND)
        _, result = self.imports()
        self.fail_(0, OperationTimedOut(UNO, "it is stuck"))
        self.failureResultOf(result, OperationTimedOut)
        self.assertEqual((self.clock.readers, self.ended), ([], []))
        _, result = self.imports()
        self.succeed(1)
        self.successResultOf(result)

    def test_talks(self) -> None:
        """A client that sends data or disconnects while the device is bound gets no device."""
        self.bePatient()
        self.start(ON_IMPORT)
        for wrong in (lambda client: client.send(b"x"), socket.socket.close):
            client, result = self.imports()
            wrong(client)
            self.succeed()
            self.failureResultOf(result, InvalidRequest)
            self.assertEqual(self.state(), BOUND)
            self.become(UNO)
        self.assertEqual(self.verbs, ["bind", "bind"])

    def test_closed(self) -> None:
        """A connection that the daemon has closed itself is not handed over."""
        self.start(ALWAYS)
        _, server = self.connect()
        server.close()
        result = self.handOver(SessionSocket(given=server, connection=server))
        self.failureResultOf(result, OperationFailed)
        self.assertEqual((self.state(), self.flushLoggedErrors()), (BOUND, []))


class JustFreedTests(ExportsTestCase):
    """
    A device that is shown as in use although its session is over: the kernel resets it.
    """

    def setUp(self) -> None:
        super().setUp()
        self.exporting = self.backend = ExportingBackend((UNO,))
        self.start(ALWAYS)

    def test_waits(self) -> None:
        """
        Clients that come just after the end of a session wait a moment; the first gets the
        device, and the second is refused then.
        """
        self.leaves(self.given())
        (_, first), (_, second) = self.imports(), self.imports()
        self.clock.advance(REFRESH_PAUSE)
        self.assertNoResult(first)
        self.exporting.over.add(UNO.busId)
        self.clock.advance(REFRESH_PAUSE)
        self.successResultOf(first)
        self.failureResultOf(second, DeviceInUse)
        self.assertEqual(self.heard[-2:], [("released", UNO.busId), ("imported", UNO.busId)])

    def test_waitsNotLong(self) -> None:
        """
        A client waits for at most a second, because the device may be in use by a client of
        another server, or until the device is unplugged.
        """
        self.take(address=ALICE.address)
        _, result = self.imports()
        self.sleep(JUST_FREED - REFRESH_PAUSE, REFRESH_PAUSE)
        self.assertNoResult(result)
        self.sleep(2 * REFRESH_PAUSE, REFRESH_PAUSE)
        self.assertIn(ALICE.address, self.error(DeviceInUse, result))
        _, result = self.imports()
        self.unplug()
        self.clock.advance(REFRESH_PAUSE)
        self.error(DeviceNotFound, result)

    def test_refreshes(self) -> None:
        """
        After the end of a session the device is refreshed at once, and again when the kernel may
        have reset it.
        """
        self.leaves(self.given())
        self.clock.advance(0)
        self.assertEqual(len(self.backend.refreshed), 1)
        self.exporting.over.add(UNO.busId)
        self.clock.advance(REFRESH_AFTER[1])
        self.assertIs(self.state(), BOUND)
        self.clock.advance(REFRESH_AFTER[-1])
        self.assertEqual(len(self.backend.refreshed), len(REFRESH_AFTER))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopped(self) -> None:
        """A daemon that has stopped refreshes no devices."""
        self.leaves(self.given())
        self.successResultOf(asked(self.core.stop()))
        self.clock.advance(REFRESH_AFTER[-1])
        self.assertEqual(self.backend.refreshed, [])

    def test_refreshFails(self) -> None:
        """A refresh that fails with a bug is logged as one, and has no other effect."""

        async def fail(device: UsbDevice) -> None:
            raise ZeroDivisionError

        client = self.given()
        self.patch(self.backend, "refresh", fail)
        self.leaves(client)
        self.clock.advance(0)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class BindForImportTests(ExportsTestCase):
    """
    C{share: on_import}, and C{unbind_released}.
    """

    def importedPatiently(self) -> socket.socket:
        """Start with a patient backend; a client imports the device."""
        self.bePatient()
        self.start(LENT)
        client, result = self.imports()
        self.succeed(0, 1)
        self.successResultOf(result)
        return client

    def test_staysBound(self) -> None:
        """
        With C{share: on_import} a free device is bound for the import, and stays bound after the
        session until a reload forbids it.
        """
        self.start(ON_IMPORT)
        for verbs in (["bind", "export"], ["bind", "export", "export"]):
            self.leaves(self.given())
            self.assertEqual(self.verbs, verbs)
            self.giveBack()
            self.sleep(100)
            self.assertIs(self.state(), BOUND)
        self.reload(NEVER)
        self.assertIs(self.state(), FREE)

    def test_unbinds(self) -> None:
        """
        With C{unbind_released} it is unbound when it is not in use any more, each time, whether
        the backend or the connection reports the end first.
        """
        self.start(LENT)
        for isConnectionFirst in (True, True, False):
            client = self.given()
            if isConnectionFirst:
                self.leaves(client)
                self.assertIs(self.state(), IN_USE)
                self.giveBack()
            else:
                self.giveBack()
                self.assertIs(self.state(), BOUND)
                self.leaves(client)
            self.assertIs(self.state(), FREE)
        self.assertEqual(self.verbs, 3 * ["bind", "export", "unbind"])

    def test_takenAgain(self) -> None:
        """
        The end of a session does not affect the next client, which has imported the device
        already or to which it is just being handed over.
        """
        self.start(LENT)
        first = self.given()
        self.giveBack()
        second = self.given(principal=ALICE)
        self.leaves(first)
        self.sleep(100)
        self.assertIs(self.state(), IN_USE)
        self.leaves(second)
        self.giveBack()
        self.assertIs(self.state(), FREE)
        first = self.importedPatiently()
        self.giveBack()
        _, result = self.imports(principal=ALICE)
        self.leaves(first)
        self.succeed(2)
        self.successResultOf(result)
        self.sleep(100)
        self.assertEqual(self.verbs, ["bind", "export", "export"])

    def test_wantedWhileUnbinding(self) -> None:
        """An import during the unbind is carried out after it."""
        first = self.importedPatiently()
        self.leaves(first)
        self.giveBack()
        _, result = self.imports()
        self.assertEqual(self.verbs, ["bind", "export", "unbind"])
        for number in (2, 3, 4):
            self.assertNoResult(result)
            self.succeed(number)
        self.successResultOf(result)
        self.assertEqual(self.verbs[3:], ["bind", "export"])

    def test_whenUnbound(self) -> None:
        """
        With C{unbind_released} a device that was bound by another program is unbound too; not one
        with C{share: always}, nor one that a client has attached, until it is detached.
        """
        for share, attach, bound in (
            (Share.ON_REQUEST, False, False),
            (Share.ALWAYS, False, True),
            (Share.ON_IMPORT, True, True),
        ):
            self.startAnew(Rule(match=Match(bus="*"), share=share, unbind_released=True))
            if attach:
                self.done("attach")
            self.become(state=BOUND)
            self.leaves(self.given())
            self.giveBack()
            self.sleep(100)
            self.assertIs(self.state(), BOUND if bound else FREE, share)
        self.done("detach")
        self.assertIs(self.state(), FREE)

    def test_fails(self) -> None:
        """
        If the bind fails, this client and the next one get the error; if it succeeds and the
        export fails, the device is unbound again.
        """
        self.bePatient()
        self.start(LENT)
        for _ in range(2):
            _, result = self.imports()
            self.fail_(-1, OperationFailed(UNO, "no more room"))
            self.assertIn("no more room", self.error(OperationFailed, result))
        self.assertEqual(self.verbs, ["bind", "bind"])
        _, result = self.imports()
        self.succeed()
        self.fail_(-1, OperationFailed(UNO, "it is broken"))
        self.error(OperationFailed, result)
        self.assertEqual(self.verbs[2:], ["bind", "export", "unbind"])

    def test_veto(self) -> None:
        """A C{before_bind} hook can veto the bind for an import."""
        no = Hook(events=(Occasion.BEFORE_BIND,), command=("/nonexistent/hook",))
        self.start(Rule(match=Match(bus="*"), share=Share.ON_IMPORT, hooks=(no,)))
        self.assertIn("not bound", self.denied(OperationFailed))
        self.assertEqual(self.verbs, [])

    def test_unplugged(self) -> None:
        """After a session that ended because the device was unplugged, nothing is done."""
        self.start(LENT)
        client = self.given()
        self.unplug()
        self.leaves(client)
        self.plug()
        self.sleep(100)
        self.assertEqual(self.verbs, ["bind", "export"])
        self.assertEqual(len(self.ended), 1)


class DuringOperationTests(ExportsTestCase):
    """
    Imports during other operations on the device, and the other way round.
    """

    def setUp(self) -> None:
        super().setUp()
        self.bePatient()
        self.start()
        self.become(state=BOUND)

    def test_twoImports(self) -> None:
        """
        Of two clients that import one device, one gets it, and the other is refused when that is
        certain; if the first fails, the second gets it.
        """
        for error in (OperationFailed(UNO, "the client is gone"), None):
            (_, first), (_, second) = self.imports(), self.imports(principal=ALICE)
            self.assertEqual(self.verbs[-1:], ["export"])
            if error is None:
                self.succeed()
                self.successResultOf(first)
                self.assertIn(BOB.address, self.error(DeviceInUse, second))
            else:
                self.fail_(-1, error)
                self.error(OperationFailed, first)
                self.succeed()
                self.assertEqual(self.successResultOf(second).holder, holder(ALICE, EPOCH))
                self.become(state=BOUND)

    def test_detaching(self) -> None:
        """An import during a detach waits for it, and is refused."""
        detach = self.ask("detach")
        _, result = self.imports()
        self.assertEqual(self.verbs, ["unbind"])
        self.succeed(0)
        self.device(detach)
        self.error(DeviceNotFound, result)
        self.assertEqual(self.verbs, ["unbind"])

    def test_attaching(self) -> None:
        """An import during an attach waits for it, and gets the device."""
        self.become(state=ERROR)
        attach = self.ask("attach")
        _, result = self.imports()
        self.assertEqual(self.verbs, ["bind"])
        self.succeed(0)
        self.device(attach)
        self.succeed(1)
        self.successResultOf(result)

    def test_exporting(self) -> None:
        """
        A detach during the hand-over waits for it, and then ends the session; the error of an
        attach names the client that gets the device.
        """
        for command, error in (("detach", None), ("attach", DeviceInUse(UNO))):
            _, result = self.imports()
            other = self.ask(command)
            self.succeed()
            self.successResultOf(result)
            if error is None:
                self.succeed()
                self.device(other)
                self.assertEqual(self.verbs, ["export", "unbind"])
                self.become(state=BOUND)
            else:
                self.fail_(-1, error)
                self.assertIn(BOB.address, self.error(DeviceInUse, other))

    def test_unplugged(self) -> None:
        """If another device is plugged in at the same port meanwhile, it is not handed over."""
        detach = self.ask("detach")
        _, result = self.imports()
        self.plug(STICK, busId=UNO.busId)
        self.fail_(0)
        self.failureResultOf(detach)
        self.error(DeviceNotFound, result)

    def test_tooLong(self) -> None:
        """
        A client that has waited too long is refused. An export that is still in progress ends by
        itself, because its connection is closed.
        """
        detach = self.ask("detach")
        client, result = self.imports()
        self.sleep(30)
        self.fail_(0)
        self.error(StillWorking, detach)
        self.assertEqual(self.verbs, ["unbind", "export"])
        self.sleep(EXPORT_SECONDS)
        self.error(StillWorking, result)
        self.succeed(1)
        self.assertEqual(self.ended, [])
        self.leaves(client)
        self.assertEqual(self.ended, [client])


class SessionTests(ExportsTestCase):
    """
    The end of a session, and its socket.
    """

    def test_end(self) -> None:
        """The protocol is notified once of the end; sessions outlast the daemon."""
        self.start(ALWAYS)
        client = self.given()
        self.clock.deliver()
        self.assertEqual(self.ended, [])
        for _ in range(2):
            self.leaves(client)
        self.assertEqual(self.ended, [client])
        self.giveBack()
        client = self.given()
        self.successResultOf(asked(self.core.stop()))
        self.leaves(client)
        self.assertEqual((len(self.ended), self.clock.readers), (1, []))

    def test_relay(self) -> None:
        """
        The device gets the socket that is given for it, and the end of the session is detected on
        the client's connection.
        """
        self.backend = exporting = ExportingBackend((UNO,))
        self.start(ALWAYS)
        client, server = self.connect()
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        carrier = SessionSocket(given=theirs, connection=server, encryption=Encryption.RELAY)
        device = self.successResultOf(self.handOver(carrier))
        assert device.holder is not None
        self.assertIs(device.holder.encryption, Encryption.RELAY)
        self.assertEqual(exporting.families, [socket.AF_UNIX])
        theirs.close()
        server.close()
        self.clock.deliver()
        self.assertEqual(self.backend.refreshed, [])
        self.leaves(client)
        self.sleep(1)
        self.assertNotEqual(self.backend.refreshed, [])

    def test_encryptionIsLogged(self) -> None:
        """For each import the log contains how its traffic is encrypted."""
        logged = self.captureLogs()
        self.start(ALWAYS)
        words = {Encryption.NONE: "plain", Encryption.KTLS: "ktls", Encryption.RELAY: "relay"}
        for encryption, word in words.items():
            client, server = self.connect()
            carrier = SessionSocket(given=server, connection=server, encryption=encryption)
            self.successResultOf(self.handOver(carrier))
            lines = [str(formatEvent(event)) for event in logged]
            [line] = [line for line in lines if line.startswith(f"{BOB.address} has")]
            for text in (str(UNO), word):
                self.assertIn(text, line)
            logged.clear()
            self.leaves(client)
            self.giveBack()


class ListTests(ExportsTestCase):
    """
    Which devices can be imported.
    """

    devices = (UNO, STICK, MOUSE)

    def importable(self) -> list[str]:
        """Their bus ids."""
        devices = self.successResultOf(asked(self.core.dispatcher.importable(Principal(LOCAL))))
        return [device.busId for device in devices]

    def test_bound(self) -> None:
        """Bound devices are listed, also those in use."""
        self.start()
        self.assertEqual(self.importable(), [])
        self.done("attach")
        self.done("attach", id="2-10")
        self.assertEqual(self.importable(), ["1-1.4", "2-10"])
        self.given()
        self.assertEqual(self.importable(), ["1-1.4", "2-10"])
        self.done("detach", id="2-10")
        self.assertEqual(self.importable(), ["1-1.4"])

    def test_rules(self) -> None:
        """
        Devices with C{share: on_import} are listed in any state, those with C{share: never} in
        none; a reload of the rules changes the list.
        """
        self.start(Rule(match=Match(bus="1-2"), share=Share.NEVER), ON_IMPORT)
        for state in (FREE, BOUND, IN_USE):
            for device in (UNO, STICK):
                self.become(device, state=state)
            self.assertEqual(self.importable(), ["1-1.4", "2-10"])
        self.reload(NEVER)
        self.assertEqual(self.importable(), [])
