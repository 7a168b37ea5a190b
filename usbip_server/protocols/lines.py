"""
JSON over a plain connection: one request a line, one reply a line.

A conversation::

    client -> server   {"command":"list"}\\n
    client <- server   {"status":"success","data":[...]}\\n
    client <- server   (closes its side once everything that has arrived is answered)

With C{keep_alive}, and several requests at once::

    client -> server   {"command":"find","id":"1-1","keep_alive":true}\\n
    client -> server   {"command":"attach","id":"1-1","keep_alive":true}\\n
    client <- server   {"status":"success","data":{...}}\\n
    client <- server   {"status":"success","data":{...}}\\n

While an attach with C{wait} is in the queue::

    client <- server   {"event":"queued","place":2,...}\\n
    client <- server   {"event":"heartbeat",...}\\n
    client <- server   {"status":"success","data":{...}}\\n

A watch, after which no more requests are read::

    client -> server   {"command":"watch"}\\n
    client <- server   {"status":"success","seq":41,"data":[...]}\\n
    client <- server   {"event":"bound","seq":42,...}\\n
    client <- server   {"event":"heartbeat","seq":42,...}\\n

A request ends as soon as its JSON object is complete: the most used client sends no line feed, and
does not close its side either. Anything else than an object is refused, and so is an invalid or
forbidden request; nothing behind it is looked at.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IReactorTime,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from zope.interface import implementer

from usbip_server.model.policy import Principal
from usbip_server.net.caller import Caller, principalAt
from usbip_server.net.halfclose import LINGER, closeOurSide
from usbip_server.net.liveness import LivenessProbe, watchOver
from usbip_server.net.turns import Account, Turns
from usbip_server.protocols.interfaces import IResponder, RequestSettings, Response, refusal
from usbip_server.protocols.requestreceiver import TRUNCATED, RequestReceiver
from usbip_server.protocols.watcher import EventFormat, Watcher
from usbip_server.runtime.eventlog import Subscription


class Phase(enum.Enum):
    """
    How far the connection has come. It only goes forward.
    """

    OPEN = 1
    """More requests may come."""

    DRAINING = 2
    """No more requests are read; our side closes when those that have arrived are answered."""

    CLOSING = 3
    """Our side is closed, or about to close once what was written is sent."""


class Activity(enum.Enum):
    """
    What the protocol is doing::

        READING -> ANSWERING -> READING              replied at once
        READING -> ANSWERING -> WAITING -> READING   replied later
        READING -> QUEUED -> READING                 other clients are served first
        READING or WAITING -> WATCHING               until the connection ends
    """

    READING = 1
    """Waiting for the next request."""

    ANSWERING = 2
    """The responder has been called and has not returned."""

    WAITING = 3
    """The reply comes later; no request is read until then."""

    QUEUED = 4
    """There are more requests than this turn of the reactor has time for."""

    WATCHING = 5
    """Events are sent; what comes is ignored."""


# CPython 3.11 takes 50 ns to get a member as an attribute of its class, and a request needs ten.
OPEN, DRAINING, CLOSING = Phase
READING, ANSWERING, WAITING, QUEUED, WATCHING = Activity


@implementer(IHalfCloseableProtocol)
class CommandProtocol(RequestReceiver, TimeoutMixin):
    """
    One connection. Requests are answered one after the other, in their order.
    """

    factory: CommandFactory
    _account: Account

    def __init__(
        self,
        factory: CommandFactory,
        principal: Principal,
        whenAllowed: Callable[[], None] = lambda: None,
    ) -> None:
        """
        @param principal: the client.
        @param whenAllowed: called when a request was not refused, and the connection goes on.
        """
        super().__init__(factory.settings.limits.requestBytes, factory.clock)
        self.factory = factory
        self._responder = factory.responder
        self._whenAllowed = whenAllowed
        self._caller = Caller(principal, self._tell, lasts=True, hold=self._hold)
        self._liveness = LivenessProbe(self._probe, factory.clock)
        self._watcher: Watcher | None = None
        self._replies = 0  # sent so far
        self._phase = OPEN
        self._activity = READING
        self._isCongested = False  # the client does not read what was sent
        self._isHalfClosed = False  # the client has closed its side

    def callLater(self, period: float, func: Callable[[], None]) -> IDelayedCall:
        """The clock of C{TimeoutMixin}."""
        return self.factory.clock.callLater(period, func)

    def connectionMade(self) -> None:
        self._account = self.factory.turns.join(self._caller.peer)
        self.transport.registerProducer(self, True)
        self.setTimeout(self.factory.settings.timeouts.request)

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._phase = CLOSING
        self.factory.turns.leave(self._caller.peer)
        self.setTimeout(None)
        self.forget()
        if self._watcher is not None:
            self._watcher.end()
        self._liveness.stop()
        self._caller.gone()

    def dataReceived(self, data: bytes) -> None:
        if self.isDeaf:
            return
        before = self._replies
        self._account.begin()
        self.receive(data)
        self._account.end()
        if self._replies != before and self._phase is OPEN and not self.paused:
            self._restartTimeout()
        self._closeIfDone()

    def timeoutConnection(self) -> None:
        if self._isClosing or self._isCongested:
            self.transport.abortConnection()
        else:
            self._refuse(
                f"no complete request within {self.factory.settings.timeouts.request:g} s: "
                'a request is one JSON object, such as {"command":"list"}'
            )

    def readConnectionLost(self) -> None:
        """The client has closed its side; it may still wait for a reply."""
        self._isHalfClosed = True
        if self._isClosing:
            self.transport.loseConnection()
            return
        self._phase = DRAINING
        self.dataReceived(b"")
        if self._activity is WAITING:
            self._wait()
        elif self._watcher is not None:
            self._watcher.ask()

    def writeConnectionLost(self) -> None:
        """Everything is sent: give the client time to close its side."""
        self.setTimeout(None)  # to reset it to an earlier time, the reactor searches all timers
        self.setTimeout(LINGER)

    def pauseProducing(self) -> None:
        """
        The client does not read: no more requests are answered until it does. What it sends is
        read until the buffer is full, which spares a fast client a pause of the transport.
        """
        self._isCongested = True
        self.setTimeout(self.factory.settings.timeouts.request)
        self.paused = True

    def resumeProducing(self) -> None:
        """The client reads again."""
        self._isCongested = False
        if self._activity is WAITING:
            self._wait()
        else:
            self._goOn()

    def close(self) -> None:
        """Close our side once the requests that have arrived are answered: the daemon stops."""
        if self._isClosing:
            return
        self._phase = DRAINING
        if self._isWatching:
            self._closeOurSide()
        self._closeIfDone()

    def _tell(self, line: bytes) -> None:
        """Send a line that is not a reply."""
        if not self._isClosing:
            self.transport.write(line)

    def _probe(self) -> None:
        """Find out whether a client that has closed its side still waits."""
        self._tell(self._responder.heartbeat(isNumbered=False))

    def _hold(self) -> None:
        """Something lasts as long as the connection does, which may therefore be idle."""
        watchOver(self.transport, self.factory.settings.timeouts.heartbeat)
        self.setTimeout(None)
        if self._activity is WAITING:
            self._wait()

    def _wait(self) -> None:
        """
        Read no more requests before the reply. The transport is read all the same where it
        matters that the client may disconnect.
        """
        self._activity = WAITING
        self.setTimeout(None)
        super().pauseProducing()
        if self._caller.isHeld and not self._isHalfClosed:
            self.transport.resumeProducing()
        elif self._caller.isHeld:
            self._liveness.start()

    def answerRequests(self) -> None:
        """
        Answer the requests that have arrived, up to the first whose reply comes later, for as long
        as it is the client's turn; then refuse what has come behind them, if that is at fault.
        """
        requests, caller, account = self.requests, self._caller, self._account
        answerAtOnce, seconds = self._responder.atOnce, self.factory.turns.seconds
        while requests and self._isFree:
            if seconds() >= account.until:
                self._queue()
                return
            request = self.next()
            if request is None:
                break
            response = answerAtOnce(request, caller)
            if response is not None:
                self._send(response)
                continue
            self._activity = ANSWERING
            replying = Deferred.fromCoroutine(self._responder.to(request, caller))
            replying.addCallback(self._answered)
            if self._activity is ANSWERING:
                self._wait()
                replying.addCallback(lambda _: self._goOn())
        if self.fault and self._isFree and not requests:
            self._refuse(self.fault)

    def _queue(self) -> None:
        """Serve other clients first; see L{usbip_server.net.turns}."""
        self._activity = QUEUED
        self.setTimeout(None)
        super().pauseProducing()
        self._account.wait(self)

    def takeTurn(self) -> None:
        """Go on with the requests that have arrived."""
        self._activity = READING
        self._goOn()

    @property
    def isDeaf(self) -> bool:
        """Is what comes dropped?"""
        return self._phase is CLOSING or self._activity is WATCHING

    @property
    def _isClosing(self) -> bool:
        return self._phase is CLOSING

    @property
    def _isWatching(self) -> bool:
        return self._activity is WATCHING

    @property
    def _isFree(self) -> bool:
        """Can the next request be answered?"""
        return self._activity is READING and self._phase is not CLOSING and not self._isCongested

    def _answered(self, response: Response) -> None:
        self._activity = READING
        self._liveness.stop()
        if not self._isClosing:
            self._send(response)

    def _send(self, response: Response) -> None:
        self.transport.write(response.encoded)
        self._replies += 1
        if response.stream is not None:
            self._watch(response.stream)
        elif response.last:
            self._closeOurSide()
        elif not (response.keepAlive or self._caller.isHeld):
            self._phase = DRAINING

    def _goOn(self) -> None:
        """Answer what has arrived meanwhile, and read on."""
        if not self._isFree:
            return
        self.paused = False
        self.dataReceived(b"")
        if self._isFree and not self.paused:
            self._restartTimeout()
            self.transport.resumeProducing()

    def _restartTimeout(self) -> None:
        self._whenAllowed()
        isHeld = self._caller.isHeld
        self.setTimeout(None if isHeld else self.factory.settings.timeouts.request)

    def _watch(self, stream: Subscription[Any]) -> None:
        """Send events from now on."""
        self._activity = WATCHING
        self._whenAllowed()
        self.forget()  # what comes is ignored ...
        self.setTimeout(None)
        self.transport.unregisterProducer()
        heartbeat = self.factory.settings.timeouts.heartbeat
        watchOver(self.transport, heartbeat)
        self._watcher = Watcher(
            self.transport,
            self.transport.abortConnection,
            stream,
            EventFormat(lambda event, line: line, self._responder.heartbeat),
            self._caller.principal,
            self.factory.settings.limits.watchBytes,
        )
        self._watcher.begin(self.factory.clock, heartbeat)
        self.transport.resumeProducing()  # ... but read, to see the client disconnect

    def _closeIfDone(self) -> None:
        if self._phase is not DRAINING or not self._isFree or self.requests:
            return
        if self._isHalfClosed and self.isTruncated:
            self._refuse(TRUNCATED)
        else:
            self._closeOurSide()

    def _refuse(self, message: str) -> None:
        self.transport.write(refusal(message).encoded)
        self._closeOurSide()

    def _closeOurSide(self) -> None:
        self._phase = CLOSING
        self.forget()
        self.setTimeout(self.factory.settings.timeouts.request)  # to send what was written
        if self._watcher is None:
            self.transport.unregisterProducer()
        else:
            self._watcher.end()
        closeOurSide(self.transport, self._isHalfClosed)


class CommandFactory(Factory):
    """
    Makes the connections for JSON commands, and hands the commands to a responder.
    """

    noisy = False

    def __init__(
        self, responder: IResponder, settings: RequestSettings, clock: IReactorTime
    ) -> None:
        self.responder = responder
        self.settings = settings
        self.clock = clock
        self.turns = Turns(clock)

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return self.make(principalAt(addr))

    def make(
        self, principal: Principal, whenAllowed: Callable[[], None] = lambda: None
    ) -> CommandProtocol:
        """
        Make the protocol for a client that is known already.

        @param whenAllowed: as L{CommandProtocol}.
        """
        return CommandProtocol(self, principal, whenAllowed)
