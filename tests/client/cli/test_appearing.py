"""
Tests of L{usbip_server.client.cli.discovery}.
"""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import STICK, UNO
from usbip_server.client.cli import discovery
from usbip_server.client.cli.discovery import DiscoveryResult, appearing
from usbip_server.client.devices import RemoteDevice, foundIn
from usbip_server.client.selection import SeveralFound, meant
from usbip_server.client.servers import Server
from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import DeviceNotFound
from usbip_server.model.replies import encodeDevices

RASPI = Server(name="raspi", host="192.0.2.1")


def found(device: UsbDevice) -> RemoteDevice:
    """A device of a server's."""
    [each] = foundIn(RASPI, json.loads(bytes(encodeDevices(device, detail=True))))
    return each


class AppearingTests(SynchronousTestCase):
    """
    A device that is waited for.

    @ivar asked: how often all servers were asked.
    """

    def setUp(self) -> None:
        self.asked = 0
        self.patch(discovery, "AGAIN", 0.001)

    def appears(
        self, *surveys: DiscoveryResult, word: str = "uno", patience: float = 10.0
    ) -> RemoteDevice:
        """What comes, of servers that say this one after the other."""
        which = meant(word, False)
        assert which is not None

        def survey() -> DiscoveryResult:
            self.asked += 1
            return surveys[min(self.asked, len(surveys)) - 1]

        each, last = appearing(which, survey, patience)
        self.assertIs(last, surveys[-1])
        return each

    def test_there(self) -> None:
        """It may be there when it is asked for."""
        there = DiscoveryResult(found=(found(STICK), found(UNO)), answered=(RASPI,))
        self.assertEqual(self.appears(there).device.busId, UNO.busId)
        self.assertEqual(self.asked, 1)

    def test_comes(self) -> None:
        """Or it comes, be it that nobody answers at first."""
        nobody, nothing = (
            DiscoveryResult(),
            DiscoveryResult(answered=(RASPI,), found=(found(STICK),)),
        )
        there = DiscoveryResult(found=(found(STICK), found(UNO)), answered=(RASPI,))
        self.assertEqual(self.appears(nobody, nothing, there).device.busId, UNO.busId)
        self.assertEqual(self.asked, 3)

    def test_several(self) -> None:
        """Several are not one."""
        both = DiscoveryResult(found=(found(STICK), found(UNO)), answered=(RASPI,))
        self.assertRaises(SeveralFound, self.appears, both, word="1-*")

    def test_never(self) -> None:
        """It may not come at all."""
        error = self.assertRaises(DeviceNotFound, self.appears, DiscoveryResult(), patience=0.4)
        self.assertIn("none has come within 0 s", str(error))
        self.assertGreater(self.asked, 1)
