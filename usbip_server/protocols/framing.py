"""
Where one JSON object ends and the next begins.
"""

from __future__ import annotations

import re


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
                one = received[begin : mark.end()]
                objects.append(one.lstrip() if begin else one)
                begin = mark.end()
        else:
            self._seen = len(received)
        rest = received[begin:].lstrip() if begin else received
        self._seen -= len(received) - len(rest)
        return objects, rest
