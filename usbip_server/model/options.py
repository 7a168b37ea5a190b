"""
How much and how long: what the configuration's C{limits} and C{timeouts} say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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


def nearest(word: str, known: Iterable[str]) -> str:
    """
    The end of a message about an unknown word: C{". Did you mean 'token'?"} with the most similar
    of the known words, or an empty string if none is similar.
    """
    import difflib

    found = difflib.get_close_matches(word, [*known], 1)
    return f". Did you mean {found[0]!r}?" if found else ""


def invalid(error: msgspec.ValidationError, kind: Any = None) -> InvalidOption:
    """
    Make an L{InvalidOption} of msgspec's C{reason - at `$.a.b[0]`}, in the terms of YAML.

    @param kind: the type that was expected, for suggestions.
    """
    reason, _, where = str(error).partition(" - at `$")
    steps = where.rstrip("`").replace("[", ".").replace("]", "").split(".")
    path: list[str | int] = [int(step) if step.isdigit() else step for step in steps if step]
    for told in ("Object contains unknown field `", "Object missing required field `"):
        if reason.startswith(told):
            key = reason.removeprefix(told).rstrip("`")
            if "missing" in told:
                return InvalidOption([*path, key], "is missing")
            return InvalidOption([*path, key], "unknown key" + nearest(key, _keysAt(kind, path)))
    if reason.startswith("Expected `"):
        reason = _NAMES.sub(_worded, reason)
    return InvalidOption(path, reason[:1].lower() + reason[1:])


def _keysAt(kind: Any, path: Sequence[str | int]) -> list[str]:
    """
    The keys that a mapping can have.

    @param kind: the type of the whole.
    @param path: the keys and indices that lead to the mapping.
    """
    from msgspec import inspect

    types = [*_alternatives(inspect.type_info(kind))]
    for step in path:
        below: list[inspect.Type] = []
        for each in types:
            if isinstance(each, inspect.StructType):
                below += [field.type for field in each.fields if field.encode_name == step]
            elif isinstance(each, inspect.DictType):
                below.append(each.value_type)
            elif isinstance(each, inspect.CollectionType):
                below.append(each.item_type)
        types = [part for each in below for part in _alternatives(each)]
    structs = [each for each in types if isinstance(each, inspect.StructType)]
    return [field.encode_name for each in structs for field in each.fields]


def _alternatives(kind: Any) -> Iterator[Any]:
    """The types in a union, or the type itself."""
    from msgspec import inspect

    yield from kind.types if isinstance(kind, inspect.UnionType) else (kind,)


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
        raise invalid(error, kind) from None
