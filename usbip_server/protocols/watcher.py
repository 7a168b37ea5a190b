"""
Sends a subscription's events to one client, with backpressure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

from usbip_server.model.policy import Principal
from usbip_server.net.liveness import LivenessProbe
from usbip_server.runtime.eventlog import Subscription, Told

PATIENCE = 1.0
"""Seconds for which too many bytes may be unsent: many events can come at once, before the
reactor writes again."""


class EventFormat(NamedTuple):
    """
    How a protocol sends events.

    @ivar frame: returns the bytes to write for an event and its line.
    @ivar heartbeat: returns the bytes of a heartbeat.
    """

    frame: Callable[[Told, bytes], bytes]
    heartbeat: Callable[[], bytes]


@implementer(IPushProducer)
class Watcher:
    """
    Writes events to a connection as fast as the client reads them, and disconnects a client that
    is too slow. Events from before the subscription are fetched from the log one by one.
    """

    _log = Logger()

    def __init__(
        self,
        out: Any,
        abort: Callable[[], None],
        stream: Subscription[Any],
        format: EventFormat,
        principal: Principal,
        most: int,
    ) -> None:
        """
        @param out: an C{IConsumer}.
        @param abort: aborts the connection.
        @param most: how many bytes of events may be unsent.
        """
        self._out = out
        self._abort = abort
        self._stream = stream
        self._format = format
        self._principal = principal
        self._most = most
        self._missed: Iterator[tuple[Told, bytes]] = iter(())  # sent first
        self._waiting: deque[bytes] = deque()  # sent then
        self._unread = 0  # bytes in _waiting
        self._isPaused = False
        self._tooMuch: IDelayedCall | None = None
        self._beats = LoopingCall(self.beat)

    def begin(self, clock: IReactorTime, heartbeat: float) -> None:
        """
        @param heartbeat: seconds between heartbeats.
        """
        self._clock = clock
        self._liveness = LivenessProbe(self.beat, clock)
        self._out.registerProducer(self, True)
        self._beats.clock = clock
        self._beats.start(heartbeat, now=False)
        self._missed = self._stream.begin(self._tell)
        self._goOn()

    def end(self) -> None:
        """Send nothing more. May be called again."""
        if self._beats.running:
            self._beats.stop()
            self._liveness.stop()
            self._stream.end()
            self._missed = iter(())
            self._waiting.clear()
            self._unread = 0
            self._judge()
            self._out.unregisterProducer()

    def ask(self) -> None:
        """The client has closed its side: find out whether it still reads."""
        self._liveness.start()

    def beat(self) -> None:
        """Send a heartbeat, unless the client has something else to read."""
        if not self._isPaused:
            self._out.write(self._format.heartbeat())

    def pauseProducing(self) -> None:
        """The client does not read: nothing is written until it does."""
        self._isPaused = True

    def resumeProducing(self) -> None:
        """The client has read everything that was written."""
        self._isPaused = False
        self._goOn()

    def stopProducing(self) -> None:
        """The connection is gone."""
        self.end()

    def _goOn(self) -> None:
        for event, line in self._missed:
            self._out.write(self._format.frame(event, line))
            if self._isPaused:
                return
        while self._waiting and not self._isPaused:
            data = self._waiting.popleft()
            self._unread -= len(data)
            self._out.write(data)
        self._judge()

    def _tell(self, event: Told, line: bytes) -> None:
        data = self._format.frame(event, line)
        if not self._isPaused:
            self._out.write(data)
            return
        self._waiting.append(data)
        self._unread += len(data)
        self._judge()

    def _judge(self) -> None:
        """Start or cancel the timer for a client that is too slow."""
        if self._unread > self._most and self._tooMuch is None:
            self._tooMuch = self._clock.callLater(PATIENCE, self._disconnect)
        elif self._unread <= self._most and self._tooMuch is not None:
            self._tooMuch.cancel()
            self._tooMuch = None

    def _disconnect(self) -> None:
        self._tooMuch = None
        self._log.warn(
            "{principal}: slow watcher disconnected ({unread} bytes unsent)",
            principal=str(self._principal),
            unread=self._unread,
        )
        self.end()
        self._abort()
