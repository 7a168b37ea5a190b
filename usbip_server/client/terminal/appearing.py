"""
Waiting for a device that no server has yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, TimeoutError
from twisted.python.failure import Failure

from usbip_server.client.core.asking import Answer, Notice
from usbip_server.client.core.devices import Found, foundIn
from usbip_server.client.core.following import Following
from usbip_server.client.core.servers import Server
from usbip_server.client.terminal.picking import Meant
from usbip_server.errors import DeviceNotFound, ShareError, Unreachable


class Appearing:
    """
    All devices of all servers, until the one that is meant is among them.
    """

    def __init__(self, meant: Meant) -> None:
        self._meant = meant
        self._devices: dict[tuple[str, str], Found] = {}
        self._there: Deferred[Found] = Deferred()

    async def wait(
        self, reactor: Any, servers: Sequence[Server], seconds: float, patience: float
    ) -> Found:
        """
        Wait for it. Servers that do not answer are asked again now and then.

        @param seconds: how long a server may take to answer.
        @param patience: seconds that the device may take.
        @raise DeviceNotFound: it has not come.
        @raise usbip_server.client.core.choosing.SeveralFound: several have.
        """
        following = [
            Following(server, reactor, self._begun, self._told, self._lost, seconds=seconds)
            for server in servers
        ]
        self._there.addTimeout(patience, reactor)
        try:
            for each in following:
                each.start()
            return await self._there
        except TimeoutError:
            raise DeviceNotFound(
                f"no device matches {self._meant}, and none has come within {patience:.0f} s"
            ) from None
        finally:
            for each in following:
                each.stop()

    def _begun(self, server: Server, answer: Answer) -> None:
        if answer.data is None:
            return  # it goes on
        self._devices = {
            key: found for key, found in self._devices.items() if found.server != server
        }
        for found in foundIn(server, answer.data):
            self._devices[server.name, found.device.busId] = found
        self._look()

    def _told(self, server: Server, notice: Notice) -> None:
        try:
            [found] = foundIn(server, notice.get("data"))
        except Unreachable:
            return  # it is about no device, or about one that makes no sense
        if notice["event"] == "removed":
            self._devices.pop((server.name, found.device.busId), None)
        else:
            self._devices[server.name, found.device.busId] = found
        self._look()

    def _look(self) -> None:
        if self._there.called:
            return
        try:
            self._there.callback(self._meant.choose([*self._devices.values()]))
        except DeviceNotFound:
            return
        except ShareError:
            self._there.errback(Failure())

    def _lost(self, server: Server, error: Exception) -> None:
        # It is tried again; what is no trouble with the server is a bug.
        if not isinstance(error, ShareError) and not self._there.called:
            self._there.errback(Failure(error))
