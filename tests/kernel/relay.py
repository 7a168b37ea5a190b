"""
The host's end of the virtio-serial port.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from tests.kernel.monitor import Monitor, MonitorError
from tests.kernel.requests import Answer, Booted, Finished, Note, Plug, Request, Unplug


class GuestRelay(LineOnlyReceiver):
    """
    Does what the guest asks for, and hears how far it has come.

    @ivar booted: fires with the time when the guest begins with its tests.
    @ivar finished: fires with trial's exit status.
    @ivar lost: fires when nothing more can come.
    """

    log = Logger()
    delimiter = b"\n"

    def __init__(self, monitor: Monitor, clock: IReactorTime) -> None:
        self.booted: Deferred[float] = Deferred()
        self.finished: Deferred[int] = Deferred()
        self.lost: Deferred[None] = Deferred()
        self._monitor = monitor
        self._clock = clock
        self._decoder = msgspec.json.Decoder[Note | Request](Note | Request)
        self._encoder = msgspec.json.Encoder()
        self._reactions: dict[type, Callable[[Any], None]] = {
            Booted: self._guestBooted,
            Finished: self._guestFinished,
            Unplug: self._unplug,
            Plug: self._plug,
        }

    def lineReceived(self, line: bytes) -> None:
        """The guest said something."""
        try:
            message = self._decoder.decode(line)
        except msgspec.MsgspecError as error:
            self.log.error("not understood: {line!r}: {error}", line=line, error=error)
        else:
            self._reactions[type(message)](message)

    def connectionLost(self, reason: Failure | None = None) -> None:
        """QEMU has closed its end."""
        self.lost.callback(None)

    def _guestBooted(self, note: Booted) -> None:
        self.booted.callback(self._clock.seconds())

    def _guestFinished(self, note: Finished) -> None:
        self.finished.callback(note.status)

    def _unplug(self, request: Unplug) -> None:
        self._answer(request.number, self._monitor.unplug(request.device))

    def _plug(self, request: Plug) -> None:
        self._answer(request.number, self._monitor.plug(request.device))

    def _answer(self, number: int, work: Coroutine[Deferred[Any], Any, None]) -> None:
        async def answer() -> None:
            outcome = Answer(number)
            try:
                await work
            except MonitorError as error:
                outcome = Answer(number, str(error))
            assert self.transport is not None
            self.transport.write(self._encoder.encode(outcome) + b"\n")

        done = Deferred.fromCoroutine(answer())
        done.addErrback(lambda failure: self.log.failure("a request broke", failure))
