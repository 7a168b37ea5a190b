"""
A server, as long as it is watched: what it has, as it says itself, whenever that changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from twisted.logger import Logger
from twisted.python.failure import Failure

from usbip_server.client.core.answers import Answer, Notice
from usbip_server.client.core.backoff import Pauses
from usbip_server.client.core.devices import Found, deviceIn, foundIn
from usbip_server.client.core.following import Following
from usbip_server.client.core.servers import Server
from usbip_server.device import UsbDevice
from usbip_server.errors import ShareError
from usbip_server.inventory import Change, Inventory


class Link:
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
        changed: Callable[[Link, tuple[Change, ...]], None],
        turned: Callable[[Link, bool], None],
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

    def found(self) -> tuple[Found, ...]:
        """Its devices; none while it is not there."""
        if not self.isUp:
            return ()
        return tuple(
            Found(server=self.server, device=device, raw={})
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

    def _begun(self, server: Server, answer: Answer) -> None:
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

    def _told(self, server: Server, notice: Notice) -> None:
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
