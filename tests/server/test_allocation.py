"""
Tests of L{usbip_server.server.allocation} and L{usbip_server.server.devices.desired}: who may
have a device, and for how long.
"""

from __future__ import annotations

from msgspec.structs import astuple, replace

from tests.server.desiredcase import ALWAYS, EPOCH, Client, DesiredTestCase
from tests.support.fixtures import ALICE, BOB, STICK, UNO, PatientBackend
from usbip_server.model.device import DeviceState, Lease, Traffic
from usbip_server.model.errors import (
    DeviceInUse,
    DeviceLeased,
    InvalidRequest,
    NotDone,
    NotLeased,
    OperationFailed,
    StillWorking,
)
from usbip_server.server.devices.desired import RECONNECT, State

FREE, BOUND, IN_USE = DeviceState.FREE, DeviceState.BOUND, DeviceState.IN_USE
CI = {"owner": "ci-job-81", "ttl": 600}
OTHER = {"owner": "ci-job-82", "ttl": 600}
WHILE = {"owner": "ci-job-81", "ttl": "connection"}


class LeaseTests(DesiredTestCase):
    """
    To have a device for oneself for a time.
    """

    devices = (UNO, STICK)

    def setUp(self) -> None:
        super().setUp()
        self.start()

    def test_granted(self) -> None:
        """Whoever attaches a device with a lease has it, and everybody sees that."""
        device = self.done("attach", Client(BOB), lease=CI)
        lease = Lease(owner="ci-job-81", address=BOB.address, ttl=600, until=EPOCH + 600)
        assert device.lease is not None
        self.assertEqual(astuple(device.lease), astuple(lease))
        self.assertIs(self.shown().lease, device.lease)
        self.assertEqual(self.heard, [("lease", UNO.busId), ("bound", UNO.busId)])

    def test_others(self) -> None:
        """Others may neither attach, detach nor kick it, and are told whose it is and how long
        yet; they may find it."""
        self.done("attach", Client(BOB), lease=CI)
        self.sleep(88)
        for command, keys in (
            ("attach", {}),
            ("attach", {"lease": OTHER}),
            ("detach", {}),
            ("detach", {"owner": "ci-job-82"}),
            ("kick", {}),
            ("renew", {"lease": OTHER}),
        ):
            message = self.refused(DeviceLeased, command, **keys)
            self.assertEqual(
                message, f"leased by ci-job-81 (192.0.2.8) for 512 s more: {UNO}", command
            )
        self.assertIs(self.state(), BOUND)
        self.done("find")
        self.done("attach", id="1-2")

    def test_ends(self) -> None:
        """It ends by itself, and then the device is unbound and anybody's."""
        self.done("attach", lease=CI)
        self.sleep(599)
        self.assertIs(self.state(), BOUND)
        self.sleep(1)
        self.assertIs(self.state(), FREE)
        self.assertIsNone(self.shown().lease)
        self.done("attach", lease=OTHER)

    def test_endsSession(self) -> None:
        """Whoever has it imported then loses it: a job that was cancelled keeps nothing."""
        self.done("attach", lease=CI)
        self.take()
        self.sleep(600)
        self.assertIs(self.state(), FREE)

    def test_renew(self) -> None:
        """Its owner may have it longer, for the same time again or another."""
        self.done("attach", lease=CI)
        self.sleep(500)
        device = self.done("renew", lease={"owner": "ci-job-81"})
        assert device.lease is not None
        self.assertEqual((device.lease.ttl, device.lease.until), (600, EPOCH + 1100))
        self.sleep(500)
        self.done("renew", lease={"owner": "ci-job-81", "ttl": 50})
        self.sleep(49)
        self.assertIs(self.state(), BOUND)
        self.sleep(1)
        self.assertIs(self.state(), FREE)

    def test_renewByAttach(self) -> None:
        """To attach it again renews it, too."""
        self.done("attach", lease=CI)
        self.sleep(500)
        self.done("attach", lease=CI)
        self.sleep(500)
        self.assertIs(self.state(), BOUND)

    def test_renewNothing(self) -> None:
        """What is not leased cannot be renewed."""
        self.refused(NotLeased, "renew", lease=CI)
        self.done("attach")
        self.refused(NotLeased, "renew", lease=CI)

    def test_detach(self) -> None:
        """Its owner may end it before its time."""
        self.done("attach", lease=CI)
        device = self.done("detach", owner="ci-job-81")
        self.assertEqual((device.state, device.lease), (FREE, None))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_replug(self) -> None:
        """It outlives a replug, and the device is bound again for its owner."""
        self.done("attach", lease=CI)
        self.unplug()
        self.plug(busId="2-7")
        self.assertIs(self.state("2-7"), BOUND)
        self.refused(DeviceLeased, "attach", id="2-7")
        self.sleep(600)
        self.assertIs(self.state("2-7"), FREE)

    def test_endsWhileUnplugged(self) -> None:
        """It ends also while the device is away."""
        self.done("attach", lease=CI)
        self.unplug()
        self.sleep(600)
        self.plug()
        self.assertIs(self.state(), FREE)

    def test_otherDeviceAtItsPlace(self) -> None:
        """When it ends nothing is done to another device that is at the place by then."""
        self.done("attach", lease=CI)
        self.unplug()
        self.plug(STICK, busId=UNO.busId, serial="X")
        self.done("attach")
        self.sleep(600)
        self.assertIs(self.state(), BOUND)

    def test_attachedBefore(self) -> None:
        """A device that was attached without a lease before is bound still when one ends, and
        only its client has to go."""
        self.done("attach")
        self.done("attach", lease=CI)
        self.take()
        self.sleep(600)
        self.assertIs(self.state(), BOUND)
        self.assertEqual(self.backend.calls[-1].verb, "release")

    def test_restart(self) -> None:
        """It outlives the daemon, and ends when it would have ended."""
        self.done("attach", lease=CI)
        self.sleep(500)
        self.restart()
        self.refused(DeviceLeased, "attach")
        self.sleep(99)
        self.assertIs(self.state(), BOUND)
        self.sleep(1)
        self.assertIs(self.state(), FREE)

    def test_endsWhileNobodyRuns(self) -> None:
        """One that should have ended while no daemon ran ends at once."""
        self.done("attach", lease=CI)
        self.take()
        for call in self.clock.getDelayedCalls():
            call.cancel()
        self.clock.advance(1000)
        self.restart()
        self.clock.advance(0)
        self.assertIs(self.state(), FREE)

    def test_clockSetBack(self) -> None:
        """Though the clock was set back meanwhile it lasts no longer than it was granted for."""
        self.done("attach", lease=CI)
        (wish,) = self.file.state.devices
        assert wish.lease is not None
        late = replace(wish, lease=replace(wish.lease, until=EPOCH + 10_000_000))
        self.file.state = State(devices=(late,))
        self.restart()
        self.sleep(600)
        self.assertIs(self.state(), FREE)

    def test_failed(self) -> None:
        """An attach that fails grants nothing."""
        self.backend = PatientBackend(self.devices)
        self.start()
        result = self.ask("attach", lease=CI)
        self.refused(DeviceLeased, "attach", lease=OTHER)
        self.backend.calls[0].fail(OperationFailed(UNO, "no"))
        self.failureResultOf(result, OperationFailed)
        self.assertIsNone(self.shown().lease)
        self.assertEqual(self.file.state.devices, ())

    def test_takesLong(self) -> None:
        """One whose bind takes longer than an answer may is granted; if it fails in the end the
        lease ends."""
        self.backend = PatientBackend(self.devices)
        self.start()
        result = self.ask("attach", lease=CI)
        self.sleep(2)
        self.failureResultOf(result, StillWorking)
        self.refused(DeviceLeased, "attach", lease=OTHER)
        self.backend.calls[0].fail(OperationFailed(UNO, "no"))
        self.assertIsNone(self.shown().lease)

    def test_inUse(self) -> None:
        """A device that somebody else has imported is not leased."""
        self.backend = PatientBackend(self.devices)
        self.start()
        result = self.ask("attach", lease=CI)
        self.backend.calls[0].fail(DeviceInUse(UNO))
        self.failureResultOf(result, DeviceInUse)
        self.assertIsNone(self.shown().lease)

    def test_nothingDone(self) -> None:
        """A detach that gets no turn changes nothing: what was attached stays so."""
        self.backend = PatientBackend(self.devices)
        self.start()
        first = self.ask("attach")
        self.sleep(2)
        self.failureResultOf(first, StillWorking)
        second = self.ask("detach")
        self.sleep(2)
        self.failureResultOf(second, NotDone)
        self.assertEqual(len(self.file.state.devices), 1)


