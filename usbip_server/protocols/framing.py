"""
Splits a stream of bytes into lines and JSON objects.
"""

from __future__ import annotations

import re

LINES_AT_ONCE = 4096
"""Bytes of lines to split at a time: C{LineReceiver} copies the rest for each line."""


def someLines(data: bytes, begin: int) -> bytes:
    """
    Return some complete lines, or one long line, or the beginning of one.

    @param begin: the offset in C{data}.
    """
    end = data.rfind(b"\n", begin, begin + LINES_AT_ONCE) + 1
    return data[begin : end or data.find(b"\n", begin + LINES_AT_ONCE) + 1 or len(data)]


class ObjectEnds:
    """
    Finds the ends of JSON objects in bytes that arrive in pieces. Examines each byte once.
    """

    _MARKS = re.compile(rb'[{}"]|\\.?', re.DOTALL)

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin anew with another object."""
        self._seen = 0
        self._depth = 0
        self._inString = False

    def take(self, received: bytes) -> tuple[list[bytes], bytes]:
        """
        Examine more bytes.

        @param received: the rest that the last call returned, and what has arrived since.
        @return: the complete objects, and the rest behind them.
        """
        objects = []
        begin = 0
        for mark in self._MARKS.finditer(received, self._seen):
            byte = mark.group()
            if byte == b'"':
                self._inString = not self._inString
            elif byte == b"\\":
                self._seen = mark.start()  # the escaped character has not arrived yet
                break
            elif self._inString or len(byte) > 1:
                continue
            elif byte == b"{":
                self._depth += 1
            elif self._depth > 1:
                self._depth -= 1
            elif self._depth == 1:
                self._depth = 0
                objects.append(received[begin : mark.end()].lstrip())
                begin = mark.end()
        else:
            self._seen = len(received)
        rest = received[begin:].lstrip() if begin else received
        self._seen -= len(received) - len(rest)
        return objects, rest
