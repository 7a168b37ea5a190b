"""
Devices that cannot be had at present, and when it is worth to try again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgspec

from usbip_server.client.devices import RemoteDevice
from usbip_server.client.service.devices.attachments import Place
from usbip_server.client.service.devices.servers import ServerConnection
from usbip_server.model.device import Holder
from usbip_server.runtime.backoff import BackOff, Chance, Pauses

AT_ONCE = 1.0
"""Seconds after a try in vain, in which nothing that happens to a device makes for another: it
may be the try itself that it happens by."""


class Trouble:
    """
    A device that could not be had.

    @ivar text: why.
    @ivar until: when it is tried again, by the reactor's clock.
    @ivar soonest: not before that, whatever happens.
    """

    def __init__(self, pauses: Pauses) -> None:
        self.pauses = pauses
        self.text = ""
        self.until = self.soonest = 0.0


class Lost(msgspec.Struct, frozen=True, kw_only=True):
    """
    A device was lost, and its server may not have noticed.

    @ivar since: since when we have had it, as the server has it.
    @ivar at: when it was lost, by the reactor's clock.
    @ivar times: how often its server had been connected to then.
    """

    since: float
    at: float
    times: int


class RetrySchedule:
    """
    All of them.

    @ivar retry: how long it is waited.
    """

    def __init__(self, reactor: Any, chance: Chance = random.random) -> None:
        """
        @param reactor: provides C{IReactorTime}.
        """
        self.retry = BackOff(longest=30.0)
        self._reactor = reactor
        self._chance = chance
        self._troubles: dict[Place, Trouble] = {}
        self._lost: dict[Place, Lost] = {}

    def note(self, place: Place, text: str) -> bool:
        """
        A device cannot be had, for a while.

        @return: is that news?
        """
        trouble = self._troubles.setdefault(place, Trouble(Pauses(self.retry, self._chance)))
        now = self._reactor.seconds()
        trouble.until = now + trouble.pauses.next()
        trouble.soonest = now + AT_ONCE
        isNews = trouble.text != text
        trouble.text = text
        return isNews

    def isPausing(self, place: Place) -> bool:
        """Is it too soon to try again?"""
        trouble = self._troubles.get(place)
        return trouble is not None and self._reactor.seconds() < trouble.until

    def hurry(self, place: Place | None = None) -> None:
        """Something has happened to a device, or to our ports: it may be had now."""
        for known, trouble in self._troubles.items():
            if place in (None, known):
                trouble.until = min(trouble.until, trouble.soonest)

    def forget(self, place: Place) -> None:
        """It is another device by now, or we have it."""
        self._troubles.pop(place, None)
        self._lost.pop(place, None)

    def lost(self, place: Place, holder: Holder | None, link: ServerConnection | None) -> None:
        """
        A device was lost.

        @param holder: we, as its server had us.
        @param link: to its server.
        """
        if holder is not None and holder.since is not None and link is not None:
            now = self._reactor.seconds()
            self._lost[place] = Lost(since=holder.since, at=now, times=link.times)

    def isOurs(self, found: RemoteDevice, link: ServerConnection | None) -> bool:
        """
        Has a device the session that was lost? Its server is asked first what is true.

        @param link: to its server.
        """
        lost = self._lost.get((found.server.name, found.device.busId))
        holder = found.device.holder
        if lost is None or holder is None or link is None:
            return False
        isSame = holder.since == lost.since
        isFresh = link.isUp and link.times > lost.times
        return isSame and isFresh and self._reactor.seconds() - lost.at >= AT_ONCE

    def moments(self) -> Iterator[float]:
        """When something can be tried again."""
        yield from (trouble.until for trouble in self._troubles.values())
        yield from (lost.at + AT_ONCE for lost in self._lost.values())
