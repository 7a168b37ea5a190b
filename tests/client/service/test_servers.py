"""
Tests of L{usbip_server.client.service.devices.servers}.
"""

from __future__ import annotations

from itertools import pairwise

from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import DEVICES, STICK, UNO, changed
from tests.support.network import Answer, Network, Room
from usbip_server.client.devicereader import MOST_DEVICES
from usbip_server.client.service.config import LiveSettings, ServiceFile
from usbip_server.client.service.devices.servers import ServerConnection, ServerPool
from usbip_server.model.device import Lease
from usbip_server.model.inventory import Change
from usbip_server.model.replies import ReceivedReply, Status

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
        """Connect to the server."""
        self.configure(text)
        (server,) = self.servers
        self.changes.clear()
        return server

    def busIds(self, server: ServerConnection) -> list[str]:
        """The devices that are known of it."""
        return [each.device.busId for each in server.found()]

    def pauses(self) -> list[float]:
        """Between the attempts to connect."""
        return [round(after - before, 1) for before, after in pairwise(self.room.tries)]


class WatchTests(ServersTestCase):
    """
    The devices of a server are known from its events.
    """

    def test_snapshotThenEvents(self) -> None:
        """All devices are known at once, and changes without a request."""
        self.configure(ONE)
        self.assertEqual({kind for kind, _ in self.changes}, {"added"})
        server = self.begin()
        self.assertEqual(self.busIds(server), ["1-1.4", "1-2", "2-10"])
        self.room.unplug("1-2")
        self.room.plug(changed(STICK, busId="1-7"))
        self.network.settle()
        self.assertEqual(self.changes, [("removed", "1-2"), ("added", "1-7")])
        self.assertEqual(self.busIds(server), ["1-1.4", "1-7", "2-10"])
        self.assertEqual((len(self.room.tries), self.turns), (1, [True]))

    def test_sameLeaseIsNoChange(self) -> None:
        """A device is changed only by a lease with other values."""
        server = self.begin()
        for until, changes in ((5.0, 1), (5.0, 1), (6.0, 2)):
            lease = Lease(owner="ci", address="192.0.2.7", ttl=60.0, until=until)
            server.inventory.replace([server._known(changed(UNO, lease=lease))], {UNO.busId})
            self.assertEqual(self.changes, [("lease", UNO.busId)] * changes)

    def test_resumesAfterDisconnect(self) -> None:
        """After a new connection no event is missing, nor reported twice."""
        self.begin()
        self.room.cut(Answer.SILENT)
        self.room.unplug("1-2")
        self.room.plug(STICK)
        self.network.settle()
        self.room.answer = Answer.ACCEPTS
        self.network.sleep(2)
        self.assertEqual(self.changes, [("removed", "1-2"), ("added", "1-2")])
        self.assertEqual(self.turns, [True, False, True])

    def test_newSnapshotOfRestartedServer(self) -> None:
        """A restarted server sends a new snapshot; the differences are changes."""
        self.begin()
        self.network.sleep(1)
        self.room.unplug("1-2")
        self.room.restart()
        self.network.sleep(2)
        self.assertEqual(self.changes, [("removed", "1-2")])

    def test_invalidEventEndsConnection(self) -> None:
        """An event that cannot be decoded ends the connection; there is a new one."""
        server = self.begin()
        conversation = server.watch._conversation
        assert conversation is not None
        conversation.lineReceived(b'{"event": "added", "seq": 5, "data": {"bus_id": 7}}')
        self.network.settle()
        self.assertIn("not understood", str(server.trouble))
        self.network.sleep(1)
        self.assertTrue(server.isUp)

    def test_devicesAreBounded(self) -> None:
        """A device that is not understood is left out, and so are those above the limit; the
        others are known."""
        server = self.begin()
        valid = {"vendor_id": "1209", "product_id": "0001", "description": "a"}
        data = [{**valid, "bus_id": "1-1", "vendor_id": "zz"}, {**valid, "bus_id": "1-2"}]
        data += [{**valid, "bus_id": f"2-{number}"} for number in range(1, MOST_DEVICES + 1)]
        server.watchBegun(server.server, ReceivedReply(status=Status.SUCCESS, seq=1, data=data))
        self.assertEqual(len(server.found()), MOST_DEVICES - 1)
        self.assertEqual(self.busIds(server)[:2], ["1-2", "2-1"])
        for number in (1, 2, 3):
            device = {**valid, "bus_id": f"3-{number}"}
            server.watchEvent(server.server, {"event": "added", "seq": number, "data": device})
        self.assertEqual(len(server.found()), MOST_DEVICES)
        self.assertEqual(self.busIds(server)[-1], "3-1")

    def test_silentServerIsLost(self) -> None:
        """A server that sends not even heartbeats is not connected any more."""
        server = self.begin()
        self.room.isMute = True
        self.network.until(lambda: not server.isUp, 46)
        self.assertEqual(server.trouble, "raspi (192.0.2.1): no line received for 45 s")

    def test_verify(self) -> None:
        """While a connection is verified there are no devices. That it was alive is no news; that
        it was dead is."""
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


class ReconnectTests(ServersTestCase):
    """
    A server that is not connected is tried again.
    """

    def test_backoff(self) -> None:
        """Attempts become rarer, whether they are refused or unanswered; a slow attempt does not
        delay the next one."""
        for answer, reason in (
            (Answer.REFUSES, "refused"),
            (Answer.SILENT, "no connection within 5 s"),
        ):
            self.room.answer = answer
            self.room.tries.clear()
            self.turns.clear()
            server = self.begin()
            self.network.sleep(8)
            self.assertEqual(self.pauses()[1:], [0.5, 1.0, 1.5, 1.5, 1.5, 1.5])
            self.assertEqual((server.isTried, server.found(), self.turns), (True, (), [False]))
            self.assertIn(reason, str(server.trouble))
            self.configure(NONE)

    def test_connectedWithinLongestPause(self) -> None:
        """A server that is back is connected within the longest pause, once, and the pauses begin
        with the first again."""
        server = self.begin()
        for answer in (Answer.SILENT, Answer.REFUSES):
            self.room.cut(answer)
            self.network.sleep(60.3)
            self.room.answer = Answer.ACCEPTS
            self.assertLessEqual(self.network.until(lambda: server.isUp, 2), 1.5)
            self.network.sleep(5)
            self.assertEqual(self.room.watchers, 1)
        self.room.tries.clear()
        self.room.cut(Answer.REFUSES)
        self.network.sleep(2)
        self.assertEqual(self.pauses(), [0.5, 1.0])

    def test_rangeIsTriedRarely(self) -> None:
        """An address of a range that has never answered is tried every 30 s in the end; one that
        has answered is tried like any other."""
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

    def test_removedServerIsNotTried(self) -> None:
        """A server that is not configured any more is disconnected, and not tried."""
        for answer in Answer:
            self.room.answer = answer
            self.begin()
            self.network.sleep(0.1)
            self.configure(NONE)
            before = len(self.room.tries)
            self.network.sleep(5)
            self.assertEqual((len(self.room.tries), self.room.watchers), (before, 0))
