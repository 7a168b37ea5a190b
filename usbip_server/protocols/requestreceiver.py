"""
Finds the requests in what a connection receives. A request is one JSON object in one line or in
several, with or without a line feed behind it; white space before it is ignored.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.protocols.basic import LineReceiver

from usbip_server.protocols.framing import ObjectSplitter, someLines

READ_AHEAD = 2**16
"""Bytes that may arrive behind a complete request before it is taken from the buffer."""

CONTINUATION = 2.0
"""Seconds from a line feed within an object until the next line."""

NOT_AN_OBJECT = (
    "invalid request: it does not begin with a brace. A request is one JSON object, such as "
    '{"command":"list"}'
)
TRUNCATED = (
    'invalid request: it is truncated. A request is one JSON object, such as {"command":"list"}'
)


class RequestReceiver(LineReceiver):
    """
    Splits what is received into requests. While it is C{paused}, what comes is kept for later.

    @ivar requests: the requests that have arrived and are not answered yet.
    @ivar fault: why nothing behind them is looked at; empty if there is no reason.
    """

    delimiter = b"\n"
    transport: Any

    def __init__(self, longest: int, clock: IReactorTime) -> None:
        """
        @param longest: the length of a request, in bytes.
        """
        self.MAX_LENGTH = longest + READ_AHEAD
        self.requests: deque[bytes] = deque()
        self.fault = ""
        self._longest = longest
        self._clock = clock
        self._objects = ObjectSplitter()
        self._unsplit = b""  # has arrived while it was paused
        self._truncation: IDelayedCall | None = None

    @property
    def isDeaf(self) -> bool:
        """Is what comes dropped?"""
        raise NotImplementedError

    def answerRequests(self) -> None:
        """Answer C{requests}, as far as that is possible now, and then refuse C{fault}."""
        raise NotImplementedError

    @property
    def isTruncated(self) -> bool:
        """Whether an object is not complete."""
        return self._objects.isPending

    def receive(self, data: bytes) -> None:
        """Split what has arrived, and have the requests in it answered."""
        if self.requests or self.fault:
            self.answerRequests()
        if self._unsplit:
            data, self._unsplit = self._unsplit + data, b""
        self._splitLines(data)
        if not (data.endswith(b"\n") or self.paused or self.isDeaf):
            rest = self.clearLineBuffer()
            if rest:
                self._take(rest)
                self.answerRequests()
        if self.isDeaf:
            self._unsplit = b""
        elif len(self._unsplit) > self.MAX_LENGTH:
            self.transport.pauseProducing()

    def lineReceived(self, line: bytes) -> None:
        if (
            line.find(b"}") == len(line) - 1  # no object ends before the line does
            and line.rfind(b"{") == 0  # and none begins behind its beginning
            and not self._objects.isPending
        ):
            self.requests.append(line)
        elif line:
            self._take(line + b"\n")
            self._cancelTruncation()
            if self._objects.isPending and not self._objects.isBroken:
                self._awaitRest()

    def lineLengthExceeded(self, line: bytes) -> None:
        self.fault = self.fault or f"the request is longer than {self._longest} bytes"

    def next(self) -> bytes | None:
        """Take the first of C{requests}; C{None} if it is too long, which is a fault."""
        request = self.requests.popleft()
        if len(request) <= self._longest:
            return request
        self.requests.clear()
        self.lineLengthExceeded(request)
        return None

    def forget(self) -> None:
        """Drop everything that has arrived; nothing more is split."""
        self.paused = True
        self.requests.clear()
        self.clearLineBuffer()
        self._unsplit = b""
        self._cancelTruncation()

    def _splitLines(self, data: bytes) -> None:
        """Have C{LineReceiver} call C{lineReceived} for the lines, some at a time."""
        begin = 0
        while not (self.paused or self.isDeaf):
            lines = someLines(data, begin)
            begin += len(lines)
            if lines.isspace() and lines.endswith(b"\n"):
                lines = b"\n"
            super().dataReceived(lines)
            self.answerRequests()
            if begin == len(data):
                return
        self._unsplit = data[begin:]

    def _take(self, data: bytes) -> None:
        """Find the objects in bytes that may contain several, or a part of one."""
        self.requests += self._objects.feed(data)
        if self._objects.isBroken:
            self.fault = self.fault or NOT_AN_OBJECT
        elif self._objects.size > self._longest:
            self.lineLengthExceeded(data)

    def _awaitRest(self) -> None:
        self._truncation = self._clock.callLater(CONTINUATION, self._truncated)

    def _truncated(self) -> None:
        if self.paused:  # the rest may have arrived
            self._awaitRest()
            return
        self._truncation = None
        self.fault = self.fault or TRUNCATED
        self.answerRequests()

    def _cancelTruncation(self) -> None:
        if self._truncation is not None:
            self._truncation.cancel()
            self._truncation = None
