"""
Tests of L{usbip_server.client.devices}.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import DEVICES, EPOCH, MOUSE, UNO, changed
from usbip_server.client.devices import deviceIn, foundIn, remoteIn
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
        one = remoteIn(RASPI, told(UNO))
        self.assertEqual((one.server, one.device, one.raw), (RASPI, UNO, told(UNO)))
        self.assertEqual(str(one), "1-1.4 (Arduino SA Uno R3 (CDC ACM)) at raspi")
        several = foundIn(RASPI, [told(UNO), told(MOUSE)])
        self.assertEqual([each.device for each in several], [UNO, MOUSE])
        self.assertEqual(foundIn(RASPI, []), ())

    def test_notADevice(self) -> None:
        """Data with a value that is not valid is an error that names the server."""
        whole = told(HELD)
        lease = {"owner": "ci", "address": "a"}
        wrong: tuple[Any, ...] = (
            *(None, 5, "1-1", [], {}, {"bus_id": "1-1"}),
            *(
                whole | {key: value}
                for key, values in {
                    "bus_id": ("usb1", 5, "1-" + 40 * "1", "65536-1", "1-1\n"),
                    "vendor_id": ("zz", "", "23411", "2341\n", None),
                    "product_id": ("00 3", 43),
                    "description": (None, 5000 * "x", ["x"]),
                    "device_name": ("4", "/dev/bus/usb/001/\u0665\u0665\u0665", 5000 * "9"),
                    "speed": (12, 17 * "1"),
                    "device_class": ("none", "2"),
                    "interfaces": ("02/02/01", ["02/02"], ["02/02/01\n"], 7282 * ["02/02/01"]),
                    "state": ("asleep", None),
                    "holder": ({"address": 5}, {"encryption": "rot13"}, "192.0.2.7"),
                    "lease": ({"owner": "ci"}, lease | {"ttl": -1}, lease | {"ttl": "long"}),
                }.items()
                for value in values
            ),
            *(
                whole | more
                for when in (
                    "yesterday",
                    "2026-11-25T17:56:00.123",
                    "1969-12-31T23:59:59Z",
                    "0001-01-01T00:00:00+12:00",
                    "9999-12-31T23:59:59-12:00",
                )
                for more in ({"holder": {"since": when}}, {"lease": lease | {"until": when}})
            ),
        )
        for each in wrong:
            error = self.assertRaises(Unreachable, deviceIn, RASPI, each)
            self.assertIn("raspi (192.0.2.1): its answer is not understood", str(error))
        for data in (told(UNO), None, 5, "x"):
            self.assertRaises(Unreachable, foundIn, RASPI, data)
