"""
One inventory of the devices of all servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from twisted.logger import Logger

from usbip_server.backends.remote.config import BUSES, Host
from usbip_server.backends.remote.requests import RemoteRequests
from usbip_server.backends.remote.sessions import RemoteSessions
from usbip_server.backends.remote.watch import RemoteWatch
from usbip_server.model.device import DeviceState, Traffic, UsbDevice
from usbip_server.model.errors import NoServerConnected, OperationFailed
from usbip_server.model.inventory import Inventory
from usbip_server.runtime.backoff import Random

EMPTY = "it is a gateway that is connected to no server itself, or this one"


class RemoteServer:
    """
    One server: the bus ids of its devices here, its devices, and requests to it.
    """

    def __init__(self, host: Host, watch: RemoteWatch, requests: RemoteRequests) -> None:
        self.host = host
        self.watch = watch
        self.requests = requests

    def there(self, device: UsbDevice) -> UsbDevice | None:
        """A device with its bus id at this server; C{None}: it is another server's."""
        busId = self.host.busIdThere(device.busId)
        return None if busId is None else msgspec.structs.replace(device, busId=busId)


class RemoteReplica:
    """
    Replicates what the servers report, with the bus ids of the gateway.

    @ivar inventory: all devices.
    @ivar sessions: of the gateway's clients.
    @ivar stuck: operations that are still in progress after their deadline, by bus id: the device
        number, and what to show. Call L{update} after a change.
    """

    _log = Logger()

    def __init__(self, hosts: Sequence[Host], reactor: Any, chance: Random) -> None:
        """
        @param chance: see L{usbip_server.runtime.backoff.Backoff}.
        """
        self.inventory = Inventory()
        self.sessions = RemoteSessions()
        self.stuck: dict[str, tuple[int, str]] = {}
        self.servers = tuple(self._server(host, reactor, chance) for host in hosts)
        self._warned: set[str] = set()

    def at(self, device: UsbDevice) -> tuple[RemoteServer, UsbDevice]:
        """
        The server of a device, and the device as it is called there.

        @raise OperationFailed: it is gone.
        """
        for server in self.servers:
            there = server.there(device)
            if there is not None and self.inventory.same(device) is not None:
                return server, there
        raise OperationFailed(device, f"{device} is gone: it was unplugged")

    def require(self, device: UsbDevice) -> UsbDevice:
        """
        The present state of a device.

        @raise OperationFailed: it is gone.
        """
        self.at(device)
        return self.now(device)

    def now(self, device: UsbDevice) -> UsbDevice:
        """The present state of a device, or the last if it is gone."""
        return self.inventory.same(device) or device

    def traffic(self, device: UsbDevice) -> Traffic | None:
        """The traffic of a device's last session, as its server reports it."""
        for server in self.servers:
            there = server.there(device)
            known = None if there is None else server.watch.devices.get(there.busId)
            if known is not None and known.device.deviceNumber == device.deviceNumber:
                return known.traffic
        return None

    def update(self, busId: str) -> None:
        """Update a device after a change of C{sessions} or C{stuck}."""
        for server in self.servers:
            there = server.host.busIdThere(busId)
            if there is not None:
                self._show(server, there)

    def updateTrouble(self) -> None:
        """Set the trouble of the inventory: it has one if no server is connected."""
        if any(server.watch.trouble is None for server in self.servers):
            self.inventory.trouble = None
            return
        # A gateway without servers may be this one: its message is not repeated in the next one.
        texts = [
            f"{host.called(host.address)}: {EMPTY}" if watch.isEmptyGateway else str(watch.trouble)
            for host, watch in ((each.host.server, each.watch) for each in self.servers)
        ]
        self.inventory.trouble = NoServerConnected(f"no server is connected: {'; '.join(texts)}")

    def _server(self, host: Host, reactor: Any, chance: Random) -> RemoteServer:
        watch = RemoteWatch(
            host.server, reactor, lambda busId: self._changed(server, busId), chance
        )
        server = RemoteServer(host, watch, RemoteRequests(host.server, reactor, watch))
        return server

    def _changed(self, server: RemoteServer, busId: str | None) -> None:
        self.updateTrouble()
        if busId is not None:
            self._show(server, busId)
            return
        shown = (device.busId for device in self.inventory.snapshot.devices)
        before = {there for busId in shown if (there := server.host.busIdThere(busId)) is not None}
        self._show(server, *(before | server.watch.devices.keys()))

    def _show(self, server: RemoteServer, *busIds: str) -> None:
        """
        @param busIds: of the devices to show, as at the server.
        """
        devices: list[UsbDevice] = []
        among: set[str] = set()
        for there in busIds:
            busId = server.host.busIdHere(there)
            if busId is None:
                self._warnOfBus(server, there)
                continue
            known = server.watch.devices.get(there)
            isShown = known is not None and self.inventory.get(busId) is not None
            if self.sessions.isBeginning(busId) and isShown:
                continue
            among.add(busId)
            if known is not None:
                devices.append(self._shown(server.host.here(known.device, busId)))
        self.inventory.replace(devices, among)

    def _shown(self, device: UsbDevice) -> UsbDevice:
        number, trouble = self.stuck.get(device.busId, (None, None))
        if number == device.deviceNumber:
            return msgspec.structs.replace(
                device, state=DeviceState.ERROR, holder=None, trouble=trouble
            )
        return self.sessions.shown(device)

    def _warnOfBus(self, server: RemoteServer, there: str) -> None:
        name = server.host.server.name
        if name not in self._warned:
            self._warned.add(name)
            self._log.warn(
                "bus {bus} of {server} is left out: a gateway shows buses below {most} only. A "
                "gateway cannot be a server of another gateway",
                bus=there.partition("-")[0],
                server=name,
                most=BUSES,
            )
