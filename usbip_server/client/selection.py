"""
Which device a user means, among the devices of all servers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from usbip_server.client.devices import RemoteDevice
from usbip_server.model.criteria import CRITERIA, describe, given
from usbip_server.model.device import isBusId
from usbip_server.model.errors import ClientError, DeviceNotFound
from usbip_server.model.selector import Selector as Compiled


class Selector(msgspec.Struct, frozen=True, kw_only=True):
    """
    Criteria, a word, or both. A device has to match all that is given.

    @ivar word: a name, a bus id, C{vid:pid} or a glob of these, a serial number, a part of
        the description or the path of a port: the first of these that matches any device.
    @ivar first: of several devices take the first.
    """

    id: str | None = None
    bus: str | int | None = None
    serial: str | None = None
    desc: str | None = None
    path: str | None = None
    word: str | None = None
    first: bool = False

    def __post_init__(self) -> None:
        if not given(self, (*CRITERIA, "word")):
            raise ValueError("say which device")
        Compiled(self, isStrict=True)  # raises ValueError if a criterion is malformed

    def __str__(self) -> str:
        word = [] if self.word is None else [repr(self.word)]
        criteria = given(self)
        return ", ".join([*word, describe(criteria)] if criteria else word)

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The criteria of requests that a server can be sent, one for each meaning of the word."""
        criteria = given(self)
        if self.word is None:
            return [criteria]
        ways = ["bus"] if isBusId(self.word) else ["id", "serial", "desc"]
        return [{**criteria, way: self.word} for way in ways if way not in criteria]

    @property
    def busId(self) -> str | None:
        """The bus id in it; C{None} if there is none."""
        values = map(str, (self.word, self.bus, self.id))
        return next(filter(isBusId, values), None)


class SeveralFound(ClientError):
    """
    More than one device matches.

    @ivar found: those.
    """

    def __init__(self, selector: Selector, found: Sequence[RemoteDevice]) -> None:
        super().__init__(f"{len(found)} devices match {selector}")
        self.found = tuple(found)


def selectorOf(word: str | None, first: bool, **criteria: Any) -> Selector | None:
    """
    The selector that a command line gives.

    @return: C{None}: there is neither a word nor a criterion.
    @raise ValueError: one of them is empty or too long.
    """
    values = {name: criteria[name] for name in CRITERIA if criteria.get(name) is not None}
    if word is None and not values:
        return None
    return Selector(word=word, first=first, **values)


def choose(selector: Selector, found: Sequence[RemoteDevice]) -> RemoteDevice:
    """
    The one device that matches.

    @raise DeviceNotFound: none does.
    @raise SeveralFound: several do, and C{first} is not set.
    """
    matches = among(selector, found)
    if not matches:
        raise DeviceNotFound(f"no device matches {selector}")
    if len(matches) > 1 and not selector.first:
        raise SeveralFound(selector, matches)
    return matches[0]


def among(selector: Selector, found: Sequence[RemoteDevice]) -> tuple[RemoteDevice, ...]:
    """
    All devices that match.
    """
    if given(selector):
        found = _matching(selector, found)
    word = selector.word
    if word is None:
        return tuple(found)
    named = tuple(each for each in found if each.device.name == word)
    return next(filter(None, (named, *(_matching(way, found) for way in _waysOf(word)))), ())


def _waysOf(word: str) -> Iterator[Selector]:
    """The criteria that a word can be."""
    for key in (*(("bus",) if isBusId(word) else ()), "id", "serial", "desc", "path"):
        with contextlib.suppress(ValueError):  # it has another form
            yield msgspec.convert({key: word}, Selector)


def _matching(selector: Selector, found: Sequence[RemoteDevice]) -> tuple[RemoteDevice, ...]:
    """
    The devices that match the criteria, as if one server had them all.
    """
    devices = [id(device) for device in Compiled(selector).among([each.device for each in found])]
    return tuple(each for each in found if id(each.device) in devices)
