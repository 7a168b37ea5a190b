"""
Things that happen at the same time: what clients ask for, what devices do, and the end of
leases, each in the middle of the other.
"""

from __future__ import annotations

from msgspec.structs import replace

from tests.server.desiredcase import (
    ALWAYS,
    EPOCH,
    NEVER,
    Client,
    DesiredTestCase,
    MemoryStateFile,
)
from tests.support.fixtures import (
    BOB,
    STICK,
    UNO,
    PatientBackend,
    PromptBackend,
    asked,
    changed,
    watching,
)
from usbip_server.model.device import DeviceState, Lease, UsbDevice
from usbip_server.model.devicerules import Match, Rule
from usbip_server.model.errors import (
    DeviceInUse,
    DeviceLeased,
    DeviceNotFound,
    NotDone,
    OperationFailed,
    StillWorking,
)
from usbip_server.model.requests import WatchDevices
from usbip_server.server.config import LiveSettings, OnStop
from usbip_server.server.core import Core
from usbip_server.server.devices.desiredstate import DesiredDevice, State
from usbip_server.server.devices.hooks import HookDispatcher

FREE, BOUND, IN_USE = DeviceState.FREE, DeviceState.BOUND, DeviceState.IN_USE
TWIN = changed(UNO, busId="1-3", deviceNumber=9)
WHILE = {"owner": "a", "ttl": "connection"}


def lease(owner: str, ttl: float = 600) -> dict[str, object]:
    """A lease, as it is asked for."""
    return {"owner": owner, "ttl": ttl}


class PatientTestCase(DesiredTestCase):
    """
    Operations take until the test ends them.
    """

    def setUp(self) -> None:
        super().setUp()
        self.backend = PatientBackend(self.devices)

    @property
    def verbs(self) -> list[str]:
        """What was asked of the backend."""
        return [call.verb for call in self.backend.calls]

    def fails(self, index: int = -1) -> None:
        """An operation goes wrong."""
        call = self.backend.calls[index]
        call.fail(OperationFailed(call.device, "no"))


