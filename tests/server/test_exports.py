"""
Tests of L{usbip_server.server.exports}: who may import a device.
"""

from __future__ import annotations

import socket
from typing import cast

from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher

from tests.server.desiredcase import ALWAYS, EPOCH, NEVER, Client, DesiredTestCase
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
from usbip_server.model.device import DeviceState, Encryption, Holder, UsbDevice
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

FREE, BOUND, IN_USE = DeviceState.FREE, DeviceState.BOUND, DeviceState.IN_USE

ON_IMPORT = Rule(match=Match(bus="*"), share=Share.ON_IMPORT)
LENT = Rule(match=Match(bus="*"), share=Share.ON_IMPORT, unbind_released=True)


def plain(connection: socket.socket) -> SessionSocket:
    """A connection as it is."""
    return SessionSocket(given=connection, connection=connection)


def held(principal: Principal, since: float) -> Holder:
    """Who has a device whose traffic is not encrypted."""
    return Holder(address=principal.address, since=since, encryption=Encryption.NONE)


class ResettingBackend(PromptBackend):
    """
    A backend that notices that a session is over only when it looks.

    @ivar over: the bus ids of devices whose session is over.
    """

    def __init__(self, devices: tuple[UsbDevice, ...]) -> None:
        super().__init__(devices)
        self.over: set[str] = set()

    async def refresh(self, device: UsbDevice) -> None:
        await super().refresh(device)
        now = self.inventory.get(device.busId)
        if now is not None and device.busId in self.over:
            self.over.discard(device.busId)
            self.inventory.replace([changed(now, state=BOUND, holder=None)], {now.busId})


class RecordingBackend(PromptBackend):
    """
    A backend that notes what kind of connection it is given.

    @ivar given: their families.
    """

    def __init__(self, devices: tuple[UsbDevice, ...]) -> None:
        super().__init__(devices)
        self.given: list[socket.AddressFamily] = []

    async def export(
        self, device: UsbDevice, connection: socket.socket, holder: Holder, deadline: float
    ) -> UsbDevice:
        self.given.append(socket.AddressFamily(connection.family))
        return await super().export(device, connection, holder, deadline)


class ExportsTestCase(DesiredTestCase):
    """
    A daemon, and clients with real connections.

    @ivar ended: the clients whose session has ended, by their ends of the connections.
    """

    def setUp(self) -> None:
        super().setUp()
        self.ended: list[socket.socket] = []

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """The ends of a connection, the client's and ours."""
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
        """A client wants a device: its end of the connection, and what comes of it."""
        client, server = self.connect()
        result = asked(
            self.core.dispatcher.handOver(
                busId, Client(principal), plain(server), lambda: self.ended.append(client)
            )
        )
        return client, result

    def given(self, busId: str = UNO.busId, principal: Principal = BOB) -> socket.socket:
        """A client gets a device at once."""
        client, result = self.imports(busId, principal)
        self.assertIs(self.successResultOf(result).state, IN_USE)
        return client

    def denied(
        self, kind: type[Exception], busId: str = UNO.busId, principal: Principal = BOB
    ) -> str:
        """A client is refused at once: why."""
        _, result = self.imports(busId, principal)
        return str(self.failureResultOf(result, kind).value)

    def leaves(self, client: socket.socket) -> None:
        """A client closes its connection, and that is seen."""
        client.close()
        self.clock.deliver()

    def verbs(self) -> list[str]:
        """What the backend was asked to do, in its order."""
        return [call.verb for call in self.backend.calls]

    def patiently(self) -> None:
        """From now on what the backend does takes until the test ends it."""
        self.backend = PatientBackend(self.devices)


