"""
JSON over a plain connection.

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


class ObjectEnd:
    """
    Finds where a JSON object ends in bytes that come bit by bit, and looks at no byte
    twice.
    """

    _MARKS = re.compile(rb'[{}"]|\\.?', re.DOTALL)

    def __init__(self) -> None:
        self._seen = 0
        self._depth = 0
        self._inString = False

    def find(self, received: bytes) -> int | None:
        """
        Look on.

        @param received: all bytes since the object began: those of the last call and more.
        @return: how many of them the object has, or C{None} while it is not complete.
        """
        for mark in self._MARKS.finditer(received, self._seen):
            byte = mark.group()
            if byte == b"\\":
                break  # what it escapes is still to come
            self._seen = mark.end()
            if byte == b'"':
                self._inString = not self._inString
            elif self._inString or len(byte) > 1:
                continue
            elif byte == b"{":
                self._depth += 1
            elif self._depth > 1:
                self._depth -= 1
            elif self._depth == 1:
                return self._seen
        else:
            self._seen = len(received)
        return None


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
        self._end = ObjectEnd()
        self._requests: deque[bytes] = deque()
        self._answering = False  # an answer is under way
        self._atIt = False  # we are in _answerNext
        self._congested = False  # the client does not read what we write
        self._lastOne = False  # close when all that has arrived is answered
        self._closing = False  # our side is closed
        self._halfClosed = False  # the client's side is closed

    def callLater(self, period: float, func: Callable[[], None]) -> IDelayedCall:
        """What L{TimeoutMixin} uses."""
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
        super().dataReceived(data)
        if not (self.paused or self._closing):
            self._takeUnterminated()
        self._closeIfDone()

    def lineReceived(self, line: bytes) -> None:
        self._end = ObjectEnd()
        rest = self._takeObjects(line)
        if rest.strip():
            self._requests.append(rest)
        self._end = ObjectEnd()
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

    def _takeUnterminated(self) -> None:
        """
        Take the objects that are complete though no line feed has come.
        """
        rest = self._takeObjects(self.clearLineBuffer())
        if self._requests:
            self._answerNext()
        if len(rest) > self._longest and not self.paused:
            self.lineLengthExceeded(rest)
        if not self._closing:
            super().dataReceived(rest)  # back into the buffer; it holds no line feed

    def _takeObjects(self, received: bytes) -> bytes:
        """
        @return: what is left behind the last complete object.
        """
        while (end := self._end.find(received)) is not None:
            self._requests.append(received[:end])
            received = received[end:].lstrip()
            self._end = ObjectEnd()
        return received

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
            self.resetTimeout()
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
        if self._halfClosed:
            self.transport.loseConnection()
        else:
            self.transport.resumeProducing()  # to see the client close its side
            closeOurSide(self.transport)
