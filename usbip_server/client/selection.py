"""
Which device is meant, of all that all servers have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from usbip_server.client.devices import RemoteDevice
from usbip_server.model.device import isBusId
from usbip_server.model.errors import DeviceNotFound, ShareError
from usbip_server.model.selector import CRITERIA, describe, given, matching


class Selector(msgspec.Struct, frozen=True, kw_only=True):
    """
    What somebody asks for: criteria, all of which have to be met; or a word.

    @ivar word: a name, a bus id, C{vid:pid} or a glob of these, a serial number or a part of
        the description: the first of these that fits any device.
    @ivar first: of several take the first.
    """

    id: str | None = None
    bus: str | int | None = None
    serial: str | None = None
    desc: str | None = None
    word: str | None = None
    first: bool = False

    def __post_init__(self) -> None:
        if not given(self, (*CRITERIA, "word")):
            raise ValueError("say which device")

    def __str__(self) -> str:
        if self.word is not None:
            return repr(self.word)
        return describe(given(self))


class SeveralFound(ShareError):
    """
    More than one device is meant.

    @ivar found: those.
    """

    def __init__(self, wanted: Selector, found: Sequence[RemoteDevice]) -> None:
        super().__init__(f"{len(found)} devices match {wanted}")
        self.found = tuple(found)


def choose(wanted: Selector, found: Sequence[RemoteDevice]) -> RemoteDevice:
    """
    The one device that is meant.

    @raise DeviceNotFound: there is none.
    @raise SeveralFound: there are several, and C{first} is not said.
    """
    matches = among(wanted, found)
    if not matches:
        raise DeviceNotFound(f"no device matches {wanted}")
    if len(matches) > 1 and not wanted.first:
        raise SeveralFound(wanted, matches)
    return matches[0]


def among(wanted: Selector, found: Sequence[RemoteDevice]) -> tuple[RemoteDevice, ...]:
    """
    All devices that are meant.
    """
    if wanted.word is None:
        return _meeting(wanted, found)
    word = wanted.word
    named = tuple(each for each in found if each.device.name == word)
    ways = [Selector(id=word), Selector(serial=word), Selector(desc=word)]
    if isBusId(word):
        ways.insert(0, Selector(bus=word))
    return next(filter(None, (named, *(_meeting(way, found) for way in ways))), ())


def _meeting(wanted: Selector, found: Sequence[RemoteDevice]) -> tuple[RemoteDevice, ...]:
    """
    Those that meet the criteria, as if all were one server's.
    """
    meeting = [id(device) for device in matching(wanted, [each.device for each in found])]
    return tuple(each for each in found if id(each.device) in meeting)


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """
    What was typed.

    @ivar word: what L{Selector} calls a word.
    @ivar criteria: what has to be met besides.
    @ivar first: of several take the first.
    """

    word: Selector | None = None
    criteria: Selector | None = None
    first: bool = False

    def __str__(self) -> str:
        return ", ".join(str(part) for part in (self.word, self.criteria) if part is not None)

    @property
    def busId(self) -> str | None:
        """The bus id that was typed; C{None}: none was."""
        said = [each for part in (self.word, self.criteria) if part for each in _texts(part)]
        return next(filter(isBusId, said), None)

    def among(self, found: Sequence[RemoteDevice]) -> tuple[RemoteDevice, ...]:
        """All devices that are meant."""
        for part in (self.criteria, self.word):
            if part is not None:
                found = among(part, found)
        return tuple(found)

    def choose(self, found: Sequence[RemoteDevice]) -> RemoteDevice:
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


def meant(word: str | None, first: bool, **criteria: Any) -> Selection | None:
    """
    What was typed.

    @return: C{None}: nothing.
    @raise ValueError: it makes no sense.
    """
    said = {name: criteria[name] for name in CRITERIA if criteria.get(name) is not None}
    if word is None and not said:
        return None
    return Selection(
        word=None if word is None else Selector(word=word, first=first),
        criteria=Selector(**said, first=first) if said else None,
        first=first,
    )


def _texts(wanted: Selector) -> list[str]:
    return [each for each in (wanted.word, wanted.bus, wanted.id) if isinstance(each, str)]
