"""
Tests of L{usbip_server.server.allocation} and L{usbip_server.server.devices.desiredstate}: who may
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
from usbip_server.server.devices.desiredstate import RECONNECT, State

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
        """A device that is attached with a lease shows the lease to all clients."""
        device = self.done("attach", Client(BOB), lease=CI)
        lease = Lease(owner="ci-job-81", address=BOB.address, ttl=600, until=EPOCH + 600)
        assert device.lease is not None
        self.assertEqual(astuple(device.lease), astuple(lease))
        self.assertIs(self.shown().lease, device.lease)
        self.assertEqual(self.heard, [("lease", UNO.busId), ("bound", UNO.busId)])

    def test_others(self) -> None:
        """
        Other clients can neither attach, detach nor kick it, and receive the owner and the
        remaining time; they can find it.
        """
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
        """When the lease expires the device is unbound, and available to all clients."""
        self.done("attach", lease=CI)
        self.sleep(599)
        self.assertIs(self.state(), BOUND)
        self.sleep(1)
        self.assertIs(self.state(), FREE)
        self.assertIsNone(self.shown().lease)
        self.done("attach", lease=OTHER)

    def test_endsSession(self) -> None:
        """When it expires the owner's session ends."""
        self.done("attach", lease=CI)
        self.take()
        self.sleep(600)
        self.assertIs(self.state(), FREE)

    def test_renew(self) -> None:
        """The owner can renew it, for the same time or another."""
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
        """Another attach by the owner renews it too."""
        self.done("attach", lease=CI)
        self.sleep(500)
        self.done("attach", lease=CI)
        self.sleep(500)
        self.assertIs(self.state(), BOUND)

    def test_renewNothing(self) -> None:
        """A device without a lease cannot be renewed."""
        self.refused(NotLeased, "renew", lease=CI)
        self.done("attach")
        self.refused(NotLeased, "renew", lease=CI)

    def test_detach(self) -> None:
        """The owner can end it with a detach."""
        self.done("attach", lease=CI)
        device = self.done("detach", owner="ci-job-81")
        self.assertEqual((device.state, device.lease), (FREE, None))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_replug(self) -> None:
        """It outlasts a replug, and the device is bound again."""
        self.done("attach", lease=CI)
        self.unplug()
        self.plug(busId="2-7")
        self.assertIs(self.state("2-7"), BOUND)
        self.refused(DeviceLeased, "attach", id="2-7")
        self.sleep(600)
        self.assertIs(self.state("2-7"), FREE)

    def test_endsWhileUnplugged(self) -> None:
        """It expires too while the device is unplugged."""
        self.done("attach", lease=CI)
        self.unplug()
        self.sleep(600)
        self.plug()
        self.assertIs(self.state(), FREE)

    def test_otherDeviceAtItsPlace(self) -> None:
        """When it expires, another device at the same port is not affected."""
        self.done("attach", lease=CI)
        self.unplug()
        self.plug(STICK, busId=UNO.busId, serial="X")
        self.done("attach")
        self.sleep(600)
        self.assertIs(self.state(), BOUND)

    def test_attachedBefore(self) -> None:
        """
        A device that was attached without a lease before stays bound when the lease
        expires; only the session ends.
        """
        self.done("attach")
        self.done("attach", lease=CI)
        self.take()
        self.sleep(600)
        self.assertIs(self.state(), BOUND)
        self.assertEqual(self.backend.calls[-1].verb, "release")

    def test_restart(self) -> None:
        """It outlasts the daemon, and expires at its time."""
        self.done("attach", lease=CI)
        self.sleep(500)
        self.restart()
        self.refused(DeviceLeased, "attach")
        self.sleep(99)
        self.assertIs(self.state(), BOUND)
        self.sleep(1)
        self.assertIs(self.state(), FREE)

    def test_endsWhileNobodyRuns(self) -> None:
        """A lease that has expired while no daemon ran ends at the start."""
        self.done("attach", lease=CI)
        self.take()
        for call in self.clock.getDelayedCalls():
            call.cancel()
        self.clock.advance(1000)
        self.restart()
        self.clock.advance(0)
        self.assertIs(self.state(), FREE)

    def test_clockSetBack(self) -> None:
        """If the clock was set back, it lasts no longer than its ttl."""
        self.done("attach", lease=CI)
        (wish,) = self.file.state.devices
        assert wish.lease is not None
        late = replace(wish, lease=replace(wish.lease, until=EPOCH + 10_000_000))
        self.file.state = State(devices=(late,))
        self.restart()
        self.sleep(600)
        self.assertIs(self.state(), FREE)

    def test_failed(self) -> None:
        """An attach that fails grants no lease."""
        self.backend = PatientBackend(self.devices)
        self.start()
        result = self.ask("attach", lease=CI)
        self.refused(DeviceLeased, "attach", lease=OTHER)
        self.backend.calls[0].fail(OperationFailed(UNO, "no"))
        self.failureResultOf(result, OperationFailed)
        self.assertIsNone(self.shown().lease)
        self.assertEqual(self.file.state.devices, ())

    def test_takesLong(self) -> None:
        """
        If the bind takes longer than the reply, the lease is granted; if the bind fails, it
        ends.
        """
        self.backend = PatientBackend(self.devices)
        self.start()
        result = self.ask("attach", lease=CI)
        self.sleep(2)
        self.failureResultOf(result, StillWorking)
        self.refused(DeviceLeased, "attach", lease=OTHER)
        self.backend.calls[0].fail(OperationFailed(UNO, "no"))
        self.assertIsNone(self.shown().lease)

    def test_inUse(self) -> None:
        """A device that another client has imported is not leased."""
        self.backend = PatientBackend(self.devices)
        self.start()
        result = self.ask("attach", lease=CI)
        self.backend.calls[0].fail(DeviceInUse(UNO))
        self.failureResultOf(result, DeviceInUse)
        self.assertIsNone(self.shown().lease)

    def test_nothingDone(self) -> None:
        """A detach that could not be carried out changes nothing."""
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
        """A lease with the ttl C{connection} ends with the connection."""
        client = Client()
        self.done("attach", client, lease=WHILE)
        self.assertTrue(client.isHeld)
        self.sleep(10_000, 100)
        message = self.refused(DeviceLeased, "attach")
        self.assertIn("while its connection lasts", message)
        client.gone()
        self.assertIs(self.state(), FREE)

    def test_otherConnection(self) -> None:
        """The end of another connection has no effect."""
        self.done("attach", Client(), lease=WHILE)
        other = Client(BOB)
        self.refused(DeviceLeased, "attach", other)
        other.gone()
        self.assertIs(self.state(), BOUND)

    def test_tooLate(self) -> None:
        """When the device has another owner, the end of the first connection has no effect."""
        first = Client()
        self.done("attach", first, lease=WHILE)
        self.done("detach", owner="ci-job-81")
        self.done("attach", Client(BOB), lease=OTHER)
        first.gone()
        self.assertIs(self.state(), BOUND)

    def test_renewToConnection(self) -> None:
        """A renewal on another connection ties the lease to that one."""
        first, second = Client(), Client()
        self.done("attach", first, lease=WHILE)
        self.done("renew", second, lease={"owner": "ci-job-81"})
        first.gone()
        self.assertIs(self.state(), BOUND)
        second.gone()
        self.assertIs(self.state(), FREE)

    def test_restart(self) -> None:
        """After a restart of the daemon the owner has some time to reconnect."""
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
        """Without a lasting connection such a lease is refused."""
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
        """C{kick} ends the session, and the device stays bound."""
        self.done("attach")
        self.take()
        self.assertIs(self.done("kick").state, BOUND)
        self.assertEqual(self.heard[-2:], [("imported", UNO.busId), ("released", UNO.busId)])

    def test_kickOwner(self) -> None:
        """The owner of the lease can do that; the lease stays."""
        self.done("attach", lease=CI)
        self.take()
        self.assertIsNotNone(self.done("kick", owner="ci-job-81").lease)
        self.assertIs(self.state(), BOUND)

    def test_kickForce(self) -> None:
        """Other clients need C{force}."""
        self.done("attach", lease=CI)
        self.take()
        self.refused(DeviceLeased, "kick")
        self.done("kick", force=True)
        self.assertIs(self.state(), BOUND)

    def test_attachForce(self) -> None:
        """An attach with C{force} takes a device that another client has imported and leased."""
        self.done("attach", lease=CI)
        self.take()
        device = self.done("attach", Client(BOB), lease=OTHER, force=True)
        self.assertIs(device.state, BOUND)
        self.assertEqual(device.lease and device.lease.owner, "ci-job-82")
        self.refused(DeviceLeased, "renew", lease=CI)
        self.sleep(600)
        self.assertIs(self.state(), FREE)

    def test_attachForceWithoutLease(self) -> None:
        """It ends the other's lease even without a new one."""
        self.done("attach", lease=CI)
        self.assertIsNone(self.done("attach", force=True).lease)
        self.sleep(1000)
        self.assertIs(self.state(), BOUND)

    def test_detachForce(self) -> None:
        """A detach with C{force} unbinds such a device."""
        self.done("attach", lease=CI)
        self.done("detach", force=True)
        self.assertIs(self.state(), FREE)

    def test_refusalNamesHolder(self) -> None:
        """The error names the holder, since when, and its traffic."""
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
        """
        With C{share: always} a detach by the owner ends the session, and the device stays
        bound.
        """
        self.done("attach", lease=CI)
        self.take()
        device = self.done("detach", owner="ci-job-81")
        self.assertEqual((device.state, device.lease), (BOUND, None))
        self.plug()
        self.assertIs(self.state(), BOUND)

    def test_ends(self) -> None:
        """So does the end of the lease."""
        self.done("attach", lease=CI)
        self.take()
        self.sleep(600)
        self.assertIs(self.state(), BOUND)

    def test_endsIdle(self) -> None:
        """Without a session nothing is done."""
        self.done("attach", lease=CI)
        calls = len(self.backend.calls)
        self.sleep(600)
        self.assertEqual(len(self.backend.calls), calls)


class PrincipalTests(DesiredTestCase):
    """
    Who is at the other end.
    """

    def test_leaseHasAddress(self) -> None:
        """A lease contains the address that has requested it."""
        self.start()
        lease = self.done("attach", Client(ALICE), lease=CI).lease
        self.assertEqual(lease and lease.address, ALICE.address)
