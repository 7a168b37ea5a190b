"""The splitter of JSON objects and lines."""

from __future__ import annotations

import json

from fuzz import commands
from fuzz.cutting import cut
from usbip_server.protocols.framing import BYTE_ORDER_MARK, ObjectSplitter, someLines

SEEDS = tuple(bytes([3, 1, 9, 20]) + seed * 2 for seed in commands.SEEDS)

WORDS = (b"{", b"}", b'"', b"\\", b'\\"', b"\\\\", b"\n", b"{}{}", b'{"}":"{"}', BYTE_ORDER_MARK)


def check(data: bytes) -> None:
    """The objects are the same in any segmentation and the same that a JSON parser finds; no byte
    is lost before anything else than an object."""
    pieces = cut(data)
    whole = b"".join(pieces)
    splitter = ObjectSplitter()
    objects = splitter.feed(whole)
    inPieces, found = ObjectSplitter(), []
    for piece in pieces:
        found += inPieces.feed(piece)
    assert found == objects
    assert inPieces.isBroken == splitter.isBroken
    assert inPieces.size == splitter.size and inPieces.isPending == splitter.isPending
    plain = squeezed(whole.replace(BYTE_ORDER_MARK, b""))
    together = squeezed(b"".join(objects).replace(BYTE_ORDER_MARK, b""))
    assert plain.startswith(together)
    for one in objects:
        assert one.startswith(b"{") and one.endswith(b"}")
        assert ObjectSplitter().feed(one) == [one]
    checkReading(whole, objects)
    checkLines(whole)


def squeezed(data: bytes) -> bytes:
    """The bytes without white space."""
    return b"".join(data.split())


def checkReading(whole: bytes, objects: list[bytes]) -> None:
    """Assert that valid JSON objects at the beginning are found."""
    text = whole.decode("latin-1").lstrip(" \t\r\n")
    for found in objects:
        try:
            value, end = json.JSONDecoder(strict=False).raw_decode(text)
        except (ValueError, RecursionError):
            return
        if not isinstance(value, dict):
            return
        assert found.strip().decode("latin-1") == text[:end]
        text = text[end:].lstrip(" \t\r\n")


def checkLines(whole: bytes) -> None:
    """Assert that splitting into lines loses nothing and comes to an end."""
    begin = 0
    while begin < len(whole):
        lines = someLines(whole, begin)
        assert lines and whole.startswith(lines, begin)
        begin += len(lines)
        assert lines.endswith(b"\n") or begin == len(whole)
