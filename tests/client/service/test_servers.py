"""
Tests of L{usbip_server.client.service.devices.servers}.
"""

from __future__ import annotations

from itertools import pairwise

from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import DEVICES, STICK, UNO, changed
from tests.support.network import Answer, Network, Room
from usbip_server.client.service.config import LiveSettings, ServiceFile
from usbip_server.client.service.devices.servers import ServerConnection, ServerPool
from usbip_server.model.device import Lease
from usbip_server.model.inventory import Change

HOST = "192.0.2.1"

ONE = f"servers: {{raspi: {{host: {HOST}}}}}"
RANGE = f"servers: {{lab: {{range: {HOST}-1}}}}"
NONE = "servers: {}"


def settingsOf(text: str) -> LiveSettings:
    """The settings of a configuration."""
    file = ServiceFile("s.yaml", text)
    config = file.config()
    return LiveSettings(config, file.known(config))


class ServersTestCase(SynchronousTestCase):
    """
    One server.

    @ivar changes: of its devices, as reported.
    @ivar turns: whether it was connected, each time that this was reported.
    """

    def setUp(self) -> None:
        self.network = Network()
        self.room: Room = self.network.room(HOST, *DEVICES)
        self.changes: list[tuple[str, str]] = []
        self.turns: list[bool] = []
        self.settings = settingsOf(NONE)
        self.servers = ServerPool(
            self.network, self.settings, self.changed, self.turned, lambda: 1.0
        )
        self.addCleanup(self.servers.stop)

    def changed(self, server: ServerConnection, changes: tuple[Change, ...]) -> None:
        self.changes += [(change.kind.value, change.device.busId) for change in changes]

    def turned(self, server: ServerConnection, isNews: bool) -> None:
        if isNews:
            self.turns.append(server.isUp)

    def configure(self, text: str) -> None:
        """Put a configuration in force."""
        settings = settingsOf(text)
        self.settings.replace(settings.config, settings.servers)
        self.servers.update()
        self.network.settle()

    def begin(self, text: str = ONE) -> ServerConnection:
        """Connect to it."""
        self.configure(text)
        (server,) = self.servers
        return server

    def pauses(self) -> list[float]:
        """Between the tries there were."""
        return [round(after - before, 1) for before, after in pairwise(self.room.tries)]


