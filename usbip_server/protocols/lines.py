"""
JSON over a plain connection.

A conversation::

    client: {"command":"list"}                                  one JSON object ...
    server: {"status":"success","data":[...]}\\n                ... answered by one line,
    server closes, once all requests that have arrived are answered,
    unless each of them said "keep_alive":true.

A request ends with a line feed, or as soon as the object is complete: the field's most
used client sends no line feed and does not close its side either.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol, IReactorTime
from twisted.protocols.basic import LineReceiver
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from zope.interface import implementer

from usbip_server.answers import Answer, Answers, refusal
from usbip_server.limits import Limits, Timeouts
from usbip_server.policy import Principal
from usbip_server.protocols.halfclose import LINGER, closeOurSide

READ_AT_ONCE = 2**16
"""Bytes that may come beyond a request that is complete, before it is taken out."""

LINES_AT_ONCE = 4096
"""Bytes of lines to split at a time: for each line C{LineReceiver} copies what is left."""


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


@implementer(IHalfCloseableProtocol)
class JsonLines(LineReceiver, TimeoutMixin):
    """
    One connection. Requests are answered one after another, in their order.
    """

    delimiter = b"\n"
    transport: Any

    def __init__(
        self,
        answers: Answers,
        principal: Principal,
        limits: Limits,
        timeouts: Timeouts,
        clock: IReactorTime,
    ) -> None:
        self.MAX_LENGTH = limits.requestBytes + READ_AT_ONCE
        self._longest = limits.requestBytes
        self._clock = clock
        self._answers = answers
        self._principal = principal
        self._timeouts = timeouts
        self._ends = ObjectEnds()
        self._requests: deque[bytes] = deque()
        self._unsplit = b""  # has come, and waits for an answer that is under way
        self._answering = False  # an answer is under way
        self._spoke = False  # answers were given while data was received
        self._atIt = False  # we are in _answerNext
        self._congested = False  # the client does not read what we write
        self._lastOne = False  # close when all that has arrived is answered
        self._closing = False  # our side is closed
        self._halfClosed = False  # the client's side is closed

    def callLater(self, period: float, func: Callable[[], None]) -> IDelayedCall:
        """What C{TimeoutMixin} uses."""
        return self._clock.callLater(period, func)

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, True)
        self.setTimeout(self._timeouts.request)

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._closing = True
        self.setTimeout(None)

    def dataReceived(self, data: bytes) -> None:
        if self._closing:
            return
        self._spoke = False
        data, self._unsplit = self._unsplit + data, b""
        self._splitLines(data)
        if not (data.endswith(b"\n") or self.paused or self._closing):
            self._takeUnterminated()
        if self._spoke and not (self._lastOne or self.paused):
            self.resetTimeout()
        self._closeIfDone()

    def lineReceived(self, line: bytes) -> None:
        if line.find(b"}") == len(line) - 1:  # no object ends before the line does
            if line:
                self._requests.append(line)
        else:
            self._ends.restart()
            objects, rest = self._ends.take(line)
            self._requests += objects
            if rest.strip():
                self._requests.append(rest)
        self._ends.restart()
        if self._requests:
            self._answerNext()

    def lineLengthExceeded(self, line: bytes) -> None:
        self._refuse(f"the request is longer than {self._longest} bytes")

    def timeoutConnection(self) -> None:
        if self._closing or self._congested:
            self.transport.abortConnection()
        else:
            self._refuse(
                f"no complete request within {self._timeouts.request:g} s: "
                "a request is one JSON object and a line feed"
            )

    def readConnectionLost(self) -> None:
        """The client has said all it wants to say; it may well wait for the answer."""
        self._halfClosed = True
        if self._closing:
            self.transport.loseConnection()
            return
        self._lastOne = True
        self.dataReceived(b"\n")  # that ends a request too

    def writeConnectionLost(self) -> None:
        """All we had to say is with the kernel: now the client has its turn to close."""
        self.setTimeout(LINGER)

    def pauseProducing(self) -> None:
        """The client does not read: answer nothing more until it does."""
        self._congested = True
        self.setTimeout(self._timeouts.request)
        super().pauseProducing()

    def resumeProducing(self) -> None:
        """The client reads again."""
        self._congested = False
        self._goOn()

    def close(self) -> None:
        """
        Close when what has arrived is answered: the daemon stops.
        """
        self._lastOne = True
        self._closeIfDone()

    def _splitLines(self, data: bytes) -> None:
        """
        Have C{lineReceived} called with the lines, a few whole ones at a time or a long one.
        """
        begin = 0
        while not (self.paused or self._closing):
            end = data.rfind(b"\n", begin, begin + LINES_AT_ONCE) + 1
            end = end or data.find(b"\n", begin + LINES_AT_ONCE) + 1 or len(data)
            lines = data[begin:end]
            if lines.isspace() and lines.endswith(b"\n"):
                lines = b"\n"
            super().dataReceived(lines)
            begin = end
            if begin == len(data):
                return
        self._unsplit = data[begin:]

    def _takeUnterminated(self) -> None:
        """
        Take the objects that are complete though no line feed has come.
        """
        objects, rest = self._ends.take(self.clearLineBuffer())
        self._requests += objects
        if self._requests:
            self._answerNext()
        if len(rest) > self._longest and not self.paused:
            self.lineLengthExceeded(rest)
        if not self._closing:
            super().dataReceived(rest)  # back into the buffer; it holds no line feed

    def _answerNext(self) -> None:
        """
        Answer what has come, as far as that needs no waiting.
        """
        self._atIt = True
        while self._requests and not (self._answering or self._congested or self._closing):
            request = self._requests.popleft()
            if len(request) > self._longest:
                self.lineLengthExceeded(request)
                break
            answer = self._answers.atOnce(request, self._principal)
            if answer is not None:
                self._answered(answer)
                continue
            self._answering = True
            coroutine = self._answers.to(request, self._principal)
            Deferred.fromCoroutine(coroutine).addCallback(self._answered)
        self._atIt = False
        if self._answering:
            self.setTimeout(None)
            super().pauseProducing()

    def _answered(self, answer: Answer) -> None:
        self._answering = False
        if self._closing:
            return
        self.transport.write(answer.encoded)
        self._lastOne = self._lastOne or not answer.keepAlive
        if answer.broken:
            self._closeOurSide()
        elif self._atIt:
            self._spoke = True
        else:
            self._goOn()

    def _goOn(self) -> None:
        """
        Answer more, if nothing is in the way.
        """
        if self._answering or self._congested or self._closing:
            return
        self.setTimeout(self._timeouts.request)
        self._answerNext()
        if not (self._answering or self._congested):
            super().resumeProducing()

    def _closeIfDone(self) -> None:
        busy = self._answering or self._congested or self._requests
        if self._lastOne and not busy and not self._closing:
            self._closeOurSide()

    def _refuse(self, message: str) -> None:
        self.transport.write(refusal(message).encoded)
        self._closeOurSide()

    def _closeOurSide(self) -> None:
        self._closing = True
        self._requests.clear()
        self.setTimeout(self._timeouts.request)  # until what is written has gone
        self.transport.unregisterProducer()
        closeOurSide(self.transport, self._halfClosed)
