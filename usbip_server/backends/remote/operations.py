"""
The operations of the gateway at other servers. Each has a deadline, and all end with the daemon.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from usbip_server.backends.remote.replica import RemoteReplica, RemoteServer
from usbip_server.backends.remote.requests import RefusedThere
from usbip_server.model.device import DeviceState, UsbDevice
from usbip_server.model.errors import DeviceInUse, OperationFailed, OperationTimedOut, ShareError
from usbip_server.runtime.threads import CallTimedOut

T = TypeVar("T")

Late = Callable[[Any], None]
"""Receives a result, or a C{Failure}, after the deadline."""


class RemoteTasks:
    """
    Runs coroutines with deadlines.
    """

    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        """
        @param reactor: provides C{IReactorTime}.
        """
        self._reactor = reactor
        self._running: set[Deferred[Any]] = set()
        self._isStopped = False

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the background, unless L{stop} was called."""
        if self._isStopped:
            work.close()
            return
        self._begin(work).addErrback(self._failed)

    async def within(
        self, seconds: float, work: Coroutine[Any, Any, T], late: Late | None = None
    ) -> T:
        """
        Run a coroutine, and wait for it.

        @param seconds: the deadline.
        @param late: called with its outcome after the deadline, unless L{stop} was called; C{None}:
            it is cancelled at the deadline.
        @raise CallTimedOut: the deadline has passed.
        @raise CancelledError: L{stop} was called.
        """
        if self._isStopped:
            work.close()
            raise CancelledError
        result: Deferred[T] = Deferred()
        running = self._begin(work)

        def ended(outcome: Any) -> None:
            if timer.active():
                timer.cancel()
                result.callback(outcome)
            elif late is not None and not self._isStopped:
                late(outcome)

        def giveUp() -> None:
            if late is None:
                running.cancel()
            result.errback(CallTimedOut(seconds))

        timer = self._reactor.callLater(seconds, giveUp)
        running.addBoth(ended)
        return await result

    def stop(self) -> None:
        """Cancel all of them."""
        self._isStopped = True
        for running in tuple(self._running):
            running.cancel()

    def _begin(self, work: Coroutine[Any, Any, T]) -> Deferred[T]:
        running = Deferred.fromCoroutine(work)
        self._running.add(running)

        def ended(outcome: Any) -> Any:
            self._running.discard(running)
            return outcome

        return running.addBoth(ended)

    def _failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError, ShareError):
            self._log.failure("bug in an operation at another server", failure)


def asOperationFailed(device: UsbDevice, error: Exception) -> OperationFailed:
    """
    Convert an error to one that L{usbip_server.interfaces.IUsbBackend} allows.

    @param device: its present state.
    """
    if isinstance(error, OperationFailed):
        return error
    if isinstance(error, CancelledError):
        return OperationFailed(device, f"{device}: the daemon is stopping")
    if isinstance(error, RefusedThere):
        return OperationFailed(device, f"{device}: its server says: {error}")
    return OperationFailed(device, f"{device}: {error}")


class RemoteOperations:
    """
    Binds, unbinds and releases devices at their servers.
    """

    _log = Logger()

    def __init__(self, replica: RemoteReplica, tasks: RemoteTasks) -> None:
        self._replica = replica
        self._tasks = tasks
        self._latest: dict[str, object] = {}  # by bus id, a mark of the latest operation

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
            now = self._replica.inventory.same(device)
            if now is not None and now.state is DeviceState.IN_USE:
                raise DeviceInUse(now, self._replica.traffic(now)) from error
            raise

    async def detach(self, device: UsbDevice, deadline: float) -> UsbDevice:
        """Unbind a device."""
        return await self._perform("detach", device, deadline)

    async def kick(self, device: UsbDevice, deadline: float) -> UsbDevice:
        """End the session of a device."""
        return await self._perform("kick", device, deadline)

    async def _perform(self, command: str, device: UsbDevice, deadline: float) -> UsbDevice:
        replica, busId = self._replica, device.busId
        server, there = replica.at(device)
        mark = self._latest[busId] = object()

        def late(outcome: Any) -> None:
            self._tasks.begin(self._afterDeadline(server, command, there, busId, mark, outcome))

        try:
            performing = server.requests.perform(command, there, deadline)
            await self._tasks.within(deadline, performing, late)
        except CallTimedOut:
            trouble = f"its server has not ended the {command} within {deadline:g} s"
            replica.stuck[busId] = device.deviceNumber, trouble
            replica.update(busId)
            raise OperationTimedOut(replica.now(device), f"{device}: {trouble}") from None
        except (ShareError, CancelledError) as error:
            self._freed(busId)
            raise asOperationFailed(replica.now(device), error) from error
        self._freed(busId)
        if command != "attach":
            replica.sessions.end(busId)  # the server may not have ended its connection yet
        return replica.require(device)

    async def _afterDeadline(
        self,
        server: RemoteServer,
        command: str,
        there: UsbDevice,
        busId: str,
        mark: object,
        outcome: Any,
    ) -> None:
        """
        An operation has ended after its deadline. A device that was bound is unbound, as its bind
        was reported to have failed; unless there is a later operation.
        """
        if self._latest.get(busId) is not mark:
            return
        if command == "attach" and not isinstance(outcome, Failure):
            try:
                await server.requests.perform("detach", there, 0)
            except ShareError as error:
                self._log.warn(
                    "{device} at {server} stays bound after a bind that took too long: {error}",
                    device=str(there),
                    server=str(server.host.server),
                    error=str(error),
                )
        if self._latest.get(busId) is mark:
            self._freed(busId)
        if isinstance(outcome, Failure):
            outcome.trap(ShareError)

    def _freed(self, busId: str) -> None:
        if self._replica.stuck.pop(busId, None) is not None:
            self._replica.update(busId)
