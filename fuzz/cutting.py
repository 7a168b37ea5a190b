"""
Bytes as they come in: in pieces.
"""

from __future__ import annotations

from collections.abc import Iterator


def cut(data: bytes) -> list[bytes]:
    """
    The first byte says how many pieces there are, that many bytes after it how long each is;
    the last one is the rest.
    """
    count = data[0] % 8 if data else 0
    lengths, rest = data[1 : 1 + count], data[1 + count :]
    return [piece for piece in _pieces(rest, lengths) if piece]


def _pieces(data: bytes, lengths: bytes) -> Iterator[bytes]:
    for length in lengths:
        yield data[:length]
        data = data[length:]
    yield data
