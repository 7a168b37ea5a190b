"""
The devices as this machine's programs see them: what servers have, what is desired, and what is
attached here.
"""

from __future__ import annotations

import msgspec

from usbip_server.client.attach import Attached
from usbip_server.client.devices import RemoteDevice
from usbip_server.client.selection import Selector, choose
from usbip_server.client.servers import Server
from usbip_server.client.service.devices.attachments import Attachments, placeOf
from usbip_server.client.service.devices.desiredstate import DesiredAttachment, DesiredAttachments
from usbip_server.client.service.devices.servers import ServerConnection, ServerPool
from usbip_server.model.criteria import given
from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import DeviceNotFound, InvalidRequest, Unreachable
from usbip_server.model.requests import DeviceRequest


class DeviceView:
    """
    Looks up devices.

    @ivar servers: the actual state at the servers.
    @ivar attachments: the actual state on this machine.
    """

    def __init__(
        self, servers: ServerPool, desired: DesiredAttachments, attachments: Attachments
    ) -> None:
        self.servers = servers
        self.desired = desired
        self.attachments = attachments

    def serversAt(self, host: str | None) -> tuple[Server, ...] | None:
        """
        The servers that a request names; C{None}: all.

        @raise InvalidRequest: none of this name is configured.
        """
        servers = None if host is None else self.servers.called(host)
        if servers == ():
            names = ", ".join(each.server.name for each in self.servers) or "none"
            raise InvalidRequest(
                f"invalid request: `host`: {host!r} is no server of this service: it has {names}"
            )
        return servers

    def devices(self, host: str | None) -> tuple[RemoteDevice, ...]:
        """
        The devices of the servers that are connected.

        @raise InvalidRequest: no such server is configured.
        @raise Unreachable: the server that is named is not connected.
        """
        connections = self._connections(host)
        if host is not None and not any(each.isUp for each in connections):
            raise Unreachable(connections[0].trouble or str(connections[0].server))
        return tuple(found for each in connections for found in each.found())

    def select(
        self, request: DeviceRequest, host: str | None, among: tuple[RemoteDevice, ...]
    ) -> RemoteDevice:
        """
        The one device that a request selects.

        @raise ShareError: there is none, or there are several.
        """
        try:
            return choose(Selector(**given(request), first=bool(request.first)), among)
        except DeviceNotFound as error:
            troubles = [str(each.trouble) for each in self._connections(host) if not each.isUp]
            if not troubles:
                raise
            raise DeviceNotFound(
                f"{error} at the servers that are connected; not connected: {'; '.join(troubles)}"
            ) from None

    def detachable(self, host: str | None) -> tuple[RemoteDevice, ...]:
        """
        The devices that a request to detach can select: also those that are attached or requested
        while their server is not connected.

        @raise InvalidRequest: no such server is configured.
        """
        servers = self.serversAt(host)
        places = {placeOf(each): each for each in self.servers.found()}
        attached = (
            RemoteDevice(server=each.server, device=each.device, raw={})
            for each in self.attachments
        )
        for each in (*attached, *self.desired.remembered()):
            places.setdefault(placeOf(each), each)
        return tuple(e for e in places.values() if servers is None or e.server in servers)

    def now(self, found: RemoteDevice) -> RemoteDevice:
        """A device as its server describes it now, if it is the same one."""
        server = self.servers.of(found.server)
        device = None if server is None else server.inventory.same(found.device)
        return found if device is None else msgspec.structs.replace(found, device=device)

    def at(self, found: RemoteDevice) -> UsbDevice:
        """The device at a device's place now, or else the device itself."""
        server = self.servers.of(found.server)
        return (server and server.inventory.get(found.device.busId)) or found.device

    def nodes(self, found: RemoteDevice) -> tuple[str, ...]:
        """The nodes of a device on this machine."""
        attachment = self.attachments.at(placeOf(found))
        return () if attachment is None else attachment.nodes

    def desiredFor(self, found: RemoteDevice) -> DesiredAttachment | None:
        """Why a device is attached, or else the request for it."""
        attachment = self.attachments.at(placeOf(found))
        return self.desired.requested(found) if attachment is None else attachment.desired

    def origin(self, attached: Attached) -> ServerConnection | None:
        """The server that an attached device came from, by the record of its port."""
        record = attached.record
        return None if record is None else self.servers.exporting(record.host, record.service)

    def _connections(self, host: str | None) -> list[ServerConnection]:
        servers = self.serversAt(host)
        return [each for each in self.servers if servers is None or each.server in servers]
