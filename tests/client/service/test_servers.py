"""
Tests of L{usbip_server.client.service.devices.servers} and L{usbip_server.runtime.backoff}.
"""

from __future__ import annotations

from itertools import pairwise

from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import DEVICES, STICK, UNO, changed
from tests.support.network import Answer, Network, Room
from usbip_server.client.servers import Server
from usbip_server.client.service.devices.servers import ServerConnection, ServerPool
from usbip_server.model.device import Lease
from usbip_server.model.inventory import Change
from usbip_server.runtime.backoff import BackOff, Pauses

HOST = "192.0.2.1"
RASPI = Server(name="raspi", host=HOST)


class PausesTests(SynchronousTestCase):
    """
    How long to wait.
    """

    def test_pauses(self) -> None:
        """Each is twice as long, up to the longest, until it has worked."""
        pauses = Pauses(BackOff(first=0.25, longest=1.5), lambda: 1.0)
        self.assertEqual([pauses.next() for _ in range(5)], [0.25, 0.5, 1.0, 1.5, 1.5])
        pauses.reset()
        self.assertEqual(pauses.next(), 0.25)

    def test_chance(self) -> None:
        """Chance takes away up to a half."""
        chances = iter((0.0, 0.5, 1.0))
        pauses = Pauses(BackOff(first=1, longest=1), lambda: next(chances))
        self.assertEqual([pauses.next() for _ in range(3)], [0.5, 0.75, 1.0])

    def test_become(self) -> None:
        """A shorter longest is true at once."""
        pauses = Pauses(BackOff(first=0.25, longest=30), lambda: 1.0)
        for _ in range(10):
            pauses.next()
        pauses.become(BackOff(first=0.25, longest=1.5))
        self.assertEqual(pauses.next(), 1.5)


class LinksTestCase(SynchronousTestCase):
    """
    One server.

    @ivar heard: what has happened to its devices.
    @ivar turns: was it there? Each time that it was told.
    """

    def setUp(self) -> None:
        self.network = Network()
        self.room: Room = self.network.room(HOST, *DEVICES)
        self.heard: list[tuple[str, str]] = []
        self.turns: list[bool] = []
        self.links = ServerPool(self.network, self.changed, self.turned, lambda: 1.0)
        self.addCleanup(self.links.stop)

    def changed(self, link: ServerConnection, changes: tuple[Change, ...]) -> None:
        self.heard += [(change.kind.value, change.device.busId) for change in changes]

    def turned(self, link: ServerConnection, isNews: bool) -> None:
        if isNews:
            self.turns.append(link.isUp)

    def begin(self, longest: float = 1.5, isSought: bool = False) -> ServerConnection:
        """Watch it."""
        backOff = BackOff(longest=longest)
        self.links.become([RASPI], backOff, 5.0, lambda server: isSought)
        self.network.settle()
        (link,) = self.links
        return link

    def pauses(self) -> list[float]:
        """Between the tries there were."""
        return [round(after - before, 1) for before, after in pairwise(self.room.tries)]


class WatchTests(LinksTestCase):
    """
    What a server has is known.
    """

    def test_begins(self) -> None:
        """All of it, when it is there."""
        link = self.begin()
        self.assertEqual([each.device.busId for each in link.found()], ["1-1.4", "1-2", "2-10"])
        self.assertEqual(self.turns, [True])
        self.assertEqual({kind for kind, _ in self.heard}, {"added"})

    def test_happens(self) -> None:
        """And what happens to it, without its being asked."""
        link = self.begin()
        self.heard.clear()
        self.room.unplug("1-2")
        self.room.plug(changed(STICK, busId="1-7"))
        self.network.settle()
        self.assertEqual(self.heard, [("removed", "1-2"), ("added", "1-7")])
        self.assertEqual([each.device.busId for each in link.found()], ["1-1.4", "1-7", "2-10"])
        self.assertEqual(len(self.room.tries), 1)

    def test_lease(self) -> None:
        """A lease that is the same as before is no news."""
        link = self.begin()
        lease = Lease(owner="ci", address="192.0.2.7", ttl=60.0, until=5.0)
        first = changed(UNO, lease=lease)
        link.inventory.replace([first], {UNO.busId})
        self.heard.clear()
        again = changed(UNO, lease=Lease(owner="ci", address="192.0.2.7", ttl=60.0, until=5.0))
        link.inventory.replace([link._known(again)], {UNO.busId})
        self.assertEqual(self.heard, [])
        other = changed(UNO, lease=Lease(owner="ci", address="192.0.2.7", ttl=60.0, until=6.0))
        link.inventory.replace([link._known(other)], {UNO.busId})
        self.assertEqual(self.heard, [("lease", UNO.busId)])

    def test_goesOn(self) -> None:
        """After an absence it goes on where it was: nothing is missed nor told twice."""
        self.begin()
        self.heard.clear()
        self.room.cut(Answer.SILENT)
        self.room.unplug("1-2")
        self.room.plug(STICK)
        self.network.settle()
        self.room.answer = Answer.ACCEPTS
        self.network.sleep(2)
        self.assertEqual(self.heard, [("removed", "1-2"), ("added", "1-2")])
        self.assertEqual(self.turns, [True, False, True])

    def test_anew(self) -> None:
        """A server that was started anew tells all anew; what is different is news."""
        self.begin()
        self.heard.clear()
        self.network.sleep(1)
        self.room.unplug("1-2")
        self.room.restart()
        self.network.sleep(2)
        self.assertEqual(self.heard, [("removed", "1-2")])

    def test_nonsense(self) -> None:
        """What makes no sense ends the connection, and not more than that."""
        link = self.begin()
        conversation = link.following._conversation
        assert conversation is not None
        conversation.lineReceived(b'{"event": "added", "seq": 5, "data": {"bus_id": 7}}')
        self.network.settle()
        self.assertIn("not understood", str(link.trouble))
        self.network.sleep(1)
        self.assertTrue(link.isUp)

    def test_silence(self) -> None:
        """A server that says nothing any more is not there, and that is why."""
        link = self.begin()
        self.room.isMute = True
        self.network.until(lambda: not link.isUp, 46)
        self.assertEqual(link.trouble, "raspi (192.0.2.1): it has said nothing for 45 s")

    def test_doubted(self) -> None:
        """One that is doubted has no devices until it is asked anew. That it is still there is no
        news; that it is not, is."""
        link = self.begin()
        link.doubt()
        link.doubt()
        self.assertEqual((link.isUp, link.found()), (False, ()))
        self.network.settle()
        self.assertEqual((link.isUp, link.times, self.turns), (True, 2, [True]))
        self.assertEqual(self.room.watchers, 1)
        self.room.answer = Answer.REFUSES
        link.doubt()
        self.network.sleep(0.5)
        self.assertEqual((link.isUp, self.turns), (False, [True, False]))