class MeanwhileTests(PatientTestCase):
    """
    While an operation is in progress.
    """

    def test_leasedMeanwhile(self) -> None:
        """
        After waiting for another operation a client is checked again: a device that was
        leased meanwhile is neither detached nor released.
        """
        for command in ("detach", "kick"):
            self.backend, self.file = PatientBackend(self.devices), MemoryStateFile()
            self.start()
            self.ask("attach")
            late = self.ask(command)
            first = self.ask("attach", lease=lease("a"))
            self.backend.calls[0].succeed()
            self.successResultOf(first)
            self.failureResultOf(late, DeviceLeased)
            self.assertEqual(self.verbs, ["bind"], command)

    def test_sameDevice(self) -> None:
        """With C{first} the device is the one that was selected before the wait."""
        other = changed(UNO, busId="1-5", serial="X", deviceNumber=8)
        self.backend = PatientBackend((UNO, other))
        self.start()
        detach = self.ask("detach", id=UNO.busId)
        late = self.ask("attach", id="1-*", first=True, lease=lease("a"))
        self.unplug()
        self.fails(0)
        self.failureResultOf(detach, OperationFailed)
        self.failureResultOf(late, DeviceNotFound)
        self.assertEqual(len(self.backend.calls), 1)

    def test_clientGone(self) -> None:
        """If a client disconnects before its bind has ended, the device is unbound again."""
        self.start()
        client = Client()
        self.ask("attach", client, lease=WHILE)
        client.gone()
        self.assertIsNone(self.shown().lease)
        self.backend.calls[0].succeed()
        self.assertEqual(self.verbs, ["bind", "unbind"])

    def test_leaseEndsMeanwhile(self) -> None:
        """So it is if the lease was shorter than the bind."""
        self.start()
        result = self.ask("attach", lease=lease("a", 5))
        self.sleep(6)
        self.failureResultOf(result, StillWorking)
        self.backend.calls[0].succeed()
        self.assertEqual(self.verbs, ["bind", "unbind"])

    def test_nextJoins(self) -> None:
        """If the next client gets the device by then, it stays bound."""
        self.start()
        client = Client()
        self.ask("attach", client, lease=WHILE)
        second = self.ask("attach", Client(BOB), lease=lease("b"), wait=60)
        client.gone()
        self.backend.calls[0].succeed()
        self.successResultOf(second)
        self.assertEqual(self.verbs, ["bind"])

    def test_joinedLease(self) -> None:
        """A client that has joined an attach that fails has no lease."""
        self.start()
        first, second = self.ask("attach"), self.ask("attach", lease=lease("b"))
        self.sleep(2)
        for result in (first, second):
            self.failureResultOf(result, StillWorking)
        self.fails()
        self.assertIsNone(self.shown().lease)
        self.assertEqual(self.file.state.devices, ())

    def test_goneWhileWithdrawn(self) -> None:
        """
        A connection that ends while its lease is withdrawn leaves no lease behind, even if
        the unbind fails.
        """
        for command, keys in (
            ("detach", {"owner": "a"}),
            ("attach", {"lease": lease("b"), "force": True}),
        ):
            self.backend, self.file = PatientBackend(self.devices), MemoryStateFile()
            self.start()
            client = Client()
            self.ask("attach", client, lease=WHILE)
            self.backend.calls[0].succeed()
            late = self.ask(command, Client(BOB), **keys)
            client.gone()
            self.fails()
            self.failureResultOf(late, OperationFailed)
            self.assertIsNone(self.shown().lease, command)

    def test_forceFails(self) -> None:
        """If a forced attach fails, the device still belongs to its owner."""
        self.start()
        self.ask("attach", lease=lease("a"))
        self.backend.calls[0].succeed()
        self.take()
        late = self.ask("attach", lease=lease("b"), force=True)
        self.fails()
        self.failureResultOf(late, OperationFailed)
        shown = self.shown().lease
        self.assertEqual(shown and shown.owner, "a")
        self.sleep(600)
        self.assertIsNone(self.shown().lease)

    def test_forceBeforeWaiters(self) -> None:
        """A device that is taken with C{force} is not given to a waiting client."""
        self.start()
        self.ask("attach")
        self.backend.calls[0].succeed()
        self.take()
        waiting = self.ask("attach", Client(), wait=60)
        forced = self.ask("attach", Client(BOB), force=True)
        self.backend.calls[1].succeed()
        self.backend.calls[2].succeed()
        self.successResultOf(forced)
        self.assertNoResult(waiting)

    def test_slowUnbind(self) -> None:
        """
        A waiting client gets the device even if the unbind before it takes longer than a
        reply may.
        """
        self.start()
        self.ask("attach", lease=lease("a", 10))
        self.backend.calls[0].succeed()
        waiting = self.ask("attach", lease=lease("b"), wait=600)
        third = self.ask("attach", lease=lease("c"), wait=600)
        self.sleep(15)
        self.assertEqual(self.verbs, ["bind", "unbind"])
        self.assertNoResult(waiting)
        self.backend.calls[1].succeed()
        self.backend.calls[2].succeed()
        device = self.successResultOf(waiting)
        assert isinstance(device, UsbDevice)
        self.assertEqual(device.lease and device.lease.owner, "b")
        self.assertNoResult(third)

    def test_tiesEnd(self) -> None:
        """Only the lease in force keeps a connection open, not earlier ones."""
        self.start()
        client = Client()
        self.ask("attach", client, lease=WHILE)
        self.backend.calls[0].succeed()
        for _ in range(3):
            self.done("renew", client, lease={"owner": "a"})
        self.assertTrue(client.isHeld)
        self.ask("detach", client, owner="a")
        self.assertFalse(client.isHeld)
        self.backend.calls[1].succeed()
        failing = self.ask("attach", client, lease=WHILE)
        self.fails()
        self.failureResultOf(failing, OperationFailed)
        self.assertFalse(client.isHeld)


