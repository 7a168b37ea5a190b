"""
The backend fulfils the contract of backends, and reports a broken file.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from jsonfile_backend.backend import makeBackend
from usbip_server.interfaces import IUsbBackend
from usbip_server.model.device import UsbDevice
from usbip_server.model.options import InvalidOption
from usbip_server.testing import NoExportConformance


class JsonFileTests(NoExportConformance, TestCase):
    """
    Most tests are inherited. The methods without C{test} change the devices for them.
    """

    def setUp(self) -> None:
        self.file = Path(self.mktemp())
        self.numbers = itertools.count(2)
        self.entries: dict[str, dict[str, Any]] = {}
        for busId in ("1-1", "1-2.4"):
            self.put(busId)

    def put(self, busId: str) -> None:
        """Plug a device in."""
        self.entries[busId] = {
            "bus_id": busId,
            "device_number": next(self.numbers),
            "vendor_id": "2341",
            "product_id": "0043",
            "description": "Arduino SA Uno R3",
        }
        self.write()

    def write(self) -> None:
        """Write the file."""
        self.file.write_text(json.dumps([*self.entries.values()]))

    async def makeBackend(self) -> IUsbBackend:
        return makeBackend({"file": str(self.file), "interval": 0.05}, reactor)

    async def importDevice(self, device: UsbDevice) -> None:
        self.entries[device.busId]["holder"] = "192.0.2.7"
        self.write()

    async def unplug(self, device: UsbDevice) -> None:
        del self.entries[device.busId]
        self.write()

    async def plug(self, device: UsbDevice) -> None:
        self.put(device.busId)

    async def untilTrouble(self, backend: IUsbBackend, reason: str) -> None:
        """Wait until the backend reports a reason why there are no devices."""
        await self.until(lambda: reason in str(backend.inventory.trouble))

    async def test_holder(self) -> None:
        """The holder in the file is shown."""
        backend, device = await self.started()
        await self.importDevice(await backend.bind(device, 1))
        await self.until(lambda: backend.inventory.get("1-1").holder is not None)

    async def test_brokenFile(self) -> None:
        """While the file is broken there are no devices, and the reason is reported."""
        backend, _ = await self.started()
        nowhere = self.file.read_text().replace("1-2.4", "usb1")
        for text, reason in (
            ("[{]", "malformed"),
            ('[{"bus_id": "1-1"}]', "device_number"),
            (nowhere, "'usb1' is not a bus id"),
        ):
            self.file.write_text(text)
            await self.untilTrouble(backend, reason)
            self.assertEqual(backend.inventory.snapshot.devices, ())
        self.write()
        await self.untilTrouble(backend, "None")
        self.assertEqual(len(backend.inventory.snapshot.devices), 2)

    def test_options(self) -> None:
        """Wrong options are refused, with the path of the option."""
        error = self.assertRaises(InvalidOption, makeBackend, {}, reactor)
        self.assertEqual(error.path, ("file",))
        self.assertRaises(InvalidOption, makeBackend, {"file": "f", "interval": 0}, reactor)
