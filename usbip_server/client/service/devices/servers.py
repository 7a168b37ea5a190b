"""
A server, as long as it is watched: what it has, as it says itself, whenever that changes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
from twisted.logger import Logger
from twisted.python.failure import Failure

from usbip_server.client.devices import RemoteDevice, deviceIn, foundIn
from usbip_server.client.selection import Selector, choose
from usbip_server.client.servers import Server
from usbip_server.client.watch import Following
from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import DeviceNotFound, InvalidRequest, ShareError, Unreachable
from usbip_server.model.inventory import Change, Inventory
from usbip_server.model.replies import ReceivedNotice, ReceivedReply
from usbip_server.model.requests import DeviceRequest
from usbip_server.model.selector import given
from usbip_server.runtime.backoff import BackOff, Chance, Pauses
from usbip_server.runtime.latch import Latch


class ServerConnection:
    """
    One server.

    @ivar following: how it is followed.
    @ivar inventory: its devices; as they were, while it is not there.
    @ivar trouble: why it is not there; C{None}: it is.
    @ivar isSettled: is it there, or has it been tried in vain?
    @ivar hasAnswered: was it ever there?
    @ivar times: how often it was connected to.
    """

    _log = Logger()

    def __init__(
        self,
        server: Server,
        reactor: Any,
        pauses: Pauses,
        changed: Callable[[ServerConnection, tuple[Change, ...]], None],
        turned: Callable[[ServerConnection, bool], None],
    ) -> None:
        """
        @param reactor: provides C{IReactorTime} and what connections need.
        @param changed: called with what has happened to its devices.
        @param turned: called when it is there, and when it is not any more; and is that news?
        """
        self.server = server
        self.following = Following(server, reactor, self._begun, self._told, self._lost, pauses)
        self.inventory = Inventory()
        self.inventory.subscribe(lambda changes: changed(self, changes))
        self.trouble: str | None = "it has not answered yet"
        self.isSettled = False
        self.hasAnswered = False
        self.times = 0
        self._turned = turned
        self._isDoubted = False

    @property
    def isUp(self) -> bool:
        """Is it there?"""
        return self.trouble is None

    def found(self) -> tuple[RemoteDevice, ...]:
        """Its devices; none while it is not there."""
        if not self.isUp:
            return ()
        return tuple(
            RemoteDevice(server=self.server, device=device, raw={})
            for device in self.inventory.snapshot.devices
        )

    def doubt(self) -> None:
        """
        Something that came over it has ended: is it still there? Connect to it anew, and find
        out.
        """
        if self.isUp:
            self._isDoubted = True
            self.trouble = f"{self.server}: it is not known whether it is still there"
            self.following.renew()

    def _begun(self, server: Server, answer: ReceivedReply) -> None:
        goesOn = answer.data is None
        found = () if goesOn else foundIn(server, answer.data)
        self.trouble = None
        self.isSettled = self.hasAnswered = True
        self.times += 1
        if not goesOn:
            self.inventory.replace(self._known(each.device) for each in found)
        isNews = not self._isDoubted
        self._isDoubted = False
        if isNews:
            self._log.info("{server} is there", server=str(server))
        self._turned(self, isNews)

    def _told(self, server: Server, notice: ReceivedNotice) -> None:
        if notice.get("data") is None:
            return
        device = deviceIn(server, notice["data"])
        isGone = notice["event"] == "removed"
        self.inventory.replace(() if isGone else (self._known(device),), {device.busId})

    def _known(self, device: UsbDevice) -> UsbDevice:
        """
        A device, with the lease that is known already, if it is the same: two leases are never
        equal.
        """
        before = self.inventory.get(device.busId)
        if before is not None and before.lease is not None and device.lease is not None:
            pair = map(msgspec.structs.astuple, (before.lease, device.lease))
            if next(pair) == next(pair):
                return msgspec.structs.replace(device, lease=before.lease)
        return device

    def _lost(self, server: Server, error: Exception) -> None:
        if not isinstance(error, ShareError):
            self._log.failure("a bug in watching {server}", Failure(error), server=str(server))
        why = str(error)
        if why != self.trouble:
            self._log.warn("{server} is not there: {why}", server=str(server), why=why)
        isNews = self.isUp or self._isDoubted or not self.isSettled
        self._isDoubted = False
        self.trouble = why
        self.isSettled = True
        if isNews:
            self._turned(self, True)


SEARCH = 30.0
"""Seconds between two tries, in the end, of an address in a range that has never answered: there
may be nobody."""


class ServerPool:
    """
    All of them, in their order.
    """

    def __init__(
        self,
        reactor: Any,
        changed: Callable[[ServerConnection, tuple[Change, ...]], None],
        turned: Callable[[ServerConnection, bool], None],
        chance: Chance = random.random,
    ) -> None:
        """
        Parameters as of L{ServerConnection}.
        """
        self._reactor = reactor
        self._changed = changed
        self._whenTurned = turned
        self._chance = chance
        self._links: dict[Server, ServerConnection] = {}
        self._settled = Latch(reactor)

    def __iter__(self) -> Iterator[ServerConnection]:
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
                link = ServerConnection(
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

    def of(self, server: Server) -> ServerConnection | None:
        """That of a server."""
        return self._links.get(server)

    def at(self, host: str, service: str) -> ServerConnection | None:
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

    def found(self) -> tuple[RemoteDevice, ...]:
        """
        The devices of all servers that are there.
        """
        return tuple(found for link in self for found in link.found())

    async def settled(self, seconds: float) -> None:
        """Wait until each is there, or was tried in vain."""
        await self._settled.within(seconds)

    def _turned(self, link: ServerConnection, isNews: bool) -> None:
        if link.isUp:
            link.following.pauses.become(self._backOff)
        self._settle()
        self._whenTurned(link, isNews)

    def _settle(self) -> None:
        if all(link.isSettled for link in self._links.values()):
            self._settled.happen()


class Lookup:
    """
    Finds them.
    """

    def __init__(self, links: ServerPool) -> None:
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

    def there(self, host: str | None) -> tuple[RemoteDevice, ...]:
        """
        The devices of servers that are there.

        @raise InvalidRequest: there is no such server.
        @raise Unreachable: the one that is meant is not there.
        """
        links = self._meant(host)
        if host is not None and not any(link.isUp for link in links):
            raise Unreachable(links[0].trouble or str(links[0].server))
        return tuple(found for link in links for found in link.found())

    def chosen(
        self, command: DeviceRequest, host: str | None, among: tuple[RemoteDevice, ...]
    ) -> RemoteDevice:
        """
        The one device that is meant.

        @raise ShareError: there is none, or there are several.
        """
        try:
            return choose(Selector(**given(command), first=bool(command.first)), among)
        except DeviceNotFound as error:
            troubles = [str(link.trouble) for link in self._meant(host) if not link.isUp]
            if not troubles:
                raise
            away = "; ".join(troubles)
            raise DeviceNotFound(f"{error}, of those servers that answer: {away}") from None

    def _meant(self, host: str | None) -> list[ServerConnection]:
        servers = self.servers(host)
        return [link for link in self._links if servers is None or link.server in servers]