class GivingBackTests(PatientTestCase):
    """
    What is to be unbound and does not want to.
    """

    def test_leftOver(self) -> None:
        """After a lease the unbind is retried until it succeeds."""
        self.start()
        self.ask("attach", lease=lease("a", 5))
        self.backend.calls[0].succeed()
        self.sleep(5)
        self.fails()
        self.sleep(1)
        self.fails()
        self.sleep(2)
        self.backend.calls[-1].succeed()
        self.sleep(200)
        self.assertEqual(self.verbs, ["bind", "unbind", "unbind", "unbind"])

    def test_leftOverWanted(self) -> None:
        """It is not retried if a client has attached the device by then."""
        self.start()
        self.ask("attach", lease=lease("a", 5))
        self.backend.calls[0].succeed()
        self.sleep(5)
        self.fails()
        again = self.ask("attach", lease=lease("b"))
        self.backend.calls[-1].succeed()
        self.successResultOf(again)
        self.sleep(200)
        self.assertEqual(self.verbs, ["bind", "unbind", "bind"])

    def test_hidden(self) -> None:
        """When a lease expires its session ends even if the device is not shared any more."""
        self.start()
        self.ask("attach", lease=lease("a", 10))
        self.backend.calls[0].succeed()
        self.take()
        self.core.reload(self.settings(NEVER))
        self.assertEqual(self.verbs, ["bind"])
        self.sleep(10)
        self.assertEqual(self.verbs, ["bind", "unbind"])

    def test_forbidden(self) -> None:
        """
        The unbind of a device that must not be shared any more is retried with growing
        pauses.
        """
        self.start()
        self.ask("attach")
        self.backend.calls[0].succeed()
        self.core.reload(self.settings(NEVER))
        for _ in range(3):
            self.fails()
            self.assertEqual(self.verbs.count("unbind"), len(self.verbs) - 1)
            before = len(self.verbs)
            self.core.reload(self.settings(NEVER))
            self.assertEqual(len(self.verbs), before)
            self.sleep(8)
            self.assertEqual(len(self.verbs), before + 1)

    def test_forgiven(self) -> None:
        """After a success the first pause is short again."""
        self.start(ALWAYS)
        for _ in range(6):
            self.fails()
            self.sleep(64)
        self.backend.calls[-1].succeed()
        device = self.backend.inventory.get(UNO.busId)
        assert device is not None
        self.backend.inventory.replace([changed(device, state=FREE)], {UNO.busId})
        self.fails()
        before = len(self.verbs)
        self.sleep(1)
        self.assertEqual(len(self.verbs), before + 1)

    def test_gonePauses(self) -> None:
        """A bind that failed because the device was unplugged is not retried."""
        self.start(ALWAYS)
        self.unplug()
        self.fails()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_saidOnce(self) -> None:
        """The same error is logged once, however often the operation is retried."""
        self.start(ALWAYS)
        failed: list[str] = []
        self.patch(HookDispatcher, "failed", lambda _, device, why: failed.append(why))
        for _ in range(4):
            self.fails()
            self.sleep(64)
        call = self.backend.calls[-1]
        call.fail(OperationFailed(call.device, "another reason"))
        self.assertEqual(failed, ["no", "another reason"])

    def test_stopWhileBinding(self) -> None:
        """C{on_stop: unbind} also unbinds a device that was just being bound."""
        self.start(onStop=OnStop.UNBIND)
        result = self.ask("attach")
        stopped = asked(self.core.stop())
        self.backend.calls[0].succeed()
        self.successResultOf(result)
        self.assertEqual(self.verbs, ["bind", "unbind"])
        self.backend.calls[1].succeed()
        self.successResultOf(stopped)


