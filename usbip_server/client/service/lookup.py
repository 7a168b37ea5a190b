"""
Which servers and which device a program means.
"""

from __future__ import annotations

from usbip_server.client.core.choosing import Wanted, choose
from usbip_server.client.core.devices import Found
from usbip_server.client.core.servers import Server
from usbip_server.client.service.link import Link
from usbip_server.client.service.links import Links
from usbip_server.commands import DeviceRequest
from usbip_server.errors import DeviceNotFound, InvalidRequest, Unreachable
from usbip_server.matching import given


class Lookup:
    """
    Finds them.
    """

    def __init__(self, links: Links) -> None:
        self._links = links

    def servers(self, host: str | None) -> tuple[Server, ...] | None:
        """
        Those that are meant; C{None}: all.

        @raise InvalidRequest: there is none.
        """
        if host is None:
            return None
        servers = self._links.called(host)
        if not servers:
            names = ", ".join(link.server.name for link in self._links) or "none"
            raise InvalidRequest(
                f"invalid request: `host`: {host!r} is no server of this service: it has {names}"
            )
        return servers

    def there(self, host: str | None) -> tuple[Found, ...]:
        """
        The devices of servers that are there.

        @raise InvalidRequest: there is no such server.
        @raise Unreachable: the one that is meant is not there.
        """
        links = self._meant(host)
        if host is not None and not any(link.isUp for link in links):
            raise Unreachable(links[0].trouble or str(links[0].server))
        return tuple(found for link in links for found in link.found())

    def chosen(self, command: DeviceRequest, host: str | None, among: tuple[Found, ...]) -> Found:
        """
        The one device that is meant.

        @raise ShareError: there is none, or there are several.
        """
        try:
            return choose(Wanted(**given(command), first=bool(command.first)), among)
        except DeviceNotFound as error:
            troubles = [str(link.trouble) for link in self._meant(host) if not link.isUp]
            if not troubles:
                raise
            away = "; ".join(troubles)
            raise DeviceNotFound(f"{error}, of those servers that answer: {away}") from None

    def _meant(self, host: str | None) -> list[Link]:
        servers = self.servers(host)
        return [link for link in self._links if servers is None or link.server in servers]
