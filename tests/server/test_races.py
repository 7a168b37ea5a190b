"""
Requests, changes of devices and ends of leases that happen at the same time.
"""

from __future__ import annotations

from msgspec.structs import replace

from tests.server.corecase import (
    ALWAYS,
    BOUND,
    EPOCH,
    FREE,
    NEVER,
    Client,
    CoreTestCase,
    PatientCoreTestCase,
    lease,
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
from usbip_server.model.device import Lease
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
from usbip_server.server.config import OnStop
from usbip_server.server.devices.desireddevice import DesiredDevice, State
from usbip_server.server.devices.hooks import HookDispatcher

TWIN = changed(UNO, busId="1-3", deviceNumber=9)
WHILE_CONNECTED = lease("a", "connection")


class DuringOperationTests(PatientCoreTestCase):
    """
    What happens while an operation is in progress.
    """

    def setUp(self) -> None:
        super().setUp()
        self.start()

    def attached(self, client: Client | None = None, **keys: object) -> None:
        """Attach the device; the bind succeeds."""
        self.ask("attach", client, **keys)
        self.succeed()

    def test_leasedMeanwhile(self) -> None:
        """A device that was leased during the wait is neither detached nor kicked after it."""
        for command in ("detach", "kick"):
            self.startAnew()
            self.ask("attach")
            late = self.ask(command)
            first = self.ask("attach", lease=lease("a"))
            self.succeed(0)
            self.device(first)
            self.error(DeviceLeased, late)
            self.assertEqual(self.verbs, ["bind"], command)

    def test_sameDevice(self) -> None:
        """With C{first} the device is the one that was selected before the wait."""
        self.backend = PatientBackend((UNO, changed(UNO, busId="1-5", serial="X", deviceNumber=8)))
        self.start()
        detach = self.ask("detach")
        late = self.ask("attach", id="1-*", first=True, lease=lease("a"))
        self.unplug()
        self.fail_(0)
        self.error(OperationFailed, detach)
        self.error(DeviceNotFound, late)
        self.assertEqual(len(self.verbs), 1)

    def test_leaseEndsDuringBind(self) -> None:
        """
        If the client disconnects or its lease expires before the bind has ended, the device is
        unbound again, unless the next client gets it by then.
        """
        for isLeft in (True, False):
            self.startAnew()
            client = Client()
            self.ask("attach", client, lease=WHILE_CONNECTED)
            if not isLeft:
                second = self.ask("attach", Client(BOB), lease=lease("b"), wait=60)
            client.gone()
            if isLeft:
                self.assertIsNone(self.owner())
            self.succeed(0)
            self.assertEqual(self.verbs, ["bind", "unbind"] if isLeft else ["bind"])
        self.device(second)
        self.startAnew()
        result = self.ask("attach", lease=lease("a", 5))
        self.sleep(6)
        self.error(StillWorking, result)
        self.succeed(0)
        self.assertEqual(self.verbs, ["bind", "unbind"])

    def test_joinedLease(self) -> None:
        """A client that has joined an attach that fails has no lease."""
        results = self.ask("attach"), self.ask("attach", lease=lease("b"))
        self.sleep(2)
        for result in results:
            self.error(StillWorking, result)
        self.fail_()
        self.assertIsNone(self.owner())
        self.assertEqual(self.file.state.devices, ())

    def test_goneWhileWithdrawn(self) -> None:
        """
        A connection that ends while its lease is withdrawn leaves no lease behind, even if the
        operation fails.
        """
        for command, keys in (
            ("detach", {"owner": "a"}),
            ("attach", {"lease": lease("b"), "force": True}),
        ):
            self.startAnew()
            client = Client()
            self.attached(client, lease=WHILE_CONNECTED)
            late = self.ask(command, Client(BOB), **keys)
            client.gone()
            self.fail_()
            self.error(OperationFailed, late)
            self.assertIsNone(self.owner(), command)

    def test_forceFails(self) -> None:
        """If a forced attach fails, the device still belongs to its owner."""
        self.attached(lease=lease("a"))
        self.take()
        late = self.ask("attach", lease=lease("b"), force=True)
        self.fail_()
        self.error(OperationFailed, late)
        self.assertEqual(self.owner(), "a")
        self.sleep(600)
        self.assertIsNone(self.owner())

    def test_forceBeforeWaiters(self) -> None:
        """A device that is taken with C{force} is not given to a waiting client."""
        self.attached()
        self.take()
        waiting = self.ask("attach", wait=60)
        forced = self.ask("attach", Client(BOB), force=True)
        self.succeed(1, 2)
        self.device(forced)
        self.assertNoResult(waiting)

    def test_slowUnbind(self) -> None:
        """
        A waiting client gets the device even if the unbind before it takes longer than a reply
        may.
        """
        self.attached(lease=lease("a", 10))
        waiting, third = (self.ask("attach", lease=lease(owner), wait=600) for owner in "bc")
        self.sleep(15)
        self.assertEqual(self.verbs, ["bind", "unbind"])
        self.assertNoResult(waiting)
        self.succeed(1, 2)
        self.device(waiting)
        self.assertEqual(self.owner(), "b")
        self.assertNoResult(third)

    def test_heldConnection(self) -> None:
        """A connection is kept open by the lease in force only, not by earlier ones."""
        client = Client()
        self.attached(client, lease=WHILE_CONNECTED)
        for _ in range(3):
            self.done("renew", client, lease={"owner": "a"})
        self.assertTrue(client.isHeld)
        self.ask("detach", client, owner="a")
        self.assertFalse(client.isHeld)
        self.succeed()
        failing = self.ask("attach", client, lease=WHILE_CONNECTED)
        self.fail_()
        self.error(OperationFailed, failing)
        self.assertFalse(client.isHeld)

    def test_unbindIsRetried(self) -> None:
        """After a lease the unbind is retried until it succeeds, or a client has the device."""
        for isWanted in (False, True):
            self.startAnew()
            self.attached(lease=lease("a", 5))
            self.sleep(5)
            self.fail_()
            if isWanted:
                self.attached(lease=lease("b"))
            else:
                self.sleep(1)
                self.fail_()
                self.sleep(2)
                self.succeed()
            self.sleep(200)
            expected = ["unbind", "bind"] if isWanted else 3 * ["unbind"]
            self.assertEqual(self.verbs, ["bind", *expected])

    def test_leaseOfHiddenDevice(self) -> None:
        """When a lease expires its session ends even if the device is not shared any more."""
        self.attached(lease=lease("a", 10))
        self.take()
        self.reload(NEVER)
        self.assertEqual(self.verbs, ["bind"])
        self.sleep(10)
        self.assertEqual(self.verbs, ["bind", "unbind"])

    def test_forbidden(self) -> None:
        """
        The unbind of a device that must not be shared any more is retried with growing pauses,
        which a reload does not shorten.
        """
        self.attached()
        self.reload(NEVER)
        for _ in range(3):
            self.fail_()
            self.assertEqual(self.verbs.count("unbind"), len(self.verbs) - 1)
            before = len(self.verbs)
            self.reload(NEVER)
            self.assertEqual(len(self.verbs), before)
            self.sleep(8)
            self.assertEqual(len(self.verbs), before + 1)

    def test_retriesOfBind(self) -> None:
        """
        The same error is passed to hooks once, however often the bind is retried; after a
        success the first pause is short again; after an unplug there is no retry.
        """
        failed: list[str] = []
        self.patch(HookDispatcher, "failed", lambda _, device, why: failed.append(why))
        self.startAnew(ALWAYS)
        for _ in range(6):
            self.fail_()
            self.sleep(64)
        self.fail_(-1, OperationFailed(UNO, "another reason"))
        self.assertEqual(failed, ["no", "another reason"])
        self.sleep(64)
        self.succeed()
        self.become(self.present(), state=FREE)
        self.fail_()
        before = len(self.verbs)
        self.sleep(1)
        self.assertEqual(len(self.verbs), before + 1)
        self.unplug()
        self.fail_()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopWhileBinding(self) -> None:
        """C{on_stop: unbind} also unbinds a device that was just being bound."""
        self.startAnew(onStop=OnStop.UNBIND)
        result = self.ask("attach")
        stopped = asked(self.core.stop())
        self.succeed(0)
        self.device(result)
        self.assertEqual(self.verbs, ["bind", "unbind"])
        self.succeed(1)
        self.successResultOf(stopped)


class LoadedLeaseTests(PatientCoreTestCase):
    """
    A lease that an earlier daemon has saved, twice, on a device that is bound. The backend takes
    a second to start.
    """

    def load(self, lease: Lease) -> None:
        """Start with the lease in the state file."""
        self.backend = PatientBackend((), started=False)
        desired = DesiredDevice(
            vendorId=UNO.vendorId,
            productId=UNO.productId,
            serial=UNO.serial,
            busId=UNO.busId,
            lease=lease,
        )
        self.file.state = State(devices=(desired, replace(desired, lease=replace(lease))))
        starting = self.begin()
        self.clock.advance(1)
        self.become(state=BOUND)
        self.backend.starting.callback(None)
        self.successResultOf(starting)

    def test_end(self) -> None:
        """It ends once: at its time, or when the devices are known if that has passed."""
        for until, seconds in ((EPOCH - 50, 0), (EPOCH + 50, 100)):
            self.load(Lease(owner="a", address="192.0.2.7", ttl=600.0, until=until))
            self.sleep(seconds)
            self.clock.advance(0)
            self.assertEqual(self.verbs, ["unbind"])
            self.succeed(0)
            self.assertEqual(self.clock.getDelayedCalls(), [])


class IdentityTests(CoreTestCase):
    """
    Which device is meant, with two that have the same serial number.
    """

    devices = (UNO, TWIN)

    def test_twinLeftAlone(self) -> None:
        """
        When a device is unplugged, another one with the same serial number that was plugged in
        all the time is not taken for it.
        """
        self.start()
        self.done("attach", lease=lease("a"))
        self.unplug()
        self.become(TWIN, driver="x")
        self.reload()
        self.assertIs(self.state(TWIN.busId), FREE)
        self.plug()
        self.assertIs(self.state(), BOUND)
        self.assertEqual(self.owner(), "a")

    def test_movedIsSaved(self) -> None:
        """The port where a device was last seen is saved."""
        self.backend = PromptBackend((UNO,))
        self.start()
        self.done("attach")
        self.unplug()
        self.plug(busId="1-7")
        self.assertEqual([desired.busId for desired in self.file.state.devices], ["1-7"])

    def test_detachAway(self) -> None:
        """A device that is not plugged in can be detached; if it is leased, by its owner only."""
        self.start()
        self.done("attach")
        self.unplug()
        self.assertEqual(self.done("detach").description, UNO.description)
        self.assertEqual(self.file.state.devices, ())
        self.plug()
        self.assertIs(self.state(), FREE)
        self.done("attach", lease=lease("a"))
        self.unplug()
        self.refused(DeviceLeased, "detach")
        self.done("detach", owner="a")
        self.refused(DeviceNotFound, "detach")

    def test_othersBinding(self) -> None:
        """A device that another program binds after a detach is not treated as the daemon's."""
        self.start(onStop=OnStop.UNBIND)
        self.done("attach")
        self.done("detach")
        self.become(state=BOUND)
        self.stop()
        self.assertIs(self.state(), BOUND)


class FlappingTests(CoreTestCase):
    """
    Rules, leases and requests for a device that is flapping.
    """

    def flap(self) -> None:
        """Plug the device in so often that it counts as flapping."""
        for _ in range(8):
            self.unplug()
            self.plug()

    def test_hidden(self) -> None:
        """A device that is never shared is not shown, also if a reload hides it meanwhile."""
        self.start(NEVER)
        self.flap()
        self.assertEqual((self.listed(), self.heard), ((), []))
        self.startAnew()
        self.flap()
        self.reload(NEVER)
        self.assertEqual(self.listed(), ())

    def test_shown(self) -> None:
        """A flapping device keeps its lease and its name, and has no holder."""
        self.start(Rule(match=Match(bus="*"), name="uno"))
        self.done("attach", lease=lease("a"))
        self.take()
        self.flap()
        self.assertEqual((self.shown().name, self.shown().holder), ("uno", None))
        self.refused(DeviceLeased, "attach", lease=lease("b"))

    def test_detach(self) -> None:
        """A detach during flapping is remembered: the device is not bound again."""
        self.start()
        self.done("attach")
        self.flap()
        self.ask("detach").addErrback(lambda _: None)
        self.sleep(3)
        self.assertIs(self.state(), FREE)


class TurnTests(CoreTestCase):
    """
    Turns in the queue that come to nothing.
    """

    devices = (UNO, STICK)

    def setUp(self) -> None:
        super().setUp()
        self.start()

    def test_failed(self) -> None:
        """A client whose bind fails does not delay the next one."""
        self.done("attach")
        self.take()
        real = self.backend.bind

        async def failOnce(*arguments: object) -> object:
            self.backend.bind = real  # type: ignore[method-assign]
            raise OperationFailed(UNO, "no")

        self.backend.bind = failOnce  # type: ignore[method-assign, assignment]
        first, second = (self.ask("attach", wait=60) for _ in range(2))
        self.giveBack()
        self.error(OperationFailed, first)
        self.device(second)

    def test_force(self) -> None:
        """A forced attach does not wait in the queue."""
        self.done("attach", lease=lease("a"))
        waiting = self.ask("attach", lease=lease("b"), wait=60)
        self.done("attach", Client(BOB), lease=lease("admin"), wait=60, force=True)
        self.assertNoResult(waiting)

    def test_othersTurn(self) -> None:
        """A client that waits behind others receives that as the reason."""
        self.done("attach")
        self.take()
        self.ask("attach", wait=60)
        client = Client(BOB)
        self.giveBack()
        second = self.ask("attach", client, wait=3)
        self.assertIn("other clients wait for", client.told[0]["message"])
        self.sleep(3)
        self.assertIn("other clients wait for", self.error(OperationFailed, second))

    def test_eventsInOrder(self) -> None:
        """
        When a lease ends and the next client in the queue gets the device at once, a watching
        client receives the events in the order of their numbers.
        """
        received: list[int] = []
        _, subscription = watching(self.core, WatchDevices(), Client())
        subscription.begin(lambda event, line: received.append(event.seq))
        self.done("attach", lease=lease("a", 1))
        waiting = self.ask("attach", Client(BOB), lease=lease("b"), wait=60)
        self.sleep(1)
        self.device(waiting)
        self.assertGreaterEqual(len(received), 3)
        self.assertEqual(received, [*range(received[0], received[0] + len(received))])

    def test_freshReason(self) -> None:
        """The reason at the end of the wait is the current one."""
        self.done("attach", lease=lease("a", 600))
        waiting = self.ask("attach", wait=300)
        self.sleep(300)
        self.assertIn("for 300 s more", self.error(DeviceLeased, waiting))

    def test_stopped(self) -> None:
        """
        A client that retries when the daemon has stopped receives an error, and so does one that
        is gone before it is in the queue.
        """

        async def busy(*arguments: object) -> object:
            raise DeviceInUse(UNO)

        self.backend.bind = busy  # type: ignore[method-assign, assignment]
        waiting = self.ask("attach", wait=600)
        self.successResultOf(asked(self.core.stop()))
        self.sleep(1)
        self.failureResultOf(waiting)
        gone = Client()
        gone.gone()
        self.restart()
        self.refused(NotDone, "attach", gone)
