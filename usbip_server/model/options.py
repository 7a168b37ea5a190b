"""
How much and how long: what the configuration's C{limits} and C{timeouts} say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]


class Limits(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={
        "requestBytes": "request_bytes",
        "watchBytes": "watch_bytes",
    },
):
    """
    How much one client may ask for.

    @ivar requestBytes: the longest request, in bytes.
    @ivar connections: how many connections there may be at a time.
    @ivar watchBytes: how much of what a watcher is told may wait for it to read, in bytes.
    @ivar history: how many events are remembered for those who come back.
    @ivar hooks: how many hooks run at a time.
    """

    requestBytes: Annotated[int, msgspec.Meta(ge=1024, le=16 * 1024 * 1024)] = 64 * 1024
    connections: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1024
    watchBytes: Annotated[int, msgspec.Meta(ge=1024, le=1024 * 1024 * 1024)] = 256 * 1024
    history: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = 10_000
    hooks: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 8


class Timeouts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    How long things may take, in seconds.

    @ivar request: until a whole request is there, from the connection or the last answer.
    @ivar answer: until the answer; old clients give up after two seconds.
    @ivar bind: until a bind or unbind is given up.
    @ivar heartbeat: between signs of life to those who wait or watch.
    @ivar stop: how long a daemon that is told to end waits for what is in progress.
    """

    request: Seconds = 30.0
    answer: Seconds = 1.8
    bind: Seconds = 30.0
    heartbeat: Seconds = 15.0
    stop: Seconds = 5.0


class InvalidOption(Exception):
    """
    An option in the configuration is wrong; not a L{ShareError}, as no client sees it.

    @ivar path: the keys that lead to it, C{("backend", "root")}.
    @ivar reason: what is wrong with it.
    """

    def __init__(self, path: Sequence[str | int], reason: str) -> None:
        super().__init__(path, reason)
        self.path = tuple(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.path))}: {self.reason}"


WORDS = {
    "object": "a mapping",
    "array": "a list",
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "nothing",
    "date": "a date",
    "datetime": "a date and time",
    "bytes": "binary data",
}
"""What msgspec calls by their names in JSON and Python, as people who write YAML call it."""


_NAMES = re.compile(rf"`((?:{'|'.join(WORDS)})(?: \| (?:{'|'.join(WORDS)}))*)`")


def invalid(error: msgspec.ValidationError) -> InvalidOption:
    """
    Take msgspec's C{reason - at `$.a.b[0]`} apart. This is for what stands in YAML.
    """
    reason, _, where = str(error).partition(" - at `$")
    steps = where.rstrip("`").replace("[", ".").replace("]", "").split(".")
    path: list[str | int] = [int(step) if step.isdigit() else step for step in steps if step]
    for told in ("Object contains unknown field `", "Object missing required field `"):
        if reason.startswith(told):
            path.append(reason.removeprefix(told).rstrip("`"))
            return InvalidOption(path, "unknown key" if "unknown" in told else "is missing")
    if reason.startswith("Expected `"):
        reason = _NAMES.sub(_worded, reason)
    return InvalidOption(path, reason[:1].lower() + reason[1:])


def _worded(names: re.Match[str]) -> str:
    return " or ".join(WORDS[name] for name in names[1].split(" | "))


T = TypeVar("T")


def convert(options: Mapping[str, Any], kind: type[T]) -> T:
    """
    Make a C{msgspec.Struct} of the options.

    @raise InvalidOption: one is unknown, of a wrong type, or out of its range.
    """
    try:
        return msgspec.convert(dict(options), kind)
    except msgspec.ValidationError as error:
        raise invalid(error) from None
