"""
Tests of L{usbip_server.client.devices}.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import DEVICES, EPOCH, MOUSE, UNO, changed
from usbip_server.client.devices import deviceIn, foundIn
from usbip_server.client.servers import Server
from usbip_server.model.device import DeviceState, Encryption, Holder, Lease, UsbDevice
from usbip_server.model.errors import Unreachable
from usbip_server.model.replies import encodeDevices

RASPI = Server(name="raspi", host="192.0.2.1")

HELD = changed(
    UNO,
    state=DeviceState.IN_USE,
    driver="usbip-host",
    holder=Holder(address="192.0.2.7", since=EPOCH + 0.125, encryption=Encryption.KTLS),
    name="uno",
    trouble="it does not answer",
)


def told(device: UsbDevice, detail: bool = True) -> Any:
    """The JSON of a device."""
    return json.loads(bytes(encodeDevices(device, detail)))


class DeviceTests(SynchronousTestCase):
    """
    Decoding devices.
    """

    def test_detail(self) -> None:
        """With details all fields are set."""
        for device in (*DEVICES, HELD):
            self.assertEqual(deviceIn(RASPI, told(device)), device)

    def test_lease(self) -> None:
        """A lease lasts for a time, or as long as a connection."""
        for lease in (
            Lease(owner="ci", address="192.0.2.7", ttl=60.0, until=EPOCH),
            Lease(owner="ci", address="192.0.2.7"),
        ):
            seen = deviceIn(RASPI, told(changed(UNO, lease=lease))).lease
            assert seen is not None
            self.assertEqual(
                (seen.owner, seen.address, seen.ttl, seen.until),
                ("ci", "192.0.2.7", lease.ttl, lease.until),
            )

    def test_withoutDetail(self) -> None:
        """Without details the device is free. Unknown keys are ignored, for later versions."""
        device = deviceIn(RASPI, told(HELD, detail=False))
        self.assertEqual(
            (device.busId, device.state, device.holder), ("1-1.4", DeviceState.FREE, None)
        )
        self.assertEqual((device.serial, device.description), (UNO.serial, UNO.description))
        self.assertEqual(deviceIn(RASPI, told(UNO) | {"colour": "blue"}), UNO)

    def test_found(self) -> None:
        """One or several devices, with their server and their JSON."""
        [one] = foundIn(RASPI, told(UNO))
        self.assertEqual((one.server, one.device, one.raw), (RASPI, UNO, told(UNO)))
        self.assertEqual(str(one), "1-1.4 (Arduino SA Uno R3 (CDC ACM)) at raspi")
        several = foundIn(RASPI, [told(UNO), told(MOUSE)])
        self.assertEqual([each.device for each in several], [UNO, MOUSE])
        self.assertEqual(foundIn(RASPI, []), ())

    def test_notADevice(self) -> None:
        """Data that is not understood is an error that names the server."""
        whole = told(HELD)
        nonsense: tuple[Any, ...] = (
            *(None, 5, "1-1", [], {}, {"bus_id": "1-1"}),
            *(whole | {"bus_id": "usb1"}, whole | {"bus_id": 5}, whole | {"state": "asleep"}),
            whole | {"holder": {"address": 5}},
            whole | {"holder": {"since": "yesterday"}},
            whole | {"lease": {"owner": "ci"}},
            whole | {"lease": {"owner": "ci", "address": "a", "until": "0000-00-00"}},
            whole | {"interfaces": "02/02/01"},
        )
        for wrong in nonsense:
            error = self.assertRaises(Unreachable, deviceIn, RASPI, wrong)
            self.assertIn("raspi (192.0.2.1): its answer is not understood", str(error))
