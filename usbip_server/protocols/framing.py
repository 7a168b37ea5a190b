"""
Splits a stream of bytes into JSON objects.
"""

from __future__ import annotations

import re

LINES_AT_ONCE = 4096
"""Bytes of lines to split at a time: C{LineReceiver} copies the rest for each line."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""UTF-8 of some programs begins with it (RFC 8259, 8.1)."""

_SPACE = re.compile(rb"[ \t\r\n]*")
_MARKS = re.compile(rb'[{}"]|\\.?', re.DOTALL)


def someLines(data: bytes, begin: int) -> bytes:
    """
    Return some complete lines, or one long line, or the beginning of one.

    @param begin: the offset in C{data}.
    """
    end = data.rfind(b"\n", begin, begin + LINES_AT_ONCE) + 1
    return data[begin : end or data.find(b"\n", begin + LINES_AT_ONCE) + 1 or len(data)]


class ObjectSplitter:
    """
    Finds the JSON objects in bytes that arrive in pieces. Examines each byte once, and copies it
    once.

    @ivar size: the bytes of the object that is not complete yet; 0 if there is none.
    @ivar isPending: whether what comes next does not begin an object: there is one that is not
        complete, or the beginning of a byte order mark, or anything else has come.
    @ivar isBroken: whether something other than an object has come. Nothing behind it is found.
    """

    __slots__ = (
        "_depth",
        "_isEscaped",
        "_isInString",
        "_mark",
        "_parts",
        "isBroken",
        "isPending",
        "size",
    )

    def __init__(self) -> None:
        self.size = 0
        self.isPending = False
        self.isBroken = False
        self._parts: list[bytes] = []
        self._depth = 0
        self._isInString = False
        self._isEscaped = False  # the next byte is
        self._mark = b""  # the beginning of a byte order mark

    def feed(self, data: bytes) -> list[bytes]:
        """
        Examine more bytes.

        @return: the objects that are complete now.
        """
        objects: list[bytes] = []
        begin = 0
        while begin < len(data) and not self.isBroken:
            if not self._depth:
                begin = self._beginning(data, begin)
                if self.isBroken or begin == len(data):
                    break
            end = self._end(data, begin)
            self._parts.append(data[begin:end])
            self.size += end - begin
            if not self._depth:
                objects.append(b"".join(self._parts))
                self._parts = []
                self.size = 0
            begin = end
        self.isPending = bool(self._depth or self._mark or self.isBroken)
        return objects

    def _beginning(self, data: bytes, begin: int) -> int:
        """The offset of the next object; the end if there is none."""
        while True:
            if not self._mark:
                begin = _SPACE.match(data, begin).end()  # type: ignore[union-attr]  # it matches
                if data[begin : begin + 1] != BYTE_ORDER_MARK[:1]:
                    self.isBroken = data[begin : begin + 1] not in (b"{", b"")
                    return begin
            end = begin + len(BYTE_ORDER_MARK) - len(self._mark)
            self._mark += data[begin:end]
            if self._mark != BYTE_ORDER_MARK:
                self.isBroken = not BYTE_ORDER_MARK.startswith(self._mark)
                return len(data)
            self._mark, begin = b"", end

    def _end(self, data: bytes, begin: int) -> int:
        """The offset behind the object that begins or goes on here; the end if that comes later."""
        if self._isEscaped:
            self._isEscaped = False
            begin += 1
        for mark in _MARKS.finditer(data, begin):
            byte = mark.group()
            if byte == b'"':
                self._isInString = not self._isInString
            elif byte == b"\\":
                self._isEscaped = True  # the escaped character has not arrived yet
            elif self._isInString or len(byte) > 1:
                continue
            elif byte == b"{":
                self._depth += 1
            else:
                self._depth -= 1
                if not self._depth:
                    return mark.end()
        return len(data)
