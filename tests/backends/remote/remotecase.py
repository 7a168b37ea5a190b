"""
A gateway to one server, both in this process, with real connections between them.
"""

from __future__ import annotations

import socket

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.support.fixtures import EVERYBODY
from tests.support.remoteserver import FarServer
from usbip_server.backends import softdevice
from usbip_server.backends.remote.backend import RemoteBackend
from usbip_server.backends.virtual import Options, VirtualBackend, VirtualDevice
from usbip_server.interfaces import IUsbBackend
from usbip_server.model.device import UsbDevice
from usbip_server.model.options import Timeouts
from usbip_server.server.config import Settings

if softdevice.installed:
    from usbip import protocol  # type: ignore[import-untyped]

DEVICES = (
    VirtualDevice(bus_id="1-1", kind="serial", product="Port", serial="P1"),
    VirtualDevice(bus_id="1-2.3", kind="disk", product="Disk", size=64),
)

SETTINGS = Settings(access=EVERYBODY, remember=False, timeouts=Timeouts(answer=0.05))
"""The server does not attach a replugged device again, and answers soon."""


class HesitantBackend(VirtualBackend):
    """
    Virtual devices that can hang.

    @ivar hanging: what binds wait for, by bus id.
    @ivar binds: the number of binds.
    """

    def __init__(self, devices: tuple[VirtualDevice, ...]) -> None:
        super().__init__(Options(devices=devices), reactor)
        self.hanging: dict[str, list[Deferred[None]]] = {}
        self.binds = 0

    async def bind(
        self, device: UsbDevice, deadline: float, allowMounted: bool = False
    ) -> UsbDevice:
        self.binds += 1
        if device.busId in self.hanging:
            waiting: Deferred[None] = Deferred()
            self.hanging[device.busId].append(waiting)
            await waiting
        return await super().bind(device, deadline, allowMounted)

    def isHanging(self, device: UsbDevice) -> bool:
        """Does a bind wait for a device of the gateway?"""
        return bool(self.hanging[there(device)])

    def revive(self, busId: str) -> None:
        """Let the device work again."""
        for waiting in self.hanging.pop(busId):
            waiting.callback(None)


class RemoteCase(TestCase):
    """
    Makes a gateway and its server.
    """

    backend: RemoteBackend
    far: HesitantBackend
    server: FarServer
    devices: tuple[VirtualDevice, ...] = DEVICES
    settings = SETTINGS

    if not softdevice.installed:
        skip = "the package usbip is not installed"

    async def makeBackend(self) -> IUsbBackend:
        """Make a gateway that is not started."""
        self.far = HesitantBackend(self.devices)
        self.server = FarServer(self.far, reactor, self.settings)
        self.addCleanup(self.server.stop)
        await self.server.start()
        self.backend = RemoteBackend(reactor, [self.server.host()])
        return self.backend

    async def unplug(self, device: UsbDevice) -> None:
        """Unplug a device of the gateway."""
        self.far.unplug(there(device))

    async def plug(self, device: UsbDevice) -> None:
        """Plug it in again."""
        self.far.plug(there(device))

    async def hang(self, device: UsbDevice) -> None:
        """Let binds of a device hang."""
        self.far.hanging[there(device)] = []

    async def revive(self, device: UsbDevice) -> None:
        """Let them end."""
        self.far.revive(there(device))

    async def importFrom(self, port: int, busId: str) -> None:
        """Import a device."""
        client = socket.socket()
        self.addCleanup(client.close)
        await deferToThread(client.connect, ("127.0.0.1", port))
        await deferToThread(protocol.client_import, client, busId.encode())


def there(device: UsbDevice) -> str:
    """The bus id of a device at its server."""
    bus, _, ports = device.busId.partition("-")
    return f"{int(bus) - 100}-{ports}"