class ReturnTests(LinksTestCase):
    """
    A server that is away is tried again.
    """

    def test_refused(self) -> None:
        """Ever less often, up to the longest pause."""
        self.room.answer = Answer.REFUSES
        self.begin()
        self.network.sleep(8)
        self.assertEqual(self.pauses(), [0.2, 0.5, 1.0, 1.5, 1.5, 1.5, 1.5])
        self.assertEqual(self.turns, [False])

    def test_silent(self) -> None:
        """Likewise where nothing comes back: a try does not wait for the one before."""
        self.room.answer = Answer.SILENT
        link = self.begin()
        self.network.sleep(8)
        self.assertEqual(self.pauses(), [0.2, 0.5, 1.0, 1.5, 1.5, 1.5, 1.5])
        self.assertEqual(self.turns, [False])
        self.assertIn("no connection within 5 s", str(link.trouble))

    def test_back(self) -> None:
        """It is known within the longest pause that it is back, and one connection remains."""
        link = self.begin()
        for answer in (Answer.SILENT, Answer.REFUSES):
            self.room.cut(answer)
            self.network.sleep(60.3)
            self.room.answer = Answer.ACCEPTS
            self.assertLessEqual(self.network.until(lambda: link.isUp, 2), 1.5)
            self.network.sleep(5)
            self.assertEqual(self.room.watchers, 1)

    def test_resets(self) -> None:
        """When it has worked the pauses begin anew."""
        self.room.answer = Answer.REFUSES
        link = self.begin()
        self.network.sleep(20)
        self.room.answer = Answer.ACCEPTS
        self.network.until(lambda: link.isUp, 2)
        self.room.tries.clear()
        self.room.cut(Answer.REFUSES)
        self.network.sleep(2)
        self.assertEqual(self.pauses(), [0.5, 1.0])

    def test_sought(self) -> None:
        """An address of a range that has never answered is tried less often in the end; one
        that has, is missed."""
        self.room.answer = Answer.SILENT
        link = self.begin(isSought=True)
        self.network.sleep(150)
        self.assertEqual(self.pauses()[-2:], [30, 30])
        self.room.answer = Answer.ACCEPTS
        self.network.until(lambda: link.isUp, 31)
        self.room.tries.clear()
        self.room.cut(Answer.REFUSES)
        self.network.sleep(10)
        self.assertEqual(self.pauses()[-1], 1.5)

    def test_stopped(self) -> None:
        """One that is not watched any more is not tried."""
        for answer in Answer:
            self.room.answer = answer
            self.begin()
            self.network.sleep(0.1)
            self.links.become([], BackOff(), 5.0)
            self.network.settle()
            before = len(self.room.tries)
            self.network.sleep(5)
            self.assertEqual((len(self.room.tries), self.room.watchers), (before, 0))

    def test_settled(self) -> None:
        """It is known when each was tried once."""
        self.room.answer = Answer.REFUSES
        self.begin()
        self.network.sleep(0.5)
        link = self.links.of(RASPI)
        assert link is not None
        self.assertTrue(link.isSettled)
        self.assertEqual(self.links.found(), ())
