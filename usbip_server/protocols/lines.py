"""
JSON over a plain connection.

A conversation::

    client: {"command":"list"}                                  one JSON object ...
    server: {"status":"success","data":[...]}\\n                ... answered by one line,
    server closes, once all requests that have arrived are answered,
    unless each of them said "keep_alive":true.

After C{{"command":"watch"}} the server goes on with a line for each event, and reads no more
requests; while a request waits for its turn it says where in the queue it is. Such lines
have an C{event} and no C{status}.

A request ends with a line feed, or as soon as the object is complete: the field's most
used client sends no line feed and does not close its side either.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol, IReactorTime
from twisted.protocols.basic import LineReceiver
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from zope.interface import implementer

from usbip_server.model.options import Limits, Timeouts
from usbip_server.model.policy import Principal
from usbip_server.net.caller import Caller
from usbip_server.net.halfclose import LINGER, closeOurSide
from usbip_server.net.liveness import LivenessProbe, watchOver
from usbip_server.protocols.framing import ObjectEnds, someLines
from usbip_server.protocols.interfaces import IResponder, Response, refusal
from usbip_server.protocols.watcher import Watcher
from usbip_server.runtime.eventlog import Subscription

READ_AT_ONCE = 2**16
"""Bytes that may come beyond a request that is complete, before it is taken out."""


@implementer(IHalfCloseableProtocol)
class CommandProtocol(LineReceiver, TimeoutMixin):
    """
    One connection. Requests are answered one after another, in their order.
    """

    delimiter = b"\n"
    transport: Any

    def __init__(
        self,
        answers: IResponder,
        principal: Principal,
        limits: Limits,
        timeouts: Timeouts,
        clock: IReactorTime,
    ) -> None:
        self.MAX_LENGTH = limits.requestBytes + READ_AT_ONCE
        self._longest = limits.requestBytes
        self._clock = clock
        self._answers = answers
        self._caller = Caller(principal, self._tell, lasts=True, hold=self._hold)
        self._limits = limits
        self._timeouts = timeouts
        self._watcher: Watcher | None = None
        self._stillThere = LivenessProbe(lambda: self._tell(answers.heartbeat()), clock)
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
        if self._watcher is not None:
            self._watcher.end()
        self._stillThere.end()
        self._caller.gone()

    def dataReceived(self, data: bytes) -> None:
        if self._closing or self._watcher is not None:
            return
        self._spoke = False
        data, self._unsplit = self._unsplit + data, b""
        self._splitLines(data)
        if self._watcher is not None:
            self._unsplit = b""
            return
        if len(self._unsplit) > self.MAX_LENGTH:
            self.transport.pauseProducing()
        if not (data.endswith(b"\n") or self.paused or self._closing):
            self._takeUnterminated()
        if self._spoke and not (self._lastOne or self.paused):
            self._giveTime()
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
        if self._answering:
            self._wait()
        elif self._watcher is not None:
            self._watcher.ask()

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
        if self._answering:
            self._wait()
        else:
            self._goOn()

    def close(self) -> None:
        """
        Close when what has arrived is answered: the daemon stops.
        """
        self._lastOne = True
        if self._watcher is not None and not self._closing:
            self._closeOurSide()
        self._closeIfDone()

    def _tell(self, line: bytes) -> None:
        if not self._closing:
            self.transport.write(line)

    def _hold(self) -> None:
        """Something lasts as long as the connection does: the client may take its time."""
        watchOver(self.transport, self._timeouts.heartbeat)
        self.setTimeout(None)
        if self._answering and not self._atIt:
            self._wait()

    def _wait(self) -> None:
        """
        An answer is under way: read no further, except to see the client go where that
        makes a difference.
        """
        self.setTimeout(None)
        super().pauseProducing()
        if self._caller.isHeld and not self._halfClosed:
            self.transport.resumeProducing()
        elif self._caller.isHeld:
            self._stillThere.ask()

    def _splitLines(self, data: bytes) -> None:
        """Have C{lineReceived} called with the lines."""
        begin = 0
        while not (self.paused or self._closing):
            lines = someLines(data, begin)
            begin += len(lines)
            if lines.isspace() and lines.endswith(b"\n"):
                lines = b"\n"
            super().dataReceived(lines)
            if begin == len(data):
                return
        self._unsplit = data[begin:]

    def _takeUnterminated(self) -> None:
        """Take the objects that are complete though no line feed has come."""
        objects, rest = self._ends.take(self.clearLineBuffer())
        self._requests += objects
        if self._requests:
            self._answerNext()
        if len(rest) > self._longest and not self.paused:
            self.lineLengthExceeded(rest)
        if not (self._closing or self._watcher):
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
            answer = self._answers.atOnce(request, self._caller)
            if answer is not None:
                self._answered(answer)
                continue
            self._answering = True
            coroutine = self._answers.to(request, self._caller)
            Deferred.fromCoroutine(coroutine).addCallback(self._answered)
        self._atIt = False
        if self._answering:
            self._wait()

    def _answered(self, answer: Response) -> None:
        self._answering = False
        self._stillThere.end()
        if self._closing:
            return
        self.transport.write(answer.encoded)
        self._lastOne = self._lastOne or not (answer.keepAlive or self._caller.isHeld)
        if answer.broken:
            self._closeOurSide()
        elif answer.stream is not None:
            self._watch(answer.stream)
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
        self._answerNext()
        if not (self._answering or self._congested or self._closing or self._watcher):
            self._giveTime()
            super().resumeProducing()

    def _giveTime(self) -> None:
        self.setTimeout(None if self._caller.isHeld else self._timeouts.request)

    def _watch(self, stream: Subscription[Any]) -> None:
        """
        From now on the client is told what happens, and not listened to any more.
        """
        self._requests.clear()
        self._unsplit = b""
        self.clearLineBuffer()
        self.paused = True  # what comes is not looked at ...
        self.setTimeout(None)
        self.transport.unregisterProducer()
        watchOver(self.transport, self._timeouts.heartbeat)
        self._watcher = Watcher(
            self.transport,
            self.transport.abortConnection,
            stream,
            lambda event, line: line,
            self._answers.heartbeat,
            self._caller.principal,
            self._limits.watchBytes,
        )
        self._watcher.begin(self._clock, self._timeouts.heartbeat)
        self.transport.resumeProducing()  # ... but read, to see the client go

    def _closeIfDone(self) -> None:
        busy = self._answering or self._congested or self._requests
        if self._lastOne and not (busy or self._closing or self._watcher):
            self._closeOurSide()

    def _refuse(self, message: str) -> None:
        self.transport.write(refusal(message).encoded)
        self._closeOurSide()

    def _closeOurSide(self) -> None:
        self._closing = True
        self._requests.clear()
        self.setTimeout(self._timeouts.request)  # until what is written has gone
        if self._watcher is None:
            self.transport.unregisterProducer()
        else:
            self._watcher.end()
        closeOurSide(self.transport, self._halfClosed)
