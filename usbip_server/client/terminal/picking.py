"""
Which device somebody means who has typed a word, criteria, or both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from usbip_server.client.core.choosing import Wanted, among, choose
from usbip_server.client.core.devices import Found
from usbip_server.device import isBusId
from usbip_server.matching import CRITERIA


class Meant(msgspec.Struct, frozen=True, kw_only=True):
    """
    What was typed.

    @ivar word: what L{Wanted} calls a word.
    @ivar criteria: what has to be met besides.
    @ivar first: of several take the first.
    """

    word: Wanted | None = None
    criteria: Wanted | None = None
    first: bool = False

    def __str__(self) -> str:
        return ", ".join(str(part) for part in (self.word, self.criteria) if part is not None)

    @property
    def busId(self) -> str | None:
        """The bus id that was typed; C{None}: none was."""
        said = [each for part in (self.word, self.criteria) if part for each in _texts(part)]
        return next(filter(isBusId, said), None)

    def among(self, found: Sequence[Found]) -> tuple[Found, ...]:
        """All devices that are meant."""
        for part in (self.criteria, self.word):
            if part is not None:
                found = among(part, found)
        return tuple(found)

    def choose(self, found: Sequence[Found]) -> Found:
        """
        The one device that is meant.

        @raise DeviceNotFound: there is none.
        @raise SeveralFound: there are several, and C{first} is not said.
        """
        if self.word is not None and self.criteria is not None:
            found = among(self.criteria, found)
        wanted = self.word or self.criteria
        assert wanted is not None, "nothing is meant"
        return choose(wanted, found)


def meant(word: str | None, first: bool, **criteria: Any) -> Meant | None:
    """
    What was typed.

    @return: C{None}: nothing.
    @raise ValueError: it makes no sense.
    """
    said = {name: criteria[name] for name in CRITERIA if criteria.get(name) is not None}
    if word is None and not said:
        return None
    return Meant(
        word=None if word is None else Wanted(word=word, first=first),
        criteria=Wanted(**said, first=first) if said else None,
        first=first,
    )


def _texts(wanted: Wanted) -> list[str]:
    return [each for each in (wanted.word, wanted.bus, wanted.id) if isinstance(each, str)]
