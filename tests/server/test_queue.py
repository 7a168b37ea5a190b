"""
Tests of L{usbip_server.server.queue}: the queue of those who wait for a device.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred

from tests.server.desiredcase import Client, DesiredTestCase
from tests.support.fixtures import ALICE, BOB, STICK, UNO, asked
from usbip_server.model.device import DeviceState
from usbip_server.model.errors import (
    BackendUnavailable,
    DeviceAwaited,
    DeviceInUse,
    DeviceLeased,
    DeviceNotFound,
    NotDone,
    SeveralMatch,
)
from usbip_server.model.policy import Principal
from usbip_server.model.replies import Devices
from usbip_server.server.allocation import BUSY_PAUSE
from usbip_server.server.queue import TURN_SECONDS

FREE, BOUND, IN_USE = DeviceState.FREE, DeviceState.BOUND, DeviceState.IN_USE
CAROL = Principal("192.0.2.9")


class QueueTests(DesiredTestCase):
    """
    First come, first served.
    """

    devices = (UNO, STICK)

    def setUp(self) -> None:
        super().setUp()
        self.start()

    def wait(
        self, owner: str, seconds: float = 60, ttl: float = 100, client: Client | None = None
    ) -> Deferred[Devices]:
        """Wait for a lease."""
        lease = {"owner": owner, "ttl": ttl}
        return self.ask("attach", client or Client(), wait=seconds, lease=lease)

    def places(self, client: Client) -> list[object]:
        """The places that a client was told."""
        return [line.get("place") for line in client.told if line["event"] == "queued"]

    def test_free(self) -> None:
        """An available device is attached without waiting."""
        client = Client()
        self.assertIs(self.done("attach", client, wait=60).state, BOUND)
        self.assertEqual(client.told, [])

    def test_turns(self) -> None:
        """Each client waits for those before it, and receives its place."""
        self.done("attach", lease={"owner": "a", "ttl": 10})
        bob, carol = Client(BOB), Client(CAROL)
        first, second = self.wait("b", ttl=10, client=bob), self.wait("c", client=carol)
        self.assertEqual((self.places(bob), self.places(carol)), ([1], [2]))
        self.assertIn("leased by a (192.0.2.7) for 10 s more", bob.told[0]["message"])
        self.assertEqual(bob.told[0]["data"]["bus_id"], UNO.busId)
        self.sleep(10)
        lease = self.successResultOf(first).lease  # type: ignore[union-attr]
        self.assertEqual(lease and lease.owner, "b")
        self.assertNoResult(second)
        self.assertEqual((self.places(bob), self.places(carol)), ([1], [2, 1]))
        self.sleep(10)
        lease = self.successResultOf(second).lease  # type: ignore[union-attr]
        self.assertEqual(lease and lease.owner, "c")

    def test_timeOut(self) -> None:
        """After C{wait} seconds the client receives the reason."""
        self.done("attach", lease={"owner": "a", "ttl": 100})
        result = self.wait("b", seconds=20)
        self.sleep(19)
        self.assertNoResult(result)
        self.sleep(1)
        self.assertIn("leased by a", str(self.failureResultOf(result, DeviceLeased).value))

    def test_inUse(self) -> None:
        """A client can wait for a device that is in use."""
        self.done("attach")
        self.take()
        result = self.wait("b")
        self.sleep(10)
        self.assertNoResult(result)
        self.giveBack()
        self.successResultOf(result)

    def test_notThere(self) -> None:
        """A client can wait for a device that is not plugged in."""
        self.unplug()
        client = Client()
        result = self.wait("b", client=client)
        self.assertEqual(self.places(client), [None])
        self.assertIn("no device matches", client.told[0]["message"])
        self.plug()
        self.successResultOf(result)
        self.assertIs(self.state(), BOUND)

    def test_neverThere(self) -> None:
        """If it is not plugged in meanwhile, it is not found."""
        self.unplug()
        result = self.wait("b", seconds=5)
        self.sleep(5)
        self.failureResultOf(result, DeviceNotFound)

    def test_several(self) -> None:
        """Ambiguous criteria are refused at once."""
        self.refused(SeveralMatch, "attach", id="*", wait=60)
        self.done("attach", id="*", wait=60, first=True)

    def test_otherDevices(self) -> None:
        """A client that waits for one device does not delay those that wait for another."""
        self.done("attach", lease={"owner": "a", "ttl": 100})
        result = self.wait("b")
        self.done("attach", id="1-2", wait=60)
        self.assertNoResult(result)

    def test_notAround(self) -> None:
        """A client without C{wait} cannot attach a device that others wait for."""
        self.done("attach", lease={"owner": "a", "ttl": 10})
        first = self.wait("b")
        self.done("detach", owner="a")
        self.successResultOf(first)
        self.refused(DeviceLeased, "attach")
        self.done("detach", owner="b")
        self.take_(first=self.wait("c", ttl=5))

    def take_(self, first: Deferred[Devices]) -> None:
        """Somebody has it, and somebody else waits without a lease."""
        self.successResultOf(first)
        waiting = self.ask("attach", Client(), wait=60)
        self.sleep(5)
        self.successResultOf(waiting)

    def test_queueFirst(self) -> None:
        """Nor can it while such a device is free for a moment."""
        self.done("attach")
        first = self.ask("attach", Client(), wait=60)
        self.successResultOf(first)
        second, third = (self.ask("attach", Client(), wait=60) for _ in range(2))
        self.assertNoResult(second)
        self.refused(DeviceAwaited, "attach")
        self.done("attach", force=True)
        self.sleep(TURN_SECONDS)
        self.successResultOf(second)
        self.assertNoResult(third)
        self.sleep(TURN_SECONDS)
        self.successResultOf(third)

    def test_turnWithoutLease(self) -> None:
        """
        A client without a lease has some seconds to import the device, before the next one
        gets it.
        """
        self.done("attach", wait=60)
        second = self.ask("attach", Client(), wait=60)
        self.take()
        self.sleep(TURN_SECONDS)
        self.assertNoResult(second)
        self.giveBack()
        self.successResultOf(second)

    def test_gone(self) -> None:
        """A client that disconnects leaves the queue."""
        self.done("attach", lease={"owner": "a", "ttl": 10})
        bob, carol = Client(BOB), Client(CAROL)
        first, second = self.wait("b", client=bob), self.wait("c", client=carol)
        bob.gone()
        self.failureResultOf(first, NotDone)
        self.assertFalse(bob.isHeld)
        self.sleep(10)
        self.successResultOf(second)

    def test_goneUpdatesPlaces(self) -> None:
        """The clients behind it move up, and receive their new places."""
        self.done("attach", lease={"owner": "a", "ttl": 10})
        bob, carol = Client(BOB), Client(CAROL)
        first = self.wait("b", client=bob)
        self.wait("c", client=carol)
        bob.gone()
        self.failureResultOf(first, NotDone)
        self.assertEqual(self.places(carol), [2, 1])

    def test_heartbeat(self) -> None:
        """A waiting client receives heartbeats until it gets the device."""
        self.done("attach", lease={"owner": "a", "ttl": 40})
        client = Client()
        result = self.wait("b", client=client, ttl=100)
        self.sleep(31)
        self.assertEqual([line["event"] for line in client.told].count("heartbeat"), 2)
        self.sleep(9)
        self.successResultOf(result)
        before = len(client.told)
        self.sleep(60)
        self.assertEqual(len(client.told), before)

    def test_sooner(self) -> None:
        """If another client imports the device first, the client goes on waiting."""
        self.done("attach", Client(ALICE))
        self.take()
        result = self.wait("b", seconds=30)
        real = self.backend.bind

        async def busy(*asked_: object) -> object:
            raise DeviceInUse(UNO)

        self.backend.bind = busy  # type: ignore[method-assign, assignment]
        self.giveBack()
        self.assertNoResult(result)
        self.sleep(3)
        self.assertNoResult(result)
        self.backend.bind = real  # type: ignore[method-assign]
        self.sleep(BUSY_PAUSE)
        self.successResultOf(result)

    def test_soonerInVain(self) -> None:
        """
        If that lasts until the end of C{wait}, it is the reason; a client that has
        disconnected gets nothing.
        """
        self.done("attach", Client(ALICE))
        real = self.backend.bind

        async def busy(*asked_: object) -> object:
            raise DeviceInUse(UNO)

        self.backend.bind = busy  # type: ignore[method-assign, assignment]
        bob = Client(BOB)
        first, second = self.wait("b", seconds=5, client=bob), self.wait("c", seconds=5)
        bob.gone()
        self.sleep(4)
        self.failureResultOf(first, NotDone)
        self.assertNoResult(second)
        self.sleep(2)
        self.failureResultOf(second, DeviceInUse)
        self.backend.bind = real  # type: ignore[method-assign]
        self.assertIsNone(self.shown().lease)

    def test_stop(self) -> None:
        """When the daemon stops, all waiting clients receive an error."""
        self.done("attach", lease={"owner": "a", "ttl": 10})
        result = self.wait("b")
        self.successResultOf(asked(self.core.stop()))
        self.failureResultOf(result, BackendUnavailable)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nothingLeft(self) -> None:
        """At the end no timer and no listener is left."""
        self.done("attach", lease={"owner": "a", "ttl": 10})
        results = [self.wait("b", seconds=5), self.wait("c", ttl=5)]
        self.sleep(20)
        for result in results:
            result.addErrback(lambda _: None)
        self.assertEqual(self.clock.getDelayedCalls(), [])
