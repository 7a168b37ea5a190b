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

from usbip_server.backends.remote.replica import RemoteReplica, RemoteServer
from usbip_server.backends.remote.requests import NotDoneThere
from usbip_server.model.device import DeviceState, UsbDevice
from usbip_server.model.errors import DeviceInUse, OperationFailed, OperationTimedOut, ShareError
from usbip_server.runtime.threads import TookTooLong

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


class RemoteOperations:
    """
    Has it done.
    """

    _log = Logger()

    def __init__(self, mirror: RemoteReplica, work: RemoteWork) -> None:
        self._mirror = mirror
        self._work = work
        self._last: dict[str, object] = {}  # which operation on a device is the last one

    async def attach(self, device: UsbDevice, deadline: float) -> UsbDevice:
        """
        Bind a device. Parameters, result and errors of all three are those of
        L{usbip_server.interfaces.IUsbBackend}.
        """
        try:
            return await self._perform("attach", device, deadline)
        except OperationTimedOut:
            raise
        except OperationFailed as error:
            now = self._mirror.inventory.same(device)
            if now is not None and now.state is DeviceState.IN_USE:
                raise DeviceInUse(now, self._mirror.traffic(now)) from error
            raise

    async def detach(self, device: UsbDevice, deadline: float) -> UsbDevice:
        """Unbind a device."""
        return await self._perform("detach", device, deadline)

    async def kick(self, device: UsbDevice, deadline: float) -> UsbDevice:
        """End the session of the client that has a device."""
        return await self._perform("kick", device, deadline)

    async def _perform(self, verb: str, device: UsbDevice, deadline: float) -> UsbDevice:
        far, there = self._mirror.at(device)
        mark = self._last[device.busId] = object()

        def late(outcome: Any) -> None:
            self._work.begin(self._afterwards(far, verb, there, device.busId, mark, outcome))

        try:
            performing = far.requests.perform(verb, there, deadline)
            await self._work.within(deadline, performing, late)
        except TookTooLong:
            trouble = f"its server has not ended the {verb} within {deadline:g} s"
            self._mirror.stuck[device.busId] = device.deviceNumber, trouble
            self._mirror.showAgain(device.busId)
            raise OperationTimedOut(self._mirror.now(device), f"{device}: {trouble}") from None
        except (ShareError, CancelledError) as error:
            self._freed(device.busId)
            raise inOurWords(self._mirror.now(device), error) from error
        self._freed(device.busId)
        if verb != "attach":
            self._mirror.sessions.end(device.busId)  # if it has not heard of it yet
        return self._mirror.here(device)

    async def _afterwards(
        self, far: RemoteServer, verb: str, there: UsbDevice, busId: str, mark: object, outcome: Any
    ) -> None:
        """
        What nobody waits for any more has ended after all. A device that was bound, and that
        was said not to be, is given back. If something else was asked for since then that is
        what counts.
        """
        if self._last.get(busId) is not mark:
            return
        if verb == "attach" and not isinstance(outcome, Failure):
            try:
                await far.requests.perform("detach", there, 0)
            except ShareError as error:
                self._log.warn(
                    "{device} at {server} is not given back: {error}",
                    device=str(there),
                    server=str(far.host.server),
                    error=str(error),
                )
        if self._last.get(busId) is mark:
            self._freed(busId)
        if isinstance(outcome, Failure):
            outcome.trap(ShareError)

    def _freed(self, busId: str) -> None:
        """Nothing is being done there any more."""
        if self._mirror.stuck.pop(busId, None) is not None:
            self._mirror.showAgain(busId)