class StartTests(PatientTestCase):
    """
    What was asked of an earlier daemon.
    """

    def setUp(self) -> None:
        super().setUp()
        self.backend = PatientBackend((), started=False)

    def begin(self, lease: Lease) -> None:
        """Start with a lease in the file, on a device that is bound; it takes a while."""
        wish = DesiredDevice(
            vendorId=UNO.vendorId,
            productId=UNO.productId,
            serial=UNO.serial,
            busId=UNO.busId,
            lease=lease,
        )
        self.file.state = State(devices=(wish, replace(wish, lease=replace(lease))))
        self.core = Core(
            self.backend,
            self.clock,
            LiveSettings(self.settings()),
            self.file,  # type: ignore[arg-type]
            now=lambda: EPOCH + self.clock.seconds(),
        )
        starting = asked(self.core.start())
        self.clock.advance(1)
        self.backend.inventory.replace([changed(UNO, state=BOUND)])
        self.backend.starting.callback(None)
        self.successResultOf(starting)

    def test_endedMeanwhile(self) -> None:
        """
        A lease that expired while no daemon ran ends when the devices are known, and not
        before.
        """
        self.begin(Lease(owner="a", address="192.0.2.7", ttl=600.0, until=EPOCH - 50))
        self.clock.advance(0)
        self.assertEqual(self.verbs, ["unbind"])

    def test_twice(self) -> None:
        """A lease that is in the state file twice ends once."""
        self.begin(Lease(owner="a", address="192.0.2.7", ttl=600.0, until=EPOCH + 50))
        self.sleep(100)
        self.assertEqual(self.verbs, ["unbind"])
        self.backend.calls[0].succeed()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class IdentityTests(DesiredTestCase):
    """
    Which device is meant.
    """

    def setUp(self) -> None:
        super().setUp()
        self.backend = PromptBackend((UNO, TWIN))

    def test_twinLeftAlone(self) -> None:
        """
        When a device is unplugged, another one with the same serial number that was plugged
        in all the time is not taken for it.
        """
        self.start()
        self.done("attach", lease=lease("a"))
        self.unplug()
        self.backend.inventory.replace([changed(TWIN, driver="x")], {TWIN.busId})
        self.core.reload(self.settings())
        self.assertIs(self.state(TWIN.busId), FREE)
        self.plug()
        self.assertIs(self.state(), BOUND)
        self.assertIsNotNone(self.shown().lease)

    def test_movedIsSaved(self) -> None:
        """The port where a device was last seen is saved."""
        self.start()
        self.done("attach")
        self.unplug()
        self.plug(busId="1-7")
        self.assertEqual([wish.busId for wish in self.file.state.devices], ["1-7"])

    def test_detachAway(self) -> None:
        """A device that is not plugged in can be detached; if it is leased, by its owner only."""
        self.start()
        self.done("attach")
        self.unplug()
        self.assertEqual(self.done("detach", id=UNO.busId).description, UNO.description)
        self.assertEqual(self.file.state.devices, ())
        self.plug()
        self.assertIs(self.state(), FREE)
        self.done("attach", lease=lease("a"))
        self.unplug()
        self.refused(DeviceLeased, "detach", id=UNO.busId)
        self.done("detach", id=UNO.busId, owner="a")
        self.refused(DeviceNotFound, "detach", id=UNO.busId)

    def test_othersBinding(self) -> None:
        """A device that another program binds after a detach is not treated as the daemon's."""
        self.start(onStop=OnStop.UNBIND)
        self.done("attach")
        self.done("detach")
        self.backend.inventory.replace([changed(UNO, state=BOUND)], {UNO.busId})
        self.successResultOf(asked(self.core.stop()))
        self.assertIs(self.state(), BOUND)


