"""
The servers: one watch connection to each, and an inventory of its devices that the events of the
server keep up to date.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from twisted.logger import Logger
from twisted.python.failure import Failure

from usbip_server.client.devicereader import DeviceReader
from usbip_server.client.devices import RemoteDevice
from usbip_server.client.servers import Server
from usbip_server.client.service.config import LiveSettings
from usbip_server.client.watch import ServerWatch
from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import ShareError
from usbip_server.model.inventory import Change, Inventory
from usbip_server.model.replies import ReceivedNotice, ReceivedReply
from usbip_server.runtime.backoff import Backoff, Random
from usbip_server.runtime.latch import Latch

SEARCH_SECONDS = 30.0
"""The longest pause between attempts to reach an address of a range that has never answered."""


class ServerConnection:
    """
    The watch connection to one server.

    @ivar watch: reconnects, and resumes after the last event.
    @ivar inventory: the server's devices; while it is not connected, as they were.
    @ivar trouble: why it is not connected; C{None}: it is.
    @ivar isTried: was it connected to, or tried in vain?
    @ivar connects: how often it was connected to.
    """

    _log = Logger()

    def __init__(
        self,
        server: Server,
        reactor: Any,
        pauses: Backoff,
        changed: Callable[[ServerConnection, tuple[Change, ...]], None],
        turned: Callable[[ServerConnection, bool], None],
    ) -> None:
        """
        @param reactor: provides C{IReactorTime} and what connections need.
        @param changed: called with the changes of the server's devices.
        @param turned: called after each connect, disconnect and first failure; the second argument
            is false if it only confirms what was known before a L{verify}.
        """
        self.server = server
        self.watch = ServerWatch(server, reactor, self, pauses)
        self._reader = DeviceReader(server)
        self.inventory = Inventory()
        self.inventory.subscribe(lambda changes: changed(self, changes))
        self.trouble: str | None = "it has not answered yet"
        self.isTried = False
        self.connects = 0
        self._turned = turned
        self._isVerifying = False

    @property
    def isUp(self) -> bool:
        """Is it connected?"""
        return self.trouble is None

    def found(self) -> tuple[RemoteDevice, ...]:
        """Its devices; none while it is not connected."""
        devices = self.inventory.snapshot.devices if self.isUp else ()
        return tuple(RemoteDevice(server=self.server, device=each, raw={}) for each in devices)

    def verify(self) -> None:
        """
        Reconnect at once: the session of a device has ended, so the network may be down, and this
        connection dead without notice.
        """
        if self.isUp:
            self._isVerifying = True
            self.trouble = f"{self.server}: reconnecting, as the session of a device has ended"
            self.watch.renew()

    def watchBegun(self, server: Server, reply: ReceivedReply) -> None:
        devices = None if reply.data is None else self._reader.snapshot(reply.data)
        self.trouble = None
        self.isTried = True
        self.connects += 1
        if devices is not None:
            self.inventory.replace(self._known(each.device) for each in devices)
        isNews, self._isVerifying = not self._isVerifying, False
        if isNews:
            self._log.info("{server} connected", server=str(server))
        self._turned(self, isNews)

    def watchEvent(self, server: Server, notice: ReceivedNotice) -> None:
        known = {device.busId for device in self.inventory.snapshot.devices}
        event = self._reader.event(notice, known)
        if event is not None:
            devices = () if event.found is None else (self._known(event.found.device),)
            self.inventory.replace(devices, {event.busId})

    def _known(self, device: UsbDevice) -> UsbDevice:
        """
        The device with the known L{Lease} object if its values are the same: objects of two leases
        are never equal, and an unchanged lease is no change of the device.
        """
        before = self.inventory.get(device.busId)
        if before is not None and before.lease is not None and device.lease is not None:
            old, new = map(msgspec.structs.astuple, (before.lease, device.lease))
            if old == new:
                return msgspec.structs.replace(device, lease=before.lease)
        return device

    def watchLost(self, server: Server, error: Exception) -> None:
        if not isinstance(error, ShareError):
            self._log.failure("bug while watching {server}", Failure(error), server=str(server))
        reason = str(error)
        if reason != self.trouble:
            self._log.warn("{server} not connected: {reason}", server=str(server), reason=reason)
        isNews = self.isUp or self._isVerifying or not self.isTried
        self._isVerifying = False
        self.trouble = reason
        self.isTried = True
        if isNews:
            self._turned(self, True)


class ServerPool:
    """
    The connections to all configured servers, in the order of the configuration.
    """

    def __init__(
        self,
        reactor: Any,
        settings: LiveSettings,
        changed: Callable[[ServerConnection, tuple[Change, ...]], None],
        turned: Callable[[ServerConnection, bool], None],
        chance: Random = random.random,
    ) -> None:
        """
        Parameters as of L{ServerConnection}.
        """
        self._reactor = reactor
        self._settings = settings
        self._changed = changed
        self._whenTurned = turned
        self._chance = chance
        self._connections: dict[Server, ServerConnection] = {}
        self._tried = Latch(reactor)

    def __iter__(self) -> Iterator[ServerConnection]:
        return iter(tuple(self._connections.values()))

    def update(self) -> None:
        """Connect to the configured servers, and disconnect from others."""
        before, self._connections = self._connections, {}
        added = []
        for server in self._settings.allServers:
            connection = before.pop(server, None)
            if connection is None:
                pauses = Backoff(self._settings.config.reconnect, self._chance)
                connection = ServerConnection(
                    server, self._reactor, pauses, self._changed, self._turned
                )
                added.append(connection)
            connection.watch.seconds = self._settings.config.timeouts.server
            self._setPauses(connection)
            self._connections[server] = connection
        for connection in before.values():
            connection.watch.stop()
        for connection in added:
            connection.watch.start()
        self._noteTried()

    def stop(self) -> None:
        """Disconnect from all."""
        for connection in self:
            connection.watch.stop()

    def of(self, server: Server) -> ServerConnection | None:
        """The connection to a server."""
        return self._connections.get(server)

    def exporting(self, host: str, service: str) -> ServerConnection | None:
        """The connection to the server with this export port."""
        for each in self:
            if (each.server.host, str(each.server.exportPort)) == (host, service):
                return each
        return None

    def called(self, host: str) -> tuple[Server, ...]:
        """The servers with this name, or else this address, or else this host."""
        for attribute in ("name", "address", "host"):
            servers = tuple(each for each in self._connections if getattr(each, attribute) == host)
            if servers:
                return servers
        return ()

    def found(self) -> tuple[RemoteDevice, ...]:
        """The devices of all servers that are connected."""
        return tuple(found for connection in self for found in connection.found())

    async def tried(self, seconds: float) -> None:
        """Wait until each server was connected to, or tried in vain."""
        await self._tried.within(seconds)

    def _setPauses(self, connection: ServerConnection) -> None:
        backOff = self._settings.config.reconnect
        isInRange = self._settings.servers.rangeOf(connection.server) is not None
        if isInRange and not connection.connects:
            longest = max(SEARCH_SECONDS, backOff.longest)
            backOff = msgspec.structs.replace(backOff, longest=longest)
        connection.watch.pauses.update(backOff)

    def _turned(self, connection: ServerConnection, isNews: bool) -> None:
        self._setPauses(connection)
        self._noteTried()
        self._whenTurned(connection, isNews)

    def _noteTried(self) -> None:
        if all(connection.isTried for connection in self):
            self._tried.fire()
