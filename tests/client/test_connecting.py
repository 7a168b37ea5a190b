"""
Tests of L{usbip_server.client.core.connecting}: servers that are not there, with a clock that is
turned by hand.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.client.network import Answer, Network
from tests.support import UNO, asked
from usbip_server.client.core.connecting import shareOf
from usbip_server.client.core.everywhere import Heard, devicesOf, everywhere
from usbip_server.client.core.servers import Server

SECONDS = 3.0

HOSTS = tuple(f"192.0.2.{number}" for number in range(1, 11))


class ShareTests(SynchronousTestCase):
    """
    How long a connection may take.
    """

    def test_share(self) -> None:
        """Half of the time, but time enough for the kernel to try twice, if there is that much."""
        for seconds, share in ((3, 1.5), (10, 5), (2, 1), (1.5, 1), (1, 1), (0.25, 0.25)):
            self.assertEqual(shareOf(seconds), share)


class DeadTests(SynchronousTestCase):
    """
    Ten servers.
    """

    def setUp(self) -> None:
        self.network = Network()
        self.addCleanup(self.network.close)
        self.rooms = [self.network.room(host, UNO) for host in HOSTS]
        self.heard: list[Heard[int]] = []

    def ask(self) -> None:
        """Ask all of them at once."""

        async def devices(server: Server) -> int:
            return len(await devicesOf(self.network, server, SECONDS))

        servers = [Server(name=host, host=host) for host in HOSTS]
        asked(everywhere(servers, devices)).addCallback(self.heard.append)

    def assertTakes(self, seconds: float) -> None:
        """That long it takes until all that can be known is known."""
        took = self.network.until(lambda: self.heard, 2 * SECONDS)
        self.assertTrue(-0.01 < took - seconds < 0.1, f"it has taken {took} s")

    def troubles(self) -> list[str]:
        """Which have not answered, and why."""
        return [str(error) for _, error in self.heard[0].troubles]

    def test_slow(self) -> None:
        """One that is dead is given up while one that is slow is still waited for: it costs
        nothing but a line."""
        self.rooms[3].answer = Answer.SILENT
        self.rooms[7].isMute = True
        self.ask()
        self.network.sleep(2)
        self.assertEqual(self.heard, [])
        self.rooms[7].isMute = False
        self.assertTakes(0)
        self.assertEqual(len(self.heard[0].answers), 9)
        self.assertEqual(self.troubles(), ["192.0.2.4: no connection within 1.5 s"])

    def test_dead(self) -> None:
        """Where all others answer at once the dead one is waited for, but not to the end."""
        self.rooms[3].answer = Answer.SILENT
        self.ask()
        self.assertTakes(SECONDS / 2)

    def test_tooSlow(self) -> None:
        """One that takes a connection has all of the time."""
        self.rooms[7].isMute = True
        self.ask()
        self.assertTakes(SECONDS)
        self.assertEqual(self.troubles(), ["192.0.2.8: no answer within 3 s"])
