"""
What is under way at other servers: none of it without a deadline, and all of it ends with the
daemon.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from usbip_server.client.remote.requests import NotDoneThere
from usbip_server.device import UsbDevice
from usbip_server.errors import OperationFailed, ShareError
from usbip_server.threads import TookTooLong

T = TypeVar("T")

Late = Callable[[Any], None]
"""Takes what comes when nobody waits for it any more: a result, or a C{Failure}."""


class RemoteWork:
    """
    All that is under way.
    """

    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        """
        @param reactor: provides C{IReactorTime}.
        """
        self._reactor = reactor
        self._underWay: set[Deferred[Any]] = set()
        self._stopped = False

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin something that nobody waits for, unless everything has ended."""
        if self._stopped:
            work.close()
            return
        self._begun(work).addErrback(self._failed)

    async def within(
        self, seconds: float, work: Coroutine[Any, Any, T], late: Late | None = None
    ) -> T:
        """
        Begin something, and wait for it.

        @param seconds: how long.
        @param late: takes its outcome when the time has run out, unless everything ends then;
            C{None}: it is cancelled.
        @raise TookTooLong: the time has run out.
        @raise CancelledError: everything ends.
        """
        if self._stopped:
            work.close()
            raise CancelledError
        result: Deferred[T] = Deferred()
        begun = self._begun(work)

        def over(outcome: Any) -> None:
            if timer.active():
                timer.cancel()
                result.callback(outcome)
            elif late is not None and not self._stopped:
                late(outcome)

        def giveUp() -> None:
            if late is None:
                begun.cancel()
            result.errback(TookTooLong(seconds))

        timer = self._reactor.callLater(seconds, giveUp)
        begun.addBoth(over)
        return await result

    def stop(self) -> None:
        """End everything."""
        self._stopped = True
        for work in tuple(self._underWay):
            work.cancel()

    def _begun(self, work: Coroutine[Any, Any, T]) -> Deferred[T]:
        begun = Deferred.fromCoroutine(work)
        self._underWay.add(begun)

        def over(outcome: Any) -> Any:
            self._underWay.discard(begun)
            return outcome

        return begun.addBoth(over)

    def _failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError, ShareError):
            self._log.failure("a bug in what is asked of another server", failure)


def inOurWords(device: UsbDevice, error: Exception) -> OperationFailed:
    """
    What the contract of backends has for what can go wrong at another server.

    @param device: as it is by now.
    """
    if isinstance(error, OperationFailed):
        return error
    if isinstance(error, CancelledError):
        return OperationFailed(device, f"{device}: the daemon is stopping")
    if isinstance(error, NotDoneThere):
        return OperationFailed(device, f"{device}: its server says: {error}")
    return OperationFailed(device, f"{device}: {error}")