class FlappingTests(DesiredTestCase):
    """
    Devices that come and go all the time, and what was said of them.
    """

    def flap(self) -> None:
        """Too often."""
        for _ in range(8):
            self.unplug()
            self.plug()

    def test_hidden(self) -> None:
        """A device that is never shared is not shown while it is flapping."""
        self.start(NEVER)
        self.flap()
        self.assertEqual((self.listed(), self.heard), ((), []))

    def test_hiddenMeanwhile(self) -> None:
        """Nor is one that is hidden by a reload meanwhile."""
        self.start()
        self.flap()
        self.core.reload(self.settings(NEVER))
        self.assertEqual(self.listed(), ())

    def test_lease(self) -> None:
        """A flapping device keeps its lease and its name."""
        self.start(Rule(match=Match(bus="*"), name="uno"))
        self.done("attach", lease=lease("a"))
        self.flap()
        self.assertEqual(self.shown().name, "uno")
        self.refused(DeviceLeased, "attach", lease=lease("b"))

    def test_detach(self) -> None:
        """A detach during flapping is remembered: the device is not bound again."""
        self.backend = PromptBackend(self.devices)
        self.start()
        self.done("attach")
        self.flap()
        self.ask("detach").addErrback(lambda _: None)
        self.sleep(3)
        self.assertIs(self.state(), FREE)

    def test_holder(self) -> None:
        """A flapping device has no holder."""
        self.start()
        self.done("attach")
        self.take()
        self.flap()
        self.assertIsNone(self.shown().holder)


class TurnTests(DesiredTestCase):
    """
    Turns that come to nothing.
    """

    devices = (UNO, STICK)

    def test_failed(self) -> None:
        """A client whose bind fails does not delay the next one."""
        self.start()
        self.done("attach")
        self.take()
        real = self.backend.bind

        async def no(*asked_: object) -> object:
            self.backend.bind = real  # type: ignore[method-assign]
            raise OperationFailed(UNO, "no")

        self.backend.bind = no  # type: ignore[method-assign, assignment]
        first, second = (self.ask("attach", Client(), wait=60) for _ in range(2))
        self.giveBack()
        self.failureResultOf(first, OperationFailed)
        self.successResultOf(second)

    def test_force(self) -> None:
        """A forced attach does not wait in the queue."""
        self.start()
        self.done("attach", lease=lease("a"))
        waiting = self.ask("attach", Client(), lease=lease("b"), wait=60)
        self.done("attach", Client(BOB), lease=lease("admin"), wait=60, force=True)
        self.assertNoResult(waiting)

    def test_othersTurn(self) -> None:
        """A client that waits behind others receives that as the reason."""
        self.start()
        self.done("attach")
        self.take()
        self.ask("attach", Client(), wait=60)
        client = Client(BOB)
        self.giveBack()
        second = self.ask("attach", client, wait=3)
        self.assertIn("other clients wait for", client.told[0]["message"])
        self.sleep(3)
        message = str(self.failureResultOf(second, OperationFailed).value)
        self.assertIn("other clients wait for", message)

    def test_eventsInOrder(self) -> None:
        """
        When a lease ends and the next client in the queue gets the device at once, a watching
        client receives the events in the order of their numbers.
        """
        self.start()
        received: list[int] = []
        _, subscription = watching(self.core, WatchDevices(), Client())
        subscription.begin(lambda event, line: received.append(event.seq))
        self.done("attach", lease=lease("a", 1))
        waiting = self.ask("attach", Client(BOB), lease=lease("b"), wait=60)
        self.sleep(1)
        self.successResultOf(waiting)
        self.assertGreaterEqual(len(received), 3)
        self.assertEqual(received, [*range(received[0], received[0] + len(received))])

    def test_freshReason(self) -> None:
        """The reason at the end of the wait is the current one."""
        self.start()
        self.done("attach", lease=lease("a", 600))
        waiting = self.ask("attach", Client(), wait=300)
        self.sleep(300)
        self.assertIn("for 300 s more", str(self.failureResultOf(waiting, DeviceLeased).value))

    def test_stopped(self) -> None:
        """A client that retries when the daemon has stopped receives an error."""
        self.start()

        async def busy(*asked_: object) -> object:
            raise DeviceInUse(UNO)

        self.backend.bind = busy  # type: ignore[method-assign, assignment]
        waiting = self.ask("attach", Client(), wait=600)
        self.successResultOf(asked(self.core.stop()))
        self.sleep(1)
        self.failureResultOf(waiting)
        gone = Client()
        gone.gone()
        self.restart()
        self.refused(NotDone, "attach", gone)
