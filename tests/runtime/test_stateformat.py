"""
Tests of the format of the state files, which must not change: files as an earlier version of the
daemon and of the client service has written them.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from usbip_server.client.service.devices.desiredstate import Requested, Requests
from usbip_server.model.device import Lease
from usbip_server.runtime.statefile import StateFile
from usbip_server.server.devices.desireddevice import DesiredDevice, State
from usbip_server.testing import FakeReactor

SERVER = """{
  "version": 1,
  "wishes": [
    {
      "vendor_id": "2341",
      "product_id": "0043",
      "serial": "75330303035351F0A1C1",
      "bus_id": "1-1.4",
      "description": "Arduino SA Uno R3 (CDC ACM)",
      "kept": true,
      "lease": null
    },
    {
      "vendor_id": "0781",
      "product_id": "5581",
      "serial": null,
      "bus_id": "1-2",
      "description": "SanDisk Corp. Ultra",
      "kept": false,
      "lease": {
        "owner": "ci",
        "address": "192.0.2.7",
        "proof": "token ci",
        "ttl": 600.0,
        "until": 1700000600.5
      }
    }
  ]
}
"""

CLIENT = """{
  "version": 1,
  "requests": [
    {
      "server": "raspi",
      "vendor_id": "2341",
      "product_id": "0043",
      "serial": null,
      "bus_id": "1-1.4",
      "description": "Arduino SA Uno R3 (CDC ACM)",
      "owner": "ci"
    }
  ]
}
"""


class StateFormatTests(SynchronousTestCase):
    """
    A file of an earlier version is read, and written again byte for byte.
    """

    def open(self, text: str, kind: type[msgspec.Struct]) -> msgspec.Struct:
        """Read a file without a warning; what is saved then is what was there."""
        path = Path(self.mktemp()).absolute()
        path.write_text(text)
        reactor = FakeReactor()
        with capturedLogs() as logged:
            file = StateFile(str(path), kind, reactor, reactor.spawn)
            state = file.open()
        self.assertEqual(list(logged), [])
        path.write_text("")
        file.save(state)
        self.assertEqual(path.read_text(), text)
        return state

    def test_server(self) -> None:
        """The devices that clients have attached, and their leases."""
        state = self.open(SERVER, State)
        assert isinstance(state, State)
        uno, stick = state.devices
        self.assertEqual(
            uno,
            DesiredDevice(
                vendorId="2341",
                productId="0043",
                serial="75330303035351F0A1C1",
                busId="1-1.4",
                description="Arduino SA Uno R3 (CDC ACM)",
                kept=True,
            ),
        )
        assert stick.lease is not None
        self.assertEqual(
            msgspec.structs.astuple(stick.lease),
            msgspec.structs.astuple(
                Lease(
                    owner="ci",
                    address="192.0.2.7",
                    proof="token ci",
                    ttl=600.0,
                    until=1700000600.5,
                )
            ),
        )

    def test_client(self) -> None:
        """The devices that programs have requested of the client service."""
        state = self.open(CLIENT, Requests)
        requested = Requested(
            server="raspi",
            vendorId="2341",
            productId="0043",
            serial=None,
            busId="1-1.4",
            description="Arduino SA Uno R3 (CDC ACM)",
            owner="ci",
        )
        self.assertEqual(state, Requests(requests=(requested,)))
