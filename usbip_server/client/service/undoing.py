"""
What servers have bound for programs that cannot have it after all: it is given back.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from usbip_server.client.core.devices import Found
from usbip_server.client.service.keeping import Keeping
from usbip_server.client.service.plugging import Plugging
from usbip_server.client.service.plugs import Place, Plugs, placeOf
from usbip_server.client.service.wanted import Wants


class Undoing:
    """
    Gives it back, whoever is gone meanwhile.
    """

    _log = Logger()

    def __init__(
        self,
        wants: Wants,
        plugs: Plugs,
        keeping: Keeping,
        plugging: Plugging,
        done: Callable[[], None],
    ) -> None:
        """
        @param done: called when one is given back.
        """
        self._wants = wants
        self._plugs = plugs
        self._keeping = keeping
        self._plugging = plugging
        self._done = done
        self._places: list[Place] = []

    def isAt(self, place: Place) -> bool:
        """Is a device just being given back?"""
        return place in self._places

    def begin(self, found: Found, owner: str | None) -> None:
        """
        Give back what may be bound for somebody, if nobody here has it for the same owner, wants
        it, or is about to.
        """
        place = placeOf(found)
        plug = self._plugs.at(place)
        want = self._wants.requested(found) if plug is None else plug.want
        isMeant = want is not None and want.owner == owner
        if owner is None and not isMeant:
            isWanted = any(each.isFor(found) for each in self._wants)
            isMeant = isWanted or self._keeping.isBusyAt(place)
        if isMeant or (place, owner) in self._keeping.claimed:
            return
        self._places.append(place)
        self._keeping.claimed.append((place, owner))
        work = Deferred.fromCoroutine(self._plugging.giveBack(found, owner))
        work.addErrback(lambda failure: self._log.failure("a bug in giving back", failure))
        work.addBoth(lambda _: self._over(place, owner))

    def _over(self, place: Place, owner: str | None) -> None:
        self._places.remove(place)
        self._keeping.claimed.remove((place, owner))
        self._keeping.look()
        self._done()
