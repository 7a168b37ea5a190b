"""Splits an input into segments."""

from __future__ import annotations

from collections.abc import Iterator


def cut(data: bytes) -> list[bytes]:
    """Split an input: the first byte is the number of segments besides the last one, and the bytes
    after it are their lengths. The rest is the last segment."""
    count = data[0] % 8 if data else 0
    lengths, rest = data[1 : 1 + count], data[1 + count :]
    return [piece for piece in _pieces(rest, lengths) if piece]


def _pieces(data: bytes, lengths: bytes) -> Iterator[bytes]:
    for length in lengths:
        yield data[:length]
        data = data[length:]
    yield data
