"""
The virtual backend does what every backend has to do.
"""

from __future__ import annotations

import socket

from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.support.importclient import Door
from usbip_server.backends import softdevice
from usbip_server.backends.virtual import VirtualBackend, makeBackend
from usbip_server.interfaces import IUsbBackend
from usbip_server.model.device import UsbDevice
from usbip_server.testing import ExportConformance

if softdevice.installed:
    from usbip import protocol  # type: ignore[import-untyped]


class VirtualConformanceTests(ExportConformance, TestCase):
    """
    With real threads, and a client that imports over loopback.
    """

    backend: VirtualBackend
    door: Door

    if not softdevice.installed:
        skip = "the package usbip is not installed"

    async def makeBackend(self) -> IUsbBackend:
        devices = [
            {"bus_id": "1-1", "kind": "serial", "product": "Port", "serial": "P1"},
            {"bus_id": "1-2.3", "kind": "disk", "product": "Disk", "size": 64},
        ]
        self.backend = makeBackend({"devices": devices}, reactor)
        self.door = Door(self.backend)
        self.addCleanup(self.door.close)
        return self.backend

    async def importDevice(self, device: UsbDevice) -> None:
        client = socket.socket()
        self.addCleanup(client.close)
        await deferToThread(client.connect, ("127.0.0.1", self.door.port))
        await deferToThread(protocol.client_import, client, device.busId.encode())

    async def unplug(self, device: UsbDevice) -> None:
        self.backend.unplug(device.busId)

    async def plug(self, device: UsbDevice) -> None:
        self.backend.plug(device.busId)