class WhoTests(ExportsTestCase):
    """
    Who is given which device.
    """

    devices = (UNO, STICK)

    def test_bound(self) -> None:
        """A bound device is handed over; its holder and the time since when are shown."""
        self.start()
        self.done("attach")
        self.sleep(7)
        self.given()
        self.assertEqual(self.shown().holder, held(BOB, EPOCH + 7))
        self.assertEqual(self.verbs(), ["bind", "export"])
        self.assertEqual(self.heard[-1], ("imported", UNO.busId))
        self.assertEqual(self.backend.calls[-1].deadline, EXPORT_SECONDS)

    def test_shown(self) -> None:
        """The device that is returned has the name and lease that clients see."""
        self.start(Rule(match=Match(bus="*"), name="uno", share=Share.ALWAYS))
        _, result = self.imports()
        self.assertEqual(self.successResultOf(result).name, "uno")

    def test_notBound(self) -> None:
        """A device that is not bound cannot be imported."""
        self.start()
        self.assertIn("attach it first", self.denied(DeviceNotFound))
        self.assertEqual(self.verbs(), [])

    def test_notThere(self) -> None:
        """A device that is not plugged in, or that is never shared, cannot be imported."""
        self.start(NEVER)
        self.backend.inventory.replace([changed(UNO, state=BOUND)], {UNO.busId})
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
        """A leased device can be imported only from the address that has leased it."""
        self.start()
        self.done("attach", Client(ALICE), lease={"owner": "ci-1", "ttl": 60})
        self.assertIn("leased by ci-1", self.denied(DeviceLeased))
        self.leaves(self.given(principal=ALICE))
        self.giveBack()
        self.sleep(60)
        self.assertIn("attach it first", self.denied(DeviceNotFound, principal=ALICE))

    def test_leaseEnds(self) -> None:
        """When a lease ends, the session of its owner ends too."""
        self.start()
        self.done("attach", Client(ALICE), lease={"owner": "ci-1", "ttl": 60})
        self.given(principal=ALICE)
        self.sleep(60)
        self.assertEqual(self.verbs(), ["bind", "export", "unbind"])

    def test_broken(self) -> None:
        """Without USB, or while the daemon stops, nothing can be imported."""
        self.start(ALWAYS)
        self.backend.inventory.trouble = "no USB here"
        self.denied(BackendUnavailable)
        self.backend.inventory.trouble = None
        self.successResultOf(asked(self.core.stop()))
        self.denied(BackendUnavailable)
        listing = asked(self.core.dispatcher.importable(Principal(LOCAL)))
        self.failureResultOf(listing, BackendUnavailable)

    def test_fails(self) -> None:
        """
        If the backend fails, the client gets the error, its connection is closed, and the
        next client gets the device.
        """
        self.patiently()
        self.start()
        self.backend.inventory.replace([changed(UNO, state=BOUND)], {UNO.busId})
        _, result = self.imports()
        self.backend.calls[0].fail(OperationTimedOut(UNO, "it is stuck"))
        self.failureResultOf(result, OperationTimedOut)
        self.assertEqual((self.clock.readers, self.ended), ([], []))
        _, result = self.imports()
        self.backend.calls[1].succeed()
        self.successResultOf(result)

    def test_talks(self) -> None:
        """A client that sends data or disconnects while the device is bound gets no device."""
        self.patiently()
        self.start(ON_IMPORT)
        for number, wrong in enumerate((lambda c: c.send(b"x"), socket.socket.close)):
            client, result = self.imports()
            wrong(client)
            self.backend.calls[number].succeed()
            self.failureResultOf(result, InvalidRequest)
            self.assertEqual(self.state(), BOUND)
            self.backend.inventory.replace([UNO], {UNO.busId})
        self.assertEqual(self.verbs(), ["bind", "bind"])

    def test_closed(self) -> None:
        """A connection that the daemon has closed itself is not handed over."""
        self.start(ALWAYS)
        _, server = self.connect()
        server.close()
        handOver = self.core.dispatcher.handOver
        result = asked(handOver(UNO.busId, Client(BOB), plain(server), lambda: None))
        self.failureResultOf(result, OperationFailed)
        self.assertEqual((self.state(), self.flushLoggedErrors()), (BOUND, []))


