"""
A backend of virtual devices, and clients that import them.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from usbip_server.backends import softdevice
from usbip_server.backends.virtual import makeBackend
from usbip_server.model.device import DeviceState, Holder, UsbDevice
from usbip_server.model.inventory import Change

if softdevice.installed:
    from usbip.classes.host.cdc_acm import CDCDriver  # type: ignore[import-untyped]
    from usbip.host import Connection, Handle  # type: ignore[import-untyped]

DEVICES = [
    {"bus_id": "1-1", "kind": "serial", "product": "Port", "serial": "P1"},
    {"bus_id": "1-2.3", "kind": "disk", "size": 2048, "vendor_id": "ABCD"},
]
PORT, DISK = "1-1", "1-2.3"

SECONDS = 60.0
"""For what is waited for."""

HOLDER = Holder(address="192.0.2.9", since=5.0)


def handle(client: socket.socket) -> Any:
    """The client's end of a session, as the package's drivers require it."""
    return Handle(Connection(client), None)


OUT, IN = 0, 1
"""C{USBIP_DIR_OUT} and C{USBIP_DIR_IN}."""


def submit(
    number: int, direction: int, data: bytes = b"", length: int = 64, endpoint: int = 1
) -> bytes:
    """C{USBIP_CMD_SUBMIT}, by default to the first endpoint."""
    length = len(data) or length
    return struct.pack(">6Ii12x8x", 1, number, 0, direction, endpoint, 0, length) + data


class ExportCase(TestCase):
    """
    A backend with bound devices.
    """

    timeout = 300

    if not softdevice.installed:
        skip = "the package usbip is not installed"

    async def setUp(self) -> None:  # type: ignore[override]
        self.backend = makeBackend({"devices": DEVICES}, reactor)
        await self.backend.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.backend.stop()))
        for device in self.backend.inventory.snapshot.devices:
            await self.backend.bind(device, 5)

    def device(self, busId: str = PORT) -> UsbDevice:
        """The present state of a device."""
        device = self.backend.inventory.get(busId)
        assert device is not None
        return device

    def connection(self) -> tuple[socket.socket, socket.socket]:
        """A connection: the caller's end, which does not block, and the client's, which does."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.settimeout(SECONDS)
            self.addCleanup(end.close)
        ours.setblocking(False)
        return ours, theirs

    async def export(
        self, busId: str = PORT, seconds: float = SECONDS
    ) -> tuple[socket.socket, socket.socket]:
        """Export a device; return both ends of the connection."""
        ours, theirs = self.connection()
        exported = await self.backend.export(self.device(busId), ours, HOLDER, seconds)
        self.assertEqual(exported, self.device(busId))
        self.assertEqual((exported.state, exported.holder), (DeviceState.IN_USE, HOLDER))
        return ours, theirs

    async def until(self, state: DeviceState, busId: str = PORT) -> None:
        """Wait until a device is in a state."""
        if self.device(busId).state is state:
            return
        done: Deferred[None] = Deferred()

        def look(changes: tuple[Change, ...]) -> None:
            if self.device(busId).state is state and not done.called:
                done.callback(None)

        self.backend.inventory.subscribe(look)
        await done
        self.backend.inventory.unsubscribe(look)

    async def echoes(self, client: socket.socket) -> None:
        """The serial port of a client echoes."""
        driver = CDCDriver(handle(client))
        for text in (b"hello", bytes(range(60))):
            await deferToThread(driver.write, text)
            self.assertEqual(await deferToThread(driver.read), text)
