"""
Options in configuration files: conversion to C{msgspec} structures with errors that name the key,
and the blocks C{limits} and C{timeouts}.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, TypeVar

import msgspec

T = TypeVar("T")

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]


class InvalidOption(Exception):
    """
    A value in a configuration file is wrong. Not a L{ShareError}, as it is never sent to a client.

    @ivar path: the path of keys to the value, C{("backend", "root")}.
    @ivar reason: what is wrong with the value.
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
"""The names of types in messages of msgspec, and how they are called for a user of YAML."""

_NAMES = re.compile(rf"`((?:{'|'.join(WORDS)})(?: \| (?:{'|'.join(WORDS)}))*)`")


LONGEST_WORD = 100
"""Characters of a word that are compared with known words."""


def nearest(word: str, known: Iterable[str]) -> str:
    """
    The end of a message about an unknown word: C{". Did you mean 'token'?"} with the most similar
    of the known words, or an empty string if none is similar.
    """
    import difflib

    spelled = {each.lower(): each for each in known}
    found = difflib.get_close_matches(word[:LONGEST_WORD].lower(), spelled, 1)
    return f". Did you mean {spelled[found[0]]!r}?" if found else ""


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
            return InvalidOption(
                [*path, key], "unknown key" + nearest(key, keysAt(kind, tuple(path)))
            )
    if reason.startswith("Expected `"):
        reason = _NAMES.sub(_worded, reason)
    return InvalidOption(path, reason[:1].lower() + reason[1:])


@lru_cache(maxsize=256)
def keysAt(kind: Any, path: tuple[str | int, ...]) -> list[str]:
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


def convert(options: Mapping[str, Any], kind: type[T]) -> T:
    """
    Convert options to a C{msgspec.Struct}.

    @raise InvalidOption: a key is unknown or missing, or a value has a wrong type or is out of
        range.
    """
    try:
        return msgspec.convert(dict(options), kind)
    except msgspec.ValidationError as error:
        raise invalid(error, kind) from None


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
    The C{limits} block.

    @ivar requestBytes: the length of a request, in bytes.
    @ivar connections: the number of simultaneous connections.
    @ivar watchBytes: the bytes that may wait to be sent to a watcher.
    @ivar history: the number of events that are stored for watchers that reconnect.
    @ivar hooks: the number of hooks that run at the same time.
    """

    requestBytes: Annotated[int, msgspec.Meta(ge=1024, le=16 * 1024 * 1024)] = 64 * 1024
    connections: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1024
    watchBytes: Annotated[int, msgspec.Meta(ge=1024, le=1024 * 1024 * 1024)] = 256 * 1024
    history: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = 10_000
    hooks: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 8


class Timeouts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    The C{timeouts} block, in seconds.

    @ivar request: until a request is complete, from the begin of the connection or the last reply.
    @ivar answer: until the reply: old clients wait two seconds.
    @ivar bind: until a bind or unbind has failed.
    @ivar heartbeat: between heartbeats to clients that wait or watch.
    @ivar stop: the time that the daemon waits for operations in progress when it stops.
    """

    request: Seconds = 30.0
    answer: Seconds = 1.8
    bind: Seconds = 30.0
    heartbeat: Seconds = 15.0
    stop: Seconds = 5.0
