"""
All servers that are watched.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from usbip_server.client.core.backoff import BackOff, Chance, Pauses
from usbip_server.client.core.devices import Found
from usbip_server.client.core.servers import Server
from usbip_server.client.service.link import Link
from usbip_server.inventory import Change
from usbip_server.operation import Event

SEARCH = 30.0
"""Seconds between two tries, in the end, of an address in a range that has never answered: there
may be nobody."""


class Links:
    """
    All of them, in their order.
    """

    def __init__(
        self,
        reactor: Any,
        changed: Callable[[Link, tuple[Change, ...]], None],
        turned: Callable[[Link, bool], None],
        chance: Chance = random.random,
    ) -> None:
        """
        Parameters as of L{Link}.
        """
        self._reactor = reactor
        self._changed = changed
        self._whenTurned = turned
        self._chance = chance
        self._links: dict[Server, Link] = {}
        self._settled = Event(reactor)

    def __iter__(self) -> Iterator[Link]:
        return iter(tuple(self._links.values()))

    def become(
        self,
        servers: Iterable[Server],
        backOff: BackOff,
        seconds: float,
        search: Callable[[Server], bool] = lambda server: False,
    ) -> None:
        """
        Watch these from now on, and no others. Connections stay as they are.

        @param backOff: when one that is gone is tried again.
        @param seconds: for one to answer.
        @param search: may it be that there never is such a server?
        """
        before, self._links = self._links, {}
        fresh = []
        for server in servers:
            link = before.pop(server, None)
            if link is None:
                link = Link(
                    server,
                    self._reactor,
                    Pauses(backOff, self._chance),
                    self._changed,
                    self._turned,
                )
                fresh.append(link)
            isSought = search(server) and not link.hasAnswered
            longest = max(SEARCH, backOff.longest) if isSought else backOff.longest
            link.following.pauses.become(msgspec.structs.replace(backOff, longest=longest))
            link.following.seconds = seconds
            self._links[server] = link
        self._backOff = backOff
        for link in before.values():
            link.following.stop()
        for link in fresh:
            link.following.start()
        self._settle()

    def stop(self) -> None:
        """Watch none any more."""
        for link in self._links.values():
            link.following.stop()

    def of(self, server: Server) -> Link | None:
        """That of a server."""
        return self._links.get(server)

    def at(self, host: str, service: str) -> Link | None:
        """That of the server that gives devices away there."""
        for link in self:
            if (link.server.host, str(link.server.exportPort)) == (host, service):
                return link
        return None

    def called(self, host: str) -> tuple[Server, ...]:
        """The servers that somebody means: by name, address or host."""
        servers = tuple(self._links)
        for names in (
            lambda server: server.name,
            lambda server: server.address,
            lambda server: server.host,
        ):
            meant = tuple(server for server in servers if names(server) == host)
            if meant:
                return meant
        return ()

    def found(self) -> tuple[Found, ...]:
        """
        The devices of all servers that are there.
        """
        return tuple(found for link in self for found in link.found())

    async def settled(self, seconds: float) -> None:
        """Wait until each is there, or was tried in vain."""
        await self._settled.within(seconds)

    def _turned(self, link: Link, isNews: bool) -> None:
        if link.isUp:
            link.following.pauses.become(self._backOff)
        self._settle()
        self._whenTurned(link, isNews)

    def _settle(self) -> None:
        if all(link.isSettled for link in self._links.values()):
            self._settled.happen()
