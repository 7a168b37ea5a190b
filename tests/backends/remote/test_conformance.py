"""
The gateway passes the conformance suite of backends, over real connections to a server.
"""

from __future__ import annotations

from tests.backends.remote.remotecase import RemoteCase, there
from tests.support.importclient import Door
from usbip_server.interfaces import IUsbBackend
from usbip_server.model.device import UsbDevice
from usbip_server.testing import ExportConformance, HangingDeviceConformance


class GatewayConformanceTests(RemoteCase, ExportConformance, HangingDeviceConformance):
    """
    Clients import through the gateway.
    """

    async def makeBackend(self) -> IUsbBackend:
        backend = await super().makeBackend()
        self.door = Door(backend)
        self.addCleanup(self.door.close)
        return backend

    async def importDevice(self, device: UsbDevice) -> None:
        await self.importFrom(self.door.port, device.busId)


class DirectImportConformanceTests(RemoteCase, ExportConformance):
    """
    Clients import from the server directly.
    """

    async def importDevice(self, device: UsbDevice) -> None:
        await self.importFrom(self.server.exportPort, there(device))