class ConnectionTests(DesiredTestCase):
    """
    C{"ttl": "connection"}.
    """

    def setUp(self) -> None:
        super().setUp()
        self.start()

    def test_ends(self) -> None:
        """The lease lasts as long as the connection."""
        client = Client()
        self.done("attach", client, lease=WHILE)
        self.assertTrue(client.isHeld)
        self.sleep(10_000, 100)
        message = self.refused(DeviceLeased, "attach")
        self.assertIn("while its connection lasts", message)
        client.gone()
        self.assertIs(self.state(), FREE)

    def test_otherConnection(self) -> None:
        """Another connection's end is of no consequence."""
        self.done("attach", Client(), lease=WHILE)
        other = Client(BOB)
        self.refused(DeviceLeased, "attach", other)
        other.gone()
        self.assertIs(self.state(), BOUND)

    def test_tooLate(self) -> None:
        """Once the device is another's the first connection's end takes it from nobody."""
        first = Client()
        self.done("attach", first, lease=WHILE)
        self.done("detach", owner="ci-job-81")
        self.done("attach", Client(BOB), lease=OTHER)
        first.gone()
        self.assertIs(self.state(), BOUND)

    def test_renewToConnection(self) -> None:
        """An owner that comes back on another connection takes the lease along."""
        first, second = Client(), Client()
        self.done("attach", first, lease=WHILE)
        self.done("renew", second, lease={"owner": "ci-job-81"})
        first.gone()
        self.assertIs(self.state(), BOUND)
        second.gone()
        self.assertIs(self.state(), FREE)

    def test_restart(self) -> None:
        """When the daemon is started anew the owner has some time to come back."""
        self.done("attach", Client(), lease=WHILE)
        self.restart()
        self.refused(DeviceLeased, "attach")
        client = Client()
        self.done("renew", client, lease=WHILE)
        self.sleep(2 * RECONNECT)
        self.assertIs(self.state(), BOUND)
        self.restart()
        self.sleep(RECONNECT)
        self.assertIs(self.state(), FREE)

    def test_noConnection(self) -> None:
        """Where no connection stays open there can be no such lease."""
        message = self.refused(InvalidRequest, "attach", Client(lasts=False), lease=WHILE)
        self.assertIn("HTTP", message)
        self.assertIs(self.state(), FREE)


