"""The splitter of JSON objects and lines."""

from __future__ import annotations

import json

from fuzz import commands
from fuzz.cutting import cut
from usbip_server.protocols.framing import ObjectEnds, someLines

SEEDS = tuple(bytes([3, 1, 9, 20]) + seed * 2 for seed in commands.SEEDS)

WORDS = (b"{", b"}", b'"', b"\\", b'\\"', b"\\\\", b"\n", b"{}{}", b'{"}":"{"}')


def check(data: bytes) -> None:
    """The objects are the same in any segmentation and the same that a JSON parser finds; no byte
    is lost."""
    pieces = cut(data)
    whole = b"".join(pieces)
    objects, rest = ObjectEnds().take(whole)
    found, left = inPieces(pieces)
    assert (found, left.lstrip()) == (objects, rest.lstrip())
    assert squeezed(b"".join(objects) + rest) == squeezed(whole)
    for one in objects:
        assert one.endswith(b"}")
        assert ObjectEnds().take(one) == ([one], b"")
    checkReading(whole, objects)
    checkLines(whole)


def inPieces(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    """The objects in segments, and the rest behind them."""
    ends = ObjectEnds()
    found: list[bytes] = []
    rest = b""
    for piece in pieces:
        objects, rest = ends.take(rest + piece)
        found += objects
    return found, rest


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