class JustFreedTests(ExportsTestCase):
    """
    A device that is shown as in use although its session is over: the kernel resets it.
    """

    def setUp(self) -> None:
        super().setUp()
        self.resetting = self.backend = ResettingBackend((UNO,))

    def test_waits(self) -> None:
        """
        A client that comes just after the end of a session waits a moment, and gets the
        device.
        """
        self.start(ALWAYS)
        self.leaves(self.given())
        _, result = self.imports()
        self.clock.advance(REFRESH_PAUSE)
        self.assertNoResult(result)
        self.resetting.over.add(UNO.busId)
        self.clock.advance(REFRESH_PAUSE)
        self.successResultOf(result)
        self.assertEqual(self.heard[-2:], [("released", UNO.busId), ("imported", UNO.busId)])

    def test_notLong(self) -> None:
        """It waits for at most a second: the device may be in use by a client of another server."""
        self.start(ALWAYS)
        self.take(address=ALICE.address)
        _, result = self.imports()
        self.sleep(JUST_FREED - REFRESH_PAUSE, REFRESH_PAUSE)
        self.assertNoResult(result)
        self.sleep(2 * REFRESH_PAUSE, REFRESH_PAUSE)
        self.assertIn(ALICE.address, str(self.failureResultOf(result, DeviceInUse).value))

    def test_unplugged(self) -> None:
        """It is refused if the device is unplugged meanwhile."""
        self.start(ALWAYS)
        self.take()
        _, result = self.imports()
        self.unplug()
        self.clock.advance(REFRESH_PAUSE)
        self.failureResultOf(result, DeviceNotFound)

    def test_somebodyElse(self) -> None:
        """Of two waiting clients, the second is refused as soon as the first has the device."""
        self.start(ALWAYS)
        self.leaves(self.given())
        self.resetting.over.add(UNO.busId)
        both = [self.imports()[1] for _ in range(2)]
        self.clock.advance(REFRESH_PAUSE)
        self.successResultOf(both[0])
        self.failureResultOf(both[1], DeviceInUse)

    def test_looks(self) -> None:
        """
        After the end of a session the device is refreshed at once, and again when the
        kernel may have reset it.
        """
        self.start(ALWAYS)
        self.leaves(self.given())
        self.clock.advance(0)
        self.assertEqual(len(self.backend.refreshed), 1)
        self.resetting.over.add(UNO.busId)
        self.clock.advance(REFRESH_AFTER[1])
        self.assertIs(self.state(), BOUND)
        self.clock.advance(REFRESH_AFTER[-1])
        self.assertEqual(len(self.backend.refreshed), len(REFRESH_AFTER))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopped(self) -> None:
        """A daemon that has stopped refreshes no devices."""
        self.start(ALWAYS)
        self.leaves(self.given())
        self.successResultOf(asked(self.core.stop()))
        self.clock.advance(REFRESH_AFTER[-1])
        self.assertEqual(self.backend.refreshed, [])

    def test_cannotLook(self) -> None:
        """A refresh that fails with a bug is logged as one, and has no other effect."""

        async def fail(device: UsbDevice) -> None:
            raise ZeroDivisionError

        self.start(ALWAYS)
        client = self.given()
        self.patch(self.backend, "refresh", fail)
        self.leaves(client)
        self.clock.advance(0)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class OnImportTests(ExportsTestCase):
    """
    C{share: on_import}, and C{unbind_released}.
    """

    def test_binds(self) -> None:
        """
        With C{share: on_import} a free device is bound for the import, and stays bound
        after the session.
        """
        self.start(ON_IMPORT)
        client = self.given()
        self.assertEqual(self.verbs(), ["bind", "export"])
        self.leaves(client)
        self.giveBack()
        self.sleep(100)
        self.assertIs(self.state(), BOUND)
        self.given()
        self.assertEqual(self.verbs(), ["bind", "export", "export"])

    def test_unbinds(self) -> None:
        """With C{unbind_released} it is unbound when it is not in use any more, each time."""
        self.start(LENT)
        for _ in range(2):
            self.leaves(self.given())
            self.assertIs(self.state(), IN_USE)
            self.giveBack()
            self.assertIs(self.state(), FREE)
        self.assertEqual(self.verbs(), 2 * ["bind", "export", "unbind"])

    def test_unbindsLate(self) -> None:
        """
        It is unbound too if the backend reports the end of the session before the
        connection ends.
        """
        self.start(LENT)
        client = self.given()
        self.giveBack()
        self.assertIs(self.state(), BOUND)
        self.leaves(client)
        self.assertIs(self.state(), FREE)

    def test_takenAgain(self) -> None:
        """
        The end of a session does not affect the next client that has imported the device
        already.
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

    def test_takenWhileGiven(self) -> None:
        """Nor does it affect a client to which the device is just being handed over."""
        self.patiently()
        self.start(LENT)
        first, result = self.imports()
        for call in (0, 1):
            self.backend.calls[call].succeed()
        self.successResultOf(result)
        self.giveBack()
        _, result = self.imports(principal=ALICE)
        self.leaves(first)
        self.backend.calls[2].succeed()
        self.successResultOf(result)
        self.sleep(100)
        self.assertEqual(self.verbs(), ["bind", "export", "export"])

    def test_wantedWhileUnbinding(self) -> None:
        """An import during the unbind is carried out after it."""
        self.patiently()
        self.start(LENT)
        first, result = self.imports()
        for call in (0, 1):
            self.backend.calls[call].succeed()
        self.successResultOf(result)
        self.leaves(first)
        self.giveBack()
        _, result = self.imports()
        self.assertEqual(self.verbs(), ["bind", "export", "unbind"])
        for call in (2, 3, 4):
            self.assertNoResult(result)
            self.backend.calls[call].succeed()
        self.successResultOf(result)
        self.assertEqual(self.verbs()[3:], ["bind", "export"])

    def test_attached(self) -> None:
        """A device that a client has attached stays bound until it is detached."""
        self.start(LENT)
        self.done("attach")
        self.leaves(self.given())
        self.giveBack()
        self.sleep(100)
        self.assertIs(self.state(), BOUND)
        self.done("detach")
        self.assertIs(self.state(), FREE)

    def test_always(self) -> None:
        """With C{share: always} a device stays bound whatever else its rule contains."""
        self.start(Rule(match=Match(bus="*"), share=Share.ALWAYS, unbind_released=True))
        self.leaves(self.given())
        self.giveBack()
        self.sleep(100)
        self.assertEqual(self.verbs(), ["bind", "export"])

    def test_onRequest(self) -> None:
        """With C{unbind_released} a device that was bound otherwise is unbound too."""
        self.start(Rule(match=Match(bus="*"), unbind_released=True))
        self.backend.inventory.replace([changed(UNO, state=BOUND)], {UNO.busId})
        self.leaves(self.given())
        self.giveBack()
        self.assertIs(self.state(), FREE)

    def test_bindFails(self) -> None:
        """If the bind fails, this client and the next one get the error."""
        self.patiently()
        self.start(LENT)
        for number in (0, 1):
            _, result = self.imports()
            self.backend.calls[number].fail(OperationFailed(UNO, "no more room"))
            self.assertIn("no more room", str(self.failureResultOf(result).value))
        self.assertEqual(self.verbs(), ["bind", "bind"])

    def test_exportFails(self) -> None:
        """If the bind succeeds and the export fails, the device is unbound again."""
        self.patiently()
        self.start(LENT)
        _, result = self.imports()
        self.backend.calls[0].succeed()
        self.backend.calls[1].fail(OperationFailed(UNO, "it is broken"))
        self.failureResultOf(result, OperationFailed)
        self.assertEqual(self.verbs(), ["bind", "export", "unbind"])

    def test_veto(self) -> None:
        """A C{before_bind} hook can veto the bind for an import."""
        no = Hook(events=(Occasion.BEFORE_BIND,), command=("/nonexistent/hook",))
        self.start(Rule(match=Match(bus="*"), share=Share.ON_IMPORT, hooks=(no,)))
        self.assertIn("not bound", self.denied(OperationFailed))
        self.assertEqual(self.verbs(), [])

    def test_unplugged(self) -> None:
        """After a session that ended because the device was unplugged, nothing is done."""
        self.start(LENT)
        client = self.given()
        self.unplug()
        self.leaves(client)
        self.plug()
        self.sleep(100)
        self.assertEqual(self.verbs(), ["bind", "export"])
        self.assertEqual(len(self.ended), 1)

    def test_onStop(self) -> None:
        """With C{on_stop: unbind} a device that was bound for an import is unbound too."""
        self.start(ON_IMPORT)
        self.leaves(self.given())
        self.giveBack()
        self.core.reload(self.settings(NEVER))
        self.assertIs(self.state(), FREE)


class MeanwhileTests(ExportsTestCase):
    """
    Other things happen to the device at the same time.
    """

    def setUp(self) -> None:
        super().setUp()
        self.patiently()
        self.start()
        self.backend.inventory.replace([changed(UNO, state=BOUND)], {UNO.busId})

    def test_twoWant(self) -> None:
        """
        Of two clients that import one device, one gets it, and the other is refused when
        that is certain.
        """
        _, first = self.imports()
        _, second = self.imports(principal=ALICE)
        self.assertEqual(self.verbs(), ["export"])
        self.backend.calls[0].succeed()
        self.successResultOf(first)
        self.assertIn(BOB.address, str(self.failureResultOf(second, DeviceInUse).value))

    def test_secondAfterFailure(self) -> None:
        """If the first import fails, the second client gets the device."""
        _, first = self.imports()
        _, second = self.imports(principal=ALICE)
        self.backend.calls[0].fail(OperationFailed(UNO, "the client is gone"))
        self.failureResultOf(first, OperationFailed)
        self.backend.calls[1].succeed()
        self.assertEqual(self.successResultOf(second).holder, held(ALICE, EPOCH))

    def test_detaching(self) -> None:
        """An import during a detach waits for it, and is refused."""
        detach = self.ask("detach")
        _, result = self.imports()
        self.assertEqual(self.verbs(), ["unbind"])
        self.backend.calls[0].succeed()
        self.successResultOf(detach)
        self.failureResultOf(result, DeviceNotFound)
        self.assertEqual(self.verbs(), ["unbind"])

    def test_attaching(self) -> None:
        """An import during an attach waits for it, and gets the device."""
        self.backend.inventory.replace([changed(UNO, state=DeviceState.ERROR)], {UNO.busId})
        attach = self.ask("attach")
        _, result = self.imports()
        self.assertEqual(self.verbs(), ["bind"])
        self.backend.calls[0].succeed()
        self.successResultOf(attach)
        self.backend.calls[1].succeed()
        self.successResultOf(result)

    def test_detachWhileGiven(self) -> None:
        """A detach during the hand-over waits for it, and then ends the session."""
        _, result = self.imports()
        detach = self.ask("detach")
        self.backend.calls[0].succeed()
        self.successResultOf(result)
        self.backend.calls[1].succeed()
        self.successResultOf(detach)
        self.assertEqual(self.verbs(), ["export", "unbind"])

    def test_unplugged(self) -> None:
        """
        If another device is plugged in at the same port meanwhile, it is not handed over by
        mistake.
        """
        detach = self.ask("detach")
        _, result = self.imports()
        self.plug(STICK, busId=UNO.busId)
        self.backend.calls[0].fail(OperationFailed(UNO, "it is gone"))
        self.failureResultOf(detach)
        self.failureResultOf(result, DeviceNotFound)

    def test_givenUp(self) -> None:
        """
        A client that has waited too long is refused. An export that is still in progress
        ends by itself, because its connection is closed.
        """
        detach = self.ask("detach")
        client, result = self.imports()
        self.sleep(30)
        self.backend.calls[0].fail(OperationFailed(UNO, "it does not let go"))
        self.failureResultOf(detach, StillWorking)
        self.assertEqual(self.verbs(), ["unbind", "export"])
        self.sleep(EXPORT_SECONDS)
        self.failureResultOf(result, StillWorking)
        self.backend.calls[1].succeed()
        self.assertEqual(self.ended, [])
        self.leaves(client)
        self.assertEqual(self.ended, [client])

    def test_whoAsked(self) -> None:
        """While a device is handed over, the error of an attach names the client that gets it."""
        _, result = self.imports()
        attach = self.ask("attach")
        self.backend.calls[0].succeed()
        self.successResultOf(result)
        self.backend.calls[1].fail(DeviceInUse(UNO))
        self.assertIn(BOB.address, str(self.failureResultOf(attach, DeviceInUse).value))


class EndTests(ExportsTestCase):
    """
    The end of a session.
    """

    def test_told(self) -> None:
        """The protocol is notified once of the end of a session."""
        self.start(ALWAYS)
        client = self.given()
        self.clock.deliver()
        self.assertEqual(self.ended, [])
        for _ in range(2):
            self.leaves(client)
        self.assertEqual(self.ended, [client])

    def test_afterStop(self) -> None:
        """Sessions outlast the daemon, except with C{on_stop: unbind}."""
        self.start(ALWAYS)
        client = self.given()
        self.successResultOf(asked(self.core.stop()))
        self.leaves(client)
        self.assertEqual((self.ended, self.clock.readers), ([], []))


class CarrierTests(ExportsTestCase):
    """
    What USB traffic goes over.
    """

    def setUp(self) -> None:
        super().setUp()
        self.recording = self.backend = RecordingBackend((UNO,))
        self.logged: list[LogEvent] = []
        observer = cast(ILogObserver, self.logged.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.start(ALWAYS)

    def asks(self, carrier: SessionSocket) -> Deferred[UsbDevice]:
        """A client wants the device over this."""
        return asked(self.core.dispatcher.handOver(UNO.busId, Client(BOB), carrier, lambda: None))

    def test_given(self) -> None:
        """
        The device gets the socket that is given for it, and the end of the session is
        detected on the client's connection.
        """
        client, server = self.connect()
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        carrier = SessionSocket(given=theirs, connection=server, encryption=Encryption.RELAY)
        device = self.successResultOf(self.asks(carrier))
        assert device.holder is not None
        self.assertIs(device.holder.encryption, Encryption.RELAY)
        self.assertEqual(self.recording.given, [socket.AF_UNIX])
        theirs.close()
        server.close()
        self.clock.deliver()
        self.assertEqual(self.backend.refreshed, [])
        self.leaves(client)
        self.sleep(1)
        self.assertNotEqual(self.backend.refreshed, [])

    def test_told(self) -> None:
        """For each import the log contains how its traffic is encrypted."""
        for encryption, word in (
            (Encryption.NONE, "plain"),
            (Encryption.KTLS, "ktls"),
            (Encryption.RELAY, "relay"),
        ):
            client, server = self.connect()
            carrier = SessionSocket(given=server, connection=server, encryption=encryption)
            self.successResultOf(self.asks(carrier))
            said = map(formatEvent, self.logged)
            lines = [line for line in said if line.startswith(f"{BOB.address} has")]
            self.assertEqual(len(lines), 1, lines)
            for text in (BOB.address, str(UNO), word):
                self.assertIn(text, lines[0])
            self.logged.clear()
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

    def test_onImport(self) -> None:
        """Devices with C{share: on_import} are listed too."""
        self.start(Rule(match=Match(bus="1-2"), share=Share.ON_IMPORT))
        self.assertEqual(self.importable(), ["1-2"])
        self.given("1-2")
        self.assertEqual(self.importable(), ["1-2"])

    def test_never(self) -> None:
        """Devices with C{share: never} are not listed in any state."""
        self.start(Rule(match=Match(bus="1-2"), share=Share.NEVER), ON_IMPORT)
        for state in (FREE, BOUND, IN_USE):
            self.backend.inventory.replace([changed(STICK, state=state)], {"1-2"})
            self.assertEqual(self.importable(), ["1-1.4", "2-10"])

    def test_reloaded(self) -> None:
        """A reload of the rules changes the list."""
        self.start(ON_IMPORT)
        self.core.reload(self.settings(NEVER))
        self.assertEqual(self.importable(), [])