class WatchTests(ServersTestCase):
    """
    What a server has is known.
    """

    def test_begins(self) -> None:
        """All of it, when it is there."""
        server = self.begin()
        self.assertEqual([each.device.busId for each in server.found()], ["1-1.4", "1-2", "2-10"])
        self.assertEqual(self.turns, [True])
        self.assertEqual({kind for kind, _ in self.changes}, {"added"})

    def test_happens(self) -> None:
        """And what happens to it, without its being asked."""
        server = self.begin()
        self.changes.clear()
        self.room.unplug("1-2")
        self.room.plug(changed(STICK, busId="1-7"))
        self.network.settle()
        self.assertEqual(self.changes, [("removed", "1-2"), ("added", "1-7")])
        self.assertEqual([each.device.busId for each in server.found()], ["1-1.4", "1-7", "2-10"])
        self.assertEqual(len(self.room.tries), 1)

    def test_lease(self) -> None:
        """A lease that is the same as before is no news."""
        server = self.begin()
        lease = Lease(owner="ci", address="192.0.2.7", ttl=60.0, until=5.0)
        first = changed(UNO, lease=lease)
        server.inventory.replace([first], {UNO.busId})
        self.changes.clear()
        again = changed(UNO, lease=Lease(owner="ci", address="192.0.2.7", ttl=60.0, until=5.0))
        server.inventory.replace([server._known(again)], {UNO.busId})
        self.assertEqual(self.changes, [])
        other = changed(UNO, lease=Lease(owner="ci", address="192.0.2.7", ttl=60.0, until=6.0))
        server.inventory.replace([server._known(other)], {UNO.busId})
        self.assertEqual(self.changes, [("lease", UNO.busId)])

    def test_goesOn(self) -> None:
        """After an absence it goes on where it was: nothing is missed nor told twice."""
        self.begin()
        self.changes.clear()
        self.room.cut(Answer.SILENT)
        self.room.unplug("1-2")
        self.room.plug(STICK)
        self.network.settle()
        self.room.answer = Answer.ACCEPTS
        self.network.sleep(2)
        self.assertEqual(self.changes, [("removed", "1-2"), ("added", "1-2")])
        self.assertEqual(self.turns, [True, False, True])

    def test_anew(self) -> None:
        """A server that was started anew tells all anew; what is different is news."""
        self.begin()
        self.changes.clear()
        self.network.sleep(1)
        self.room.unplug("1-2")
        self.room.restart()
        self.network.sleep(2)
        self.assertEqual(self.changes, [("removed", "1-2")])

    def test_nonsense(self) -> None:
        """What makes no sense ends the connection, and not more than that."""
        server = self.begin()
        conversation = server.watch._conversation
        assert conversation is not None
        conversation.lineReceived(b'{"event": "added", "seq": 5, "data": {"bus_id": 7}}')
        self.network.settle()
        self.assertIn("not understood", str(server.trouble))
        self.network.sleep(1)
        self.assertTrue(server.isUp)

    def test_silence(self) -> None:
        """A server that says nothing any more is not there, and that is why."""
        server = self.begin()
        self.room.isMute = True
        self.network.until(lambda: not server.isUp, 46)
        self.assertEqual(server.trouble, "raspi (192.0.2.1): it has said nothing for 45 s")

    def test_doubted(self) -> None:
        """One that is doubted has no devices until it is asked anew. That it is still there is no
        news; that it is not, is."""
        server = self.begin()
        server.verify()
        server.verify()
        self.assertEqual((server.isUp, server.found()), (False, ()))
        self.network.settle()
        self.assertEqual((server.isUp, server.connects, self.turns), (True, 2, [True]))
        self.assertEqual(self.room.watchers, 1)
        self.room.answer = Answer.REFUSES
        server.verify()
        self.network.sleep(0.5)
        self.assertEqual((server.isUp, self.turns), (False, [True, False]))


class ReturnTests(ServersTestCase):
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
        server = self.begin()
        self.network.sleep(8)
        self.assertEqual(self.pauses(), [0.2, 0.5, 1.0, 1.5, 1.5, 1.5, 1.5])
        self.assertEqual(self.turns, [False])
        self.assertIn("no connection within 5 s", str(server.trouble))

    def test_back(self) -> None:
        """It is known within the longest pause that it is back, and one connection remains."""
        server = self.begin()
        for answer in (Answer.SILENT, Answer.REFUSES):
            self.room.cut(answer)
            self.network.sleep(60.3)
            self.room.answer = Answer.ACCEPTS
            self.assertLessEqual(self.network.until(lambda: server.isUp, 2), 1.5)
            self.network.sleep(5)
            self.assertEqual(self.room.watchers, 1)

    def test_resets(self) -> None:
        """When it has worked the pauses begin anew."""
        self.room.answer = Answer.REFUSES
        server = self.begin()
        self.network.sleep(20)
        self.room.answer = Answer.ACCEPTS
        self.network.until(lambda: server.isUp, 2)
        self.room.tries.clear()
        self.room.cut(Answer.REFUSES)
        self.network.sleep(2)
        self.assertEqual(self.pauses(), [0.5, 1.0])

    def test_sought(self) -> None:
        """An address of a range that has never answered is tried less often in the end; one
        that has, is missed."""
        self.room.answer = Answer.SILENT
        server = self.begin(RANGE)
        self.network.sleep(150)
        self.assertEqual(self.pauses()[-2:], [30, 30])
        self.room.answer = Answer.ACCEPTS
        self.network.until(lambda: server.isUp, 31)
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
            self.configure(NONE)
            before = len(self.room.tries)
            self.network.sleep(5)
            self.assertEqual((len(self.room.tries), self.room.watchers), (before, 0))

    def test_settled(self) -> None:
        """It is known when each was tried once."""
        self.room.answer = Answer.REFUSES
        self.begin()
        self.network.sleep(0.5)
        (server,) = self.servers
        self.assertEqual((server.isTried, server.found()), (True, ()))
