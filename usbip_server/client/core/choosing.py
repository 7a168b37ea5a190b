"""
Which device is meant, of all that all servers have.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from usbip_server.client.core.devices import Found
from usbip_server.device import isBusId
from usbip_server.errors import DeviceNotFound, ShareError
from usbip_server.matching import CRITERIA, describe, given, matching


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
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

    def __init__(self, wanted: Wanted, found: Sequence[Found]) -> None:
        super().__init__(f"{len(found)} devices match {wanted}")
        self.found = tuple(found)


def choose(wanted: Wanted, found: Sequence[Found]) -> Found:
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


def among(wanted: Wanted, found: Sequence[Found]) -> tuple[Found, ...]:
    """
    All devices that are meant.
    """
    if wanted.word is None:
        return _meeting(wanted, found)
    word = wanted.word
    named = tuple(each for each in found if each.device.name == word)
    ways = [Wanted(id=word), Wanted(serial=word), Wanted(desc=word)]
    if isBusId(word):
        ways.insert(0, Wanted(bus=word))
    return next(filter(None, (named, *(_meeting(way, found) for way in ways))), ())


def _meeting(wanted: Wanted, found: Sequence[Found]) -> tuple[Found, ...]:
    """
    Those that meet the criteria, as if all were one server's.
    """
    meeting = [id(device) for device in matching(wanted, [each.device for each in found])]
    return tuple(each for each in found if id(each.device) in meeting)
