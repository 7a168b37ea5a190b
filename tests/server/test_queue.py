"""
Tests of L{usbip_server.server.queue}: clients wait for a device, first come, first served.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from tests.server.corecase import BOUND, Client, CoreTestCase, lease
from tests.support.fixtures import BOB, STICK, UNO, asked
from usbip_server.model.errors import (
    BackendUnavailable,
    DeviceAwaited,
    DeviceInUse,
    DeviceLeased,
    DeviceNotFound,
    NotAllowed,
    NotDone,
    SeveralMatch,
)
from usbip_server.model.policy import AccessPreset, Principal
from usbip_server.model.replies import Devices
from usbip_server.model.requests import AttachDevice
from usbip_server.server.access.authorizer import Rights
from usbip_server.server.allocation import BUSY_PAUSE
from usbip_server.server.queue import PLACES_PAUSE, TURN_SECONDS

CAROL = Principal("192.0.2.9")


class QueueTests(CoreTestCase):
    """
    L{usbip_server.server.queue.WaitQueue}, through requests.
    """

    devices = (UNO, STICK)

    def setUp(self) -> None:
        super().setUp()
        self.start()

    def wait(
        self, owner: str, seconds: float = 60, ttl: float = 100, client: Client | None = None
    ) -> Deferred[Devices]:
        """Wait for a lease."""
        return self.ask("attach", client, wait=seconds, lease=lease(owner, ttl))

    def places(self, client: Client) -> list[object]:
        """The places in the queue that a client has received."""
        return [line.get("place") for line in client.told if line["event"] == "queued"]

    def makeBusy(self) -> None:
        """From now on another client imports the device just before each bind."""

        async def busy(*arguments: object) -> object:
            raise DeviceInUse(UNO)

        self.patch(self.backend, "bind", busy)

    def test_free(self) -> None:
        """
        An available device is attached without waiting, also if others wait for another one;
        ambiguous criteria are refused at once.
        """
        self.done("attach", lease=lease("a"))
        waiting, client = self.wait("b"), Client()
        self.assertIs(self.done("attach", client, id="1-2", wait=60).state, BOUND)
        self.assertEqual(client.told, [])
        self.assertNoResult(waiting)
        self.refused(SeveralMatch, "attach", id="*", wait=60)

    def test_turns(self) -> None:
        """Each client waits for those before it, and receives its place."""
        self.done("attach", lease=lease("a", 10))
        bob, carol = Client(BOB), Client(CAROL)
        first, second = self.wait("b", ttl=10, client=bob), self.wait("c", client=carol)
        self.assertEqual((self.places(bob), self.places(carol)), ([1], [2]))
        self.assertIn("leased by a (192.0.2.7) for 10 s more", bob.told[0]["message"])
        self.assertEqual(bob.told[0]["data"]["bus_id"], UNO.busId)
        self.sleep(10)
        self.device(first)
        self.assertEqual(self.owner(), "b")
        self.assertNoResult(second)
        self.assertEqual((self.places(bob), self.places(carol)), ([1], [2, 1]))
        self.sleep(10)
        self.device(second)
        self.assertEqual(self.owner(), "c")

    def test_timeOut(self) -> None:
        """After C{wait} seconds the client receives the reason; no timer is left at the end."""
        self.done("attach", lease=lease("a", 100))
        result = self.wait("b", seconds=20)
        self.sleep(19)
        self.assertNoResult(result)
        self.sleep(1)
        self.assertIn("leased by a", self.error(DeviceLeased, result))
        self.unplug()
        result = self.wait("b", seconds=5)
        self.sleep(5)
        self.error(DeviceNotFound, result)
        self.sleep(75)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_inUse(self) -> None:
        """A client can wait for a device that is in use."""
        self.done("attach")
        self.take()
        result = self.wait("b")
        self.sleep(10)
        self.assertNoResult(result)
        self.giveBack()
        self.device(result)

    def test_notPluggedIn(self) -> None:
        """A client can wait for a device that is not plugged in."""
        self.unplug()
        client = Client()
        result = self.wait("b", client=client)
        self.assertEqual(self.places(client), [None])
        self.assertIn("no device matches", client.told[0]["message"])
        self.plug()
        self.device(result)
        self.assertIs(self.state(), BOUND)

    def test_withoutWait(self) -> None:
        """
        A client without C{wait} cannot attach a device that others wait for, not even while it is
        free for a moment, unless with C{force}.
        """
        self.done("attach", lease=lease("a", 10))
        first = self.wait("b")
        self.done("detach", owner="a")
        self.device(first)
        self.refused(DeviceLeased, "attach")
        self.done("detach", owner="b")
        self.device(self.wait("c", ttl=5))
        second, third, fourth = (self.ask("attach", wait=60) for _ in range(3))
        self.sleep(5)
        self.device(second)
        self.assertNoResult(third)
        self.refused(DeviceAwaited, "attach")
        self.done("attach", force=True)
        for waiting in (third, fourth):
            self.assertNoResult(waiting)
            self.sleep(TURN_SECONDS)
            self.device(waiting)

    def test_turnWithoutLease(self) -> None:
        """A client without a lease has some seconds to import the device before the next one."""
        self.done("attach", wait=60)
        second = self.ask("attach", wait=60)
        self.take()
        self.sleep(TURN_SECONDS)
        self.assertNoResult(second)
        self.giveBack()
        self.device(second)

    def test_gone(self) -> None:
        """A client that disconnects leaves the queue; those behind it receive new places."""
        self.done("attach", lease=lease("a", 10))
        bob, carol = Client(BOB), Client(CAROL)
        first, second = self.wait("b", client=bob), self.wait("c", client=carol)
        bob.gone()
        self.error(NotDone, first)
        self.assertFalse(bob.isHeld)
        self.assertEqual(self.places(carol), [2, 1])
        self.sleep(10)
        self.device(second)

    def test_heartbeat(self) -> None:
        """A waiting client receives heartbeats until it gets the device."""
        self.done("attach", lease=lease("a", 40))
        client = Client()
        result = self.wait("b", client=client, ttl=100)
        self.sleep(31)
        self.assertEqual([line["event"] for line in client.told].count("heartbeat"), 2)
        self.sleep(9)
        self.device(result)
        before = len(client.told)
        self.sleep(60)
        self.assertEqual(len(client.told), before)

    def test_otherIsFaster(self) -> None:
        """If another client imports the device first, the client goes on waiting."""
        self.done("attach")
        self.take()
        result = self.wait("b", seconds=30)
        real = self.backend.bind
        self.makeBusy()
        self.giveBack()
        self.assertNoResult(result)
        self.sleep(3)
        self.assertNoResult(result)
        self.patch(self.backend, "bind", real)
        self.sleep(BUSY_PAUSE)
        self.device(result)

    def test_otherKeepsIt(self) -> None:
        """
        If that lasts until the end of C{wait}, it is the reason; a client that has disconnected
        gets nothing.
        """
        self.done("attach")
        self.makeBusy()
        bob = Client(BOB)
        first, second = self.wait("b", seconds=5, client=bob), self.wait("c", seconds=5)
        bob.gone()
        self.sleep(4)
        self.error(NotDone, first)
        self.assertNoResult(second)
        self.sleep(2)
        self.error(DeviceInUse, second)
        self.assertIsNone(self.owner())

    def test_cost(self) -> None:
        """
        What a request selects is looked up when the client comes, and again only when a device
        that it is about has changed: not for each client that comes or goes.
        """
        selected: list[str | None] = []
        real = Rights.select

        def select(rights: Rights, command: AttachDevice, *devices: Any) -> object:
            selected.append(command.id)
            return real(rights, command, *devices)

        self.patch(Rights, "select", select)
        self.done("attach", lease=lease("a"))
        selected.clear()
        clients = [Client(Principal(f"10.0.0.{number}")) for number in range(40)]
        for client in clients:
            self.wait("b", client=client).addErrback(lambda _: None)
        missing = self.ask("attach", id="9-*", wait=60)
        self.assertEqual(len(selected), 41)
        self.become(STICK, product="x")
        self.assertEqual(len(selected), 41)
        self.become(self.present(), product="x")
        self.assertEqual(len(selected), 81)
        for client in clients:
            client.gone()
        self.assertEqual(len(selected), 81)
        self.plug(STICK, busId="9-1")
        self.device(missing)

    def test_placesOfMany(self) -> None:
        """If many leave at once, those behind them are notified once a second."""
        self.done("attach", lease=lease("a"))
        clients = [Client(Principal(f"10.0.0.{number}")) for number in range(9)]
        for client in clients:
            self.wait("b", client=client).addErrback(lambda _: None)
        for client in clients[:8]:
            client.gone()
        self.assertEqual(self.places(clients[8]), [9, 8])
        self.sleep(PLACES_PAUSE)
        self.assertEqual(self.places(clients[8]), [9, 8, 1])

    def test_rightsChange(self) -> None:
        """A reload that takes away the rights of a waiting client ends its wait."""
        self.done("attach", lease=lease("a"))
        result = self.wait("b")
        self.reload(access=AccessPreset.LOCAL.policy)
        self.error(NotAllowed, result)

    def test_stop(self) -> None:
        """When the daemon stops, all waiting clients receive an error."""
        self.done("attach", lease=lease("a", 10))
        result = self.wait("b")
        self.successResultOf(asked(self.core.stop()))
        self.error(BackendUnavailable, result)
        self.assertEqual(self.clock.getDelayedCalls(), [])