class ForceTests(DesiredTestCase):
    """
    To take a device from somebody, and to end a session.
    """

    def setUp(self) -> None:
        super().setUp()
        self.start()

    def test_kick(self) -> None:
        """The client has to go, the device stays bound."""
        self.done("attach")
        self.take()
        self.assertIs(self.done("kick").state, BOUND)
        self.assertEqual(self.heard[-2:], [("imported", UNO.busId), ("released", UNO.busId)])

    def test_kickOwner(self) -> None:
        """The owner of a lease may do so; the lease goes on."""
        self.done("attach", lease=CI)
        self.take()
        self.assertIsNotNone(self.done("kick", owner="ci-job-81").lease)
        self.assertIs(self.state(), BOUND)

    def test_kickForce(self) -> None:
        """Others only by force."""
        self.done("attach", lease=CI)
        self.take()
        self.refused(DeviceLeased, "kick")
        self.done("kick", force=True)
        self.assertIs(self.state(), BOUND)

    def test_attachForce(self) -> None:
        """By force a device is had although somebody has imported and leased it."""
        self.done("attach", lease=CI)
        self.take()
        device = self.done("attach", Client(BOB), lease=OTHER, force=True)
        self.assertIs(device.state, BOUND)
        self.assertEqual(device.lease and device.lease.owner, "ci-job-82")
        self.refused(DeviceLeased, "renew", lease=CI)
        self.sleep(600)
        self.assertIs(self.state(), FREE)

    def test_attachForceWithoutLease(self) -> None:
        """The other's lease is over then, also without a new one."""
        self.done("attach", lease=CI)
        self.assertIsNone(self.done("attach", force=True).lease)
        self.sleep(1000)
        self.assertIs(self.state(), BOUND)

    def test_detachForce(self) -> None:
        """So can a device be unbound."""
        self.done("attach", lease=CI)
        self.done("detach", force=True)
        self.assertIs(self.state(), FREE)

    def test_refusalNamesHolder(self) -> None:
        """Who is refused is told who has it, since when, and how busily."""
        self.backend = PatientBackend(self.devices)
        self.start()
        self.ask("attach")
        self.backend.calls[0].succeed()
        self.take()
        self.backend.moved = {UNO.busId: Traffic(bytesIn=12, bytesOut=345)}
        result = self.ask("attach")
        self.backend.calls[-1].fail(DeviceInUse(UNO))
        self.assertEqual(
            str(self.failureResultOf(result, DeviceInUse).value),
            f"in use by 192.0.2.8 since 2023-11-14T22:13:20.000Z (12 bytes in, 345 out): {UNO}",
        )


class AlwaysTests(DesiredTestCase):
    """
    Leases of devices that are shared always.
    """

    def setUp(self) -> None:
        super().setUp()
        self.start(ALWAYS)

    def test_detach(self) -> None:
        """When the owner gives it back only the session ends: it stays bound."""
        self.done("attach", lease=CI)
        self.take()
        device = self.done("detach", owner="ci-job-81")
        self.assertEqual((device.state, device.lease), (BOUND, None))
        self.plug()
        self.assertIs(self.state(), BOUND)

    def test_ends(self) -> None:
        """Likewise when the time is over."""
        self.done("attach", lease=CI)
        self.take()
        self.sleep(600)
        self.assertIs(self.state(), BOUND)

    def test_endsIdle(self) -> None:
        """If nobody has it imported nothing is done."""
        self.done("attach", lease=CI)
        calls = len(self.backend.calls)
        self.sleep(600)
        self.assertEqual(len(self.backend.calls), calls)


class PrincipalTests(DesiredTestCase):
    """
    Who is at the other end.
    """

    def test_leaseHasAddress(self) -> None:
        """A lease names the address that has asked for it."""
        self.start()
        lease = self.done("attach", Client(ALICE), lease=CI).lease
        self.assertEqual(lease and lease.address, ALICE.address)
