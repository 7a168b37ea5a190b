"""
Where one JSON object ends and the next begins.
"""

from __future__ import annotations

import re

LINES_AT_ONCE = 4096
"""Bytes of lines to split at a time: for each line C{LineReceiver} copies what is left."""


def someLines(data: bytes, begin: int) -> bytes:
    """
    A few whole lines, or a long one, or the beginning of one.

    @param begin: where in C{data}.
    """
    end = data.rfind(b"\n", begin, begin + LINES_AT_ONCE) + 1
    return data[begin : end or data.find(b"\n", begin + LINES_AT_ONCE) + 1 or len(data)]


class ObjectEnds:
    """
    Finds where JSON objects end in bytes that come bit by bit, and looks at no byte twice.
    """

    _MARKS = re.compile(rb'[{}"]|\\.?', re.DOTALL)

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget what has come."""
        self._seen = 0
        self._depth = 0
        self._inString = False

    def take(self, received: bytes) -> tuple[list[bytes], bytes]:
        """
        Look on.

        @param received: what the last call left, and more behind it.
        @return: the objects that are complete, and what is left behind them.
        """
        objects = []
        begin = 0
        for mark in self._MARKS.finditer(received, self._seen):
            byte = mark.group()
            if byte == b'"':
                self._inString = not self._inString
            elif byte == b"\\":
                self._seen = mark.start()  # what it escapes is still to come
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
