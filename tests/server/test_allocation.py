"""
Tests of L{usbip_server.server.allocation} and L{usbip_server.server.devices.desiredstate}: who may
have a device, and for how long.
"""

from __future__ import annotations

from msgspec.structs import astuple

from tests.server.corecase import ALWAYS, BOUND, EPOCH, FREE, Client, CoreTestCase, lease
from tests.support.fixtures import BOB, STICK, UNO, PatientBackend
from usbip_server.model.device import OWN_STRINGS, Lease, Traffic
from usbip_server.model.errors import (
    DeviceInUse,
    DeviceLeased,
    DeviceMounted,
    InvalidRequest,
    NetworkInUse,
    NotDone,
    NotLeased,
    OperationFailed,
    StillWorking,
)
from usbip_server.runtime.latch import Latch
from usbip_server.server.devices.desiredstate import RECONNECT

CI, OTHER, WHILE_CONNECTED = lease("ci"), lease("other"), lease("ci", "connection")


class StartedTestCase(CoreTestCase):
    """
    A core that has started.
    """

    devices = (UNO, STICK)

    def setUp(self) -> None:
        super().setUp()
        self.start()


class LeaseTests(StartedTestCase):
    """
    Leases that last for some seconds.
    """

    def test_granted(self) -> None:
        """
        A device that is attached with a lease shows the lease, with the client's address, to all
        clients.
        """
        device = self.done("attach", Client(BOB), lease=CI)
        expected = Lease(owner="ci", address=BOB.address, ttl=600, until=EPOCH + 600)
        assert device.lease is not None
        self.assertEqual(astuple(device.lease), astuple(expected))
        self.assertIs(self.shown().lease, device.lease)
        self.assertEqual(self.heard, [("lease", UNO.busId), ("bound", UNO.busId)])

    def test_others(self) -> None:
        """
        Other clients can neither attach, detach, kick nor renew the device; the error contains
        the owner and the remaining time. They can find it.
        """
        self.done("attach", Client(BOB), lease=CI)
        self.sleep(88)
        for command, keys in (
            *(("attach", {}), ("attach", {"lease": OTHER}), ("detach", {})),
            *(("detach", {"owner": "other"}), ("kick", {}), ("renew", {"lease": OTHER})),
        ):
            message = self.refused(DeviceLeased, command, **keys)
            self.assertEqual(message, f"leased by ci (192.0.2.8) for 512 s more: {UNO}", command)
        self.assertIs(self.state(), BOUND)
        self.done("find")
        self.done("attach", id="1-2")

    def test_ends(self) -> None:
        """
        When the lease expires the device is unbound, in use or not, and available to all.
        """
        for isUsed in (False, True):
            self.done("attach", lease=CI)
            if isUsed:
                self.take()
            self.sleep(599)
            self.assertIsNot(self.state(), FREE)
            self.sleep(1)
            self.assertIs(self.state(), FREE)
            self.assertIsNone(self.owner())
        self.done("attach", lease=OTHER)

    def test_renew(self) -> None:
        """The owner can renew it, for the same time or another, also by another attach."""
        self.done("attach", lease=CI)
        self.sleep(500)
        device = self.done("renew", lease={"owner": "ci"})
        assert device.lease is not None
        self.assertEqual((device.lease.ttl, device.lease.until), (600, EPOCH + 1100))
        self.sleep(500)
        self.done("attach", lease=CI)
        self.sleep(500)
        self.done("renew", lease=lease("ci", 50))
        self.sleep(49)
        self.assertIs(self.state(), BOUND)
        self.sleep(1)
        self.assertIs(self.state(), FREE)

    def test_renewNothing(self) -> None:
        """A device without a lease cannot be renewed."""
        self.refused(NotLeased, "renew", lease=CI)
        self.done("attach")
        self.refused(NotLeased, "renew", lease=CI)

    def test_detach(self) -> None:
        """The owner can end it with a detach."""
        self.done("attach", lease=CI)
        device = self.done("detach", owner="ci")
        self.assertEqual((device.state, device.lease), (FREE, None))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_unplugged(self) -> None:
        """
        It outlasts a replug, at which the device is bound again, and expires too while the device
        is unplugged.
        """
        self.done("attach", lease=CI)
        self.unplug()
        self.plug(busId="2-7")
        self.assertIs(self.state("2-7"), BOUND)
        self.refused(DeviceLeased, "attach", id="2-7")
        self.sleep(300)
        self.unplug("2-7")
        self.sleep(300)
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
        A device that was attached without a lease before stays bound when the lease expires;
        only the session ends.
        """
        self.done("attach")
        self.done("attach", lease=CI)
        self.take()
        self.sleep(600)
        self.assertIs(self.state(), BOUND)
        self.assertEqual(self.verbs[-1], "release")

    def test_restart(self) -> None:
        """
        It outlasts the daemon and expires at its time; at the start, if that has passed; and no
        later than its ttl after the start, if the clock was set back.
        """
        self.done("attach", lease=CI)
        self.sleep(500)
        self.restart()
        self.refused(DeviceLeased, "attach")
        self.sleep(99)
        self.assertIs(self.state(), BOUND)
        self.sleep(1)
        self.assertIs(self.state(), FREE)

        self.done("attach", lease=CI)
        self.take()
        self.cancelTimers()
        self.clock.advance(1000)
        self.restart()
        self.clock.advance(0)
        self.assertIs(self.state(), FREE)

        self.done("attach", lease=CI)
        self.clockSetBy = -10_000_000.0
        self.restart()
        lease = self.shown().lease
        assert lease is not None
        self.assertEqual(lease.until, self.now() + 600)
        self.sleep(600)
        self.assertIs(self.state(), FREE)

    def test_clockSet(self) -> None:
        """
        If the system clock is set, the lease lasts as long as before, and is shown and saved with
        the time when it ends by the clock as it is now; over a restart too.
        """
        for by in (-7200.0, 86400.0):
            self.done("attach", lease=CI)
            self.sleep(100)
            self.clockSetBy += by
            self.sleep(20)
            lease, (saved,) = self.shown().lease, self.file.state.devices
            assert lease is not None and saved.lease is not None
            self.assertEqual((lease.until, saved.lease.until), (self.now() + 480,) * 2)
            self.assertEqual(self.heard[-1], ("lease", UNO.busId))
            self.assertIn("for 480 s more", self.refused(DeviceLeased, "attach"))
            self.sleep(80)
            self.restart()
            self.sleep(399)
            self.assertIs(self.state(), BOUND)
            self.sleep(1)
            self.assertIs(self.state(), FREE)

    def test_clockSetMeanwhile(self) -> None:
        """If the clock is set while a device is being bound, a failed bind still ends the lease,
        and of another device the time is right after that."""
        self.backend = PatientBackend((UNO, STICK))
        self.start()
        other = self.ask("attach", id=STICK.busId, lease=CI)
        self.backend.calls[0].succeed()
        self.successResultOf(other)
        result = self.ask("attach", lease=CI)
        self.clockSetBy = 86400.0
        self.sleep(10)
        self.backend.calls[1].fail(OperationFailed(UNO, "no"))
        self.failureResultOf(result, OperationFailed)
        self.assertIsNone(self.shown().lease)
        self.sleep(10)
        lease = self.shown(STICK.busId).lease
        assert lease is not None
        self.assertEqual(lease.until, self.now() + 580)

    def test_failed(self) -> None:
        """
        An attach that fails grants no lease, even after a reply that it takes longer; until then
        the device is leased.
        """
        self.backend = PatientBackend(self.devices)
        self.start()
        for error, seconds in (
            *((OperationFailed(UNO, "no"), 0), (OperationFailed(UNO, "no"), 2)),
            (DeviceInUse(UNO), 0),
        ):
            result = self.ask("attach", lease=CI)
            self.sleep(seconds)
            self.refused(DeviceLeased, "attach", lease=OTHER)
            self.fail_(-1, error)
            self.failureResultOf(result, StillWorking if seconds else type(error))
            self.assertIsNone(self.owner())
            self.assertEqual(self.file.state.devices, ())
            self.clock.advance(31)  # the error is outdated

    def test_detachNotDone(self) -> None:
        """A detach that could not be carried out changes nothing."""
        self.backend = PatientBackend(self.devices)
        self.start()
        for command, error in (("attach", StillWorking), ("detach", NotDone)):
            result = self.ask(command)
            self.sleep(2)
            self.failureResultOf(result, error)
        self.assertEqual(len(self.file.state.devices), 1)

    def test_unanswered(self) -> None:
        """
        A device whose serial number is not known yet cannot be attached; a client can wait for
        it.
        """
        self.become(serial=None, unknown=OWN_STRINGS)
        for keys in ({}, {"lease": CI}, {"force": True}):
            self.assertIn("has not answered yet", self.refused(OperationFailed, "attach", **keys))
        waiting = self.ask("attach", lease=CI, wait=60)
        self.assertNoResult(waiting)
        self.assertEqual(self.verbs, [])
        self.become(UNO)
        self.device(waiting)
        self.assertEqual(self.owner(), "ci")


class SavedTests(StartedTestCase):
    """
    What is answered with success is on the disk.
    """

    def test_waits(self) -> None:
        """
        The reply to a request that changes the desired state waits until the change is in the
        state file; queries do not.
        """
        for command, keys in (
            *(("attach", {"lease": CI}), ("renew", {"lease": CI}), ("detach", {"owner": "ci"})),
            *(("attach", {}), ("detach", {}), ("attach", {"wait": 5})),
        ):
            self.file.onDisk = latch = Latch(self.clock)
            result = self.ask(command, **keys)
            self.assertNoResult(result)
            self.clock.advance(1)
            self.done("find")
            latch.fire()
            self.device(result)

    def test_waitsNotLong(self) -> None:
        """If the disk is too slow the reply comes within C{timeouts.answer} nevertheless."""
        self.file.onDisk = Latch(self.clock)
        for wait in (0, 60):
            result = self.ask("attach", wait=wait)
            self.clock.advance(1.7)
            self.assertNoResult(result)
            self.clock.advance(0.1)
            self.device(result)


class ConnectionTests(StartedTestCase):
    """
    Leases with the ttl C{connection}.
    """

    def test_ends(self) -> None:
        """Such a lease ends with its connection, and not with another one."""
        client, other = Client(), Client(BOB)
        self.done("attach", client, lease=WHILE_CONNECTED)
        self.assertTrue(client.isHeld)
        self.sleep(10_000, 100)
        self.assertIn("while its connection lasts", self.refused(DeviceLeased, "attach", other))
        other.gone()
        self.assertIs(self.state(), BOUND)
        client.gone()
        self.assertIs(self.state(), FREE)

    def test_tooLate(self) -> None:
        """When the device has another owner, the end of the first connection has no effect."""
        first = Client()
        self.done("attach", first, lease=WHILE_CONNECTED)
        self.done("detach", owner="ci")
        self.done("attach", Client(BOB), lease=OTHER)
        first.gone()
        self.assertIs(self.state(), BOUND)

    def test_renewal(self) -> None:
        """A renewal on another connection ties the lease to that one."""
        first, second = Client(), Client()
        self.done("attach", first, lease=WHILE_CONNECTED)
        self.done("renew", second, lease={"owner": "ci"})
        first.gone()
        self.assertIs(self.state(), BOUND)
        second.gone()
        self.assertIs(self.state(), FREE)

    def test_restart(self) -> None:
        """After a restart of the daemon the owner has some time to reconnect."""
        self.done("attach", Client(), lease=WHILE_CONNECTED)
        self.restart()
        self.refused(DeviceLeased, "attach")
        self.done("renew", Client(), lease=WHILE_CONNECTED)
        self.sleep(2 * RECONNECT)
        self.assertIs(self.state(), BOUND)
        self.restart()
        self.sleep(RECONNECT)
        self.assertIs(self.state(), FREE)

    def test_noConnection(self) -> None:
        """Without a lasting connection such a lease is refused."""
        client = Client(lasts=False)
        message = self.refused(InvalidRequest, "attach", client, lease=WHILE_CONNECTED)
        self.assertIn("HTTP", message)
        self.assertIs(self.state(), FREE)


class ForceTests(StartedTestCase):
    """
    C{kick} and C{force}.
    """

    def test_kick(self) -> None:
        """C{kick} ends the session, and the device stays bound."""
        self.done("attach")
        self.take()
        self.assertIs(self.done("kick").state, BOUND)
        self.assertEqual(self.heard[-2:], [("imported", UNO.busId), ("released", UNO.busId)])

    def test_kickLeased(self) -> None:
        """Only the owner of a lease can do that, or another client with C{force}."""
        self.done("attach", lease=CI)
        for keys in ({"owner": "ci"}, {"force": True}):
            self.take()
            self.refused(DeviceLeased, "kick")
            self.assertIsNotNone(self.done("kick", **keys).lease)
            self.assertIs(self.state(), BOUND)

    def test_attach(self) -> None:
        """
        An attach with C{force} takes a device that another client has imported and leased, with
        a lease or without.
        """
        self.done("attach", lease=CI)
        self.take()
        device = self.done("attach", Client(BOB), lease=OTHER, force=True)
        self.assertEqual((device.state, self.owner()), (BOUND, "other"))
        self.refused(DeviceLeased, "renew", lease=CI)
        self.sleep(600)
        self.assertIs(self.state(), FREE)
        self.done("attach", lease=CI)
        self.assertIsNone(self.done("attach", force=True).lease)
        self.sleep(1000)
        self.assertIs(self.state(), BOUND)

    def test_network(self) -> None:
        """An attach of a network adapter that the server needs fails without C{force}; a mounted
        disk fails with it, too."""
        self.backend = PatientBackend(self.devices)
        self.start()
        uses = ["eth0 has the default route"]
        result = self.ask("attach")
        self.fail_(-1, NetworkInUse(UNO, uses))
        error = self.failureResultOf(result, NetworkInUse).value
        self.assertIn("attach it with `force`", str(error))
        for kind, isBound in ((NetworkInUse, True), (DeviceMounted, False)):
            result = self.ask("attach", force=True)
            self.succeed()  # the release
            self.fail_(-1, kind(UNO, uses))
            if isBound:
                self.succeed()
                self.successResultOf(result)
                self.assertIs(self.state(), BOUND)
                self.backend.inventory.replace([UNO], {UNO.busId})
            else:
                self.failureResultOf(result, DeviceMounted)

    def test_detach(self) -> None:
        """A detach with C{force} unbinds such a device."""
        self.done("attach", lease=CI)
        self.done("detach", force=True)
        self.assertIs(self.state(), FREE)

    def test_holderInError(self) -> None:
        """The error names the holder, since when, and its traffic."""
        self.backend = PatientBackend(self.devices)
        self.start()
        self.ask("attach")
        self.succeed()
        self.take()
        self.backend.moved = {UNO.busId: Traffic(bytesIn=12, bytesOut=345)}
        result = self.ask("attach")
        self.fail_(-1, DeviceInUse(UNO))
        self.assertEqual(
            self.error(DeviceInUse, result),
            f"in use by 192.0.2.8 since 2023-11-14T22:13:20.000Z (12 bytes in, 345 out): {UNO}",
        )


class AlwaysTests(CoreTestCase):
    """
    Leases of devices with C{share: always}: their end ends the session, the device stays bound.
    """

    def setUp(self) -> None:
        super().setUp()
        self.start(ALWAYS)
        self.done("attach", lease=CI)

    def test_detach(self) -> None:
        """The device stays bound when the owner detaches it, and when it is replugged."""
        self.take()
        device = self.done("detach", owner="ci")
        self.assertEqual((device.state, device.lease), (BOUND, None))
        self.plug()
        self.assertIs(self.state(), BOUND)

    def test_expires(self) -> None:
        """The device stays bound when its lease expires; without a session nothing is done."""
        self.take()
        self.sleep(600)
        self.assertIs(self.state(), BOUND)
        self.done("attach", lease=CI)
        calls = len(self.verbs)
        self.sleep(600)
        self.assertEqual(len(self.verbs), calls)
