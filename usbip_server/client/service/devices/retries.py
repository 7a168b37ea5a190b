"""
When to try again a device that could not be attached, and which sessions at a server are dead ones
of this machine.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgspec

from usbip_server.client.devices import RemoteDevice
from usbip_server.client.service.config import LiveSettings
from usbip_server.client.service.devices.attachments import Place, placeOf
from usbip_server.client.service.devices.servers import ServerConnection
from usbip_server.model.device import Holder
from usbip_server.runtime.backoff import Backoff, Random

SOONEST = 1.0
"""Seconds after a failed attempt in which no change of the device causes another attempt: the
change may be an effect of the attempt itself."""


class _Failure:
    """
    A device that could not be attached.

    @ivar reason: why.
    @ivar until: when to try again, in seconds of the reactor's clock.
    @ivar soonest: not before that, in the same seconds, whatever changes.
    """

    def __init__(self, pauses: Backoff) -> None:
        self.pauses = pauses
        self.reason = ""
        self.until = self.soonest = 0.0


class _LostSession(msgspec.Struct, frozen=True, kw_only=True):
    """
    A session that ended on this machine, and perhaps not at the server.

    @ivar since: when it began, as the server reported it.
    @ivar lostAt: when it ended, in seconds of the reactor's clock.
    @ivar connects: how often the server had been connected to by then.
    """

    since: float
    lostAt: float
    connects: int


class RetrySchedule:
    """
    Exponential backoff for each device that could not be attached.
    """

    def __init__(
        self, reactor: Any, settings: LiveSettings, chance: Random = random.random
    ) -> None:
        """
        @param reactor: provides C{IReactorTime}.
        """
        self._reactor = reactor
        self._settings = settings
        self._chance = chance
        self._failures: dict[Place, _Failure] = {}
        self._lost: dict[Place, _LostSession] = {}

    def failed(self, place: Place, reason: str) -> bool:
        """
        Schedule the next attempt for a device.

        @return: does the reason differ from that of the last attempt?
        """
        failure = self._failures.get(place)
        if failure is None:
            failure = _Failure(Backoff(self._settings.config.retry, self._chance))
            self._failures[place] = failure
        now = self._reactor.seconds()
        failure.until = now + failure.pauses.next()
        failure.soonest = now + SOONEST
        isNew = failure.reason != reason
        failure.reason = reason
        return isNew

    def isPausing(self, place: Place) -> bool:
        """Is it too early for the next attempt?"""
        failure = self._failures.get(place)
        return failure is not None and self._reactor.seconds() < failure.until

    def hasten(self, place: Place | None = None) -> None:
        """Shorten the pause of a device that has changed, or of all devices if a port is free."""
        for known, failure in self._failures.items():
            if place in (None, known):
                failure.until = min(failure.until, failure.soonest)

    def forget(self, place: Place) -> None:
        """Discard what is known of a device that was replugged, or has worked."""
        self._failures.pop(place, None)
        self._lost.pop(place, None)

    def lost(self, place: Place, holder: Holder | None, server: ServerConnection | None) -> None:
        """
        Remember a session that has ended on this machine.

        @param holder: this machine, as the server reported it.
        """
        if holder is not None and holder.since is not None and server is not None:
            now = self._reactor.seconds()
            self._lost[place] = _LostSession(
                since=holder.since, lostAt=now, connects=server.connects
            )

    def isDeadSession(self, found: RemoteDevice, server: ServerConnection | None) -> bool:
        """
        Is the session that the server shows the one that has ended on this machine? That is known
        only after the server was connected to again.
        """
        lost = self._lost.get(placeOf(found))
        holder = found.device.holder
        if lost is None or holder is None or server is None:
            return False
        isFresh = server.isUp and server.connects > lost.connects
        isSettled = self._reactor.seconds() - lost.lostAt >= SOONEST
        return holder.since == lost.since and isFresh and isSettled

    def times(self) -> Iterator[float]:
        """When devices can be tried again, in seconds of the reactor's clock."""
        yield from (failure.until for failure in self._failures.values())
        yield from (lost.lostAt + SOONEST for lost in self._lost.values())
