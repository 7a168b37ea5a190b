"""
Operations on devices: one at a time per device, each with a deadline. The only caller of
L{IUsbBackend}'s methods that change a device.
"""

from __future__ import annotations

import enum
import socket
from collections.abc import Awaitable, Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from usbip_server.interfaces import IUsbBackend
from usbip_server.model.device import DeviceState, Holder, PlugId, UsbDevice
from usbip_server.model.errors import (
    BackendUnavailable,
    DeviceInUse,
    NetworkInUse,
    NotDone,
    OperationFailed,
    Settle,
    ShareError,
    StillWorking,
)
from usbip_server.model.policy import Principal
from usbip_server.runtime.latch import Latch
from usbip_server.server.devices.hooks import HookDispatcher
from usbip_server.server.devices.view import DeviceView

EXPORT_SECONDS = 5.0
"""Deadline for the kernel to accept a connection."""


class Action(enum.Enum):
    """
    What an operation does to a device; the value stands in messages.
    """

    ATTACH = "attach"
    FORCED_ATTACH = "forced attach"
    """An attach that ends the session of the device's holder first."""

    DETACH = "detach"
    KICK = "kick"
    IMPORT = "import"

    def isAchieved(self, state: DeviceState) -> bool:
        """Is a device in this state what the action would make of it?"""
        if self is Action.DETACH:
            return state is DeviceState.FREE
        if self is Action.KICK:
            return state is not DeviceState.IN_USE
        return state is DeviceState.BOUND


class Operation:
    """
    One action on one device, while it lasts and until its outcome has been reported.

    @ivar device: the device as it was when the operation began.
    @ivar principal: the client that requested it first.
    @ivar ended: happens when the operation has ended.
    @ivar result: the device after it, if it succeeded.
    @ivar error: why it failed, if it did.
    @ivar isReported: a client has received the outcome, or none is waiting for it.
    @ivar settles: to be called with the outcome, each once.
    @ivar knownError: text of an error that was logged already, and is not logged again.
    @ivar endedAt: when it ended, by the reactor's clock.
    """

    def __init__(
        self,
        action: Action,
        device: UsbDevice,
        principal: Principal,
        ended: Latch,
        isReported: bool = False,
        knownError: str | None = None,
    ) -> None:
        self.action = action
        self.device = device
        self.principal = principal
        self.ended = ended
        self.result: UsbDevice | None = None
        self.error: ShareError | None = None
        self.isReported = isReported
        self.settles: list[Settle] = []
        self.knownError = knownError
        self.endedAt = 0.0

    def isAbout(self, action: Action, device: UsbDevice) -> bool:
        """Is it the same action on the same device, not plugged in again since?"""
        return self.action is action and self.device.plugId == device.plugId

    def outcome(self) -> UsbDevice:
        """
        Return the device after the operation.

        @raise ShareError: it failed.
        """
        if self.error is not None:
            raise self.error
        assert self.result is not None, "it has not ended"
        return self.result


Work = Callable[[Operation], Awaitable[UsbDevice]]


class Operations:
    """
    Binds, unbinds, releases and exports devices through a backend.
    """

    _log = Logger()

    def __init__(
        self,
        backend: IUsbBackend,
        view: DeviceView,
        hooks: HookDispatcher,
        clock: IReactorTime,
        onEnd: Callable[[str], None],
    ) -> None:
        """
        @param onEnd: called with the bus id when an operation has ended.
        """
        self._backend = backend
        self._view = view
        self._hooks = hooks
        self._clock = clock
        self._onEnd = onEnd
        self._isClosed = False
        self._running: dict[str, Operation] = {}
        self._unreported: dict[str, Operation] = {}
        self._bound: set[PlugId] = set()
        self._work: dict[Action, Work] = {
            Action.ATTACH: self.bind,
            Action.FORCED_ATTACH: self._seize,
            Action.DETACH: self._unbind,
            Action.KICK: self._release,
        }

    def isBusy(self, busId: str) -> bool:
        """Is an operation on the device in progress?"""
        return busId in self._running

    def hasBound(self, device: UsbDevice) -> bool:
        """Has this daemon bound the device since it was plugged in?"""
        return device.plugId in self._bound

    def forget(self, device: UsbDevice) -> None:
        """The device was unplugged or unbound."""
        self._bound.discard(device.plugId)

    async def perform(
        self,
        action: Action,
        device: UsbDevice,
        again: Callable[[], UsbDevice],
        principal: Principal,
        until: float,
        prepare: Callable[[], Settle] = lambda: _ignore,
        work: Work | None = None,
    ) -> UsbDevice:
        """
        Carry out an action for a client.

        If the same action is in progress already, its outcome is returned; another one is
        waited for. An action that takes longer than C{until} goes on, and its outcome is
        returned to the next client that requests the same.

        @param again: returns the device after such a wait; raises an error if the action is
            not to be carried out any more.
        @param until: when there has to be an answer, by the reactor's clock.
        @param prepare: called once it is certain that the action is carried out, before
            anything else can be requested; returns what to call with the outcome.
        @param work: what to do, and no other client can join it; C{None}: what C{action} says.
        @return: the device after it, as clients see it.
        @raise ShareError: it failed, or is still in progress.
        """
        while (other := self._running.get(device.busId)) and (
            work is not None or not other.isAbout(action, device)
        ):
            if not await other.ended.within(until - self._clock.seconds()):
                raise NotDone(
                    f"{device}: the {other.action.value} of {other.device} for "
                    f"{other.principal} is still in progress, so nothing was done; ask again "
                    "when it has ended"
                )
            device = again()
        if self._isClosed:
            raise BackendUnavailable("the daemon is stopping: ask again when it is back")
        operation = other or (None if work else self._takeUnreported(action, device))
        if operation is None:
            # No later request can return the outcome of such work.
            isReported = work is not None
            operation = self.begin(action, device, principal, prepare, isReported, work=work)
        elif not operation.ended.hasFired:
            operation.settles.append(prepare())
        if not await operation.ended.within(until - self._clock.seconds()):
            timeouts = self._view.settings.timeouts
            raise StillWorking(
                self._view.now(device),
                f"the {action.value} of {device} takes longer than {timeouts.answer:g} s and goes "
                f"on, for {timeouts.bind:g} s at the most; ask again to hear how it went",
            )
        operation.isReported = True
        self._unreported.pop(device.busId, None)
        return operation.outcome()

    def begin(
        self,
        action: Action,
        device: UsbDevice,
        principal: Principal,
        prepare: Callable[[], Settle] = lambda: _ignore,
        isReported: bool = False,
        knownError: str | None = None,
        work: Work | None = None,
    ) -> Operation:
        """
        Begin an action on a device on which no operation is in progress.

        @param prepare: see C{perform}.
        @param isReported: no client has to receive the outcome.
        @param knownError: the error of the last time, which is not logged again.
        """
        ended = Latch(self._clock)
        operation = Operation(action, device, principal, ended, isReported, knownError)
        self._running[device.busId] = operation
        operation.settles.append(prepare())
        Deferred.fromCoroutine(self._run(operation, work or self._work[action]))
        return operation

    async def bind(self, operation: Operation) -> UsbDevice:
        """Bind the device of an operation, as a part of it, unless a hook vetoes."""
        device = operation.device
        if device.state not in (DeviceState.BOUND, DeviceState.IN_USE):
            objection = await self._hooks.objection(device, operation.principal)
            if objection is not None:
                raise OperationFailed(device, f"{device} is not bound: {objection}")
        allowMounted = self._view.rule(device).allow_mounted
        wasFree = device.state is DeviceState.FREE
        try:
            bound = await self._backend.bind(device, self._seconds, allowMounted)
        except NetworkInUse:
            if operation.action is not Action.FORCED_ATTACH:
                raise
            bound = await self._backend.bind(device, self._seconds, allowMounted=True)
        if wasFree and self._backend.inventory.same(bound) is not None:
            self._bound.add(bound.plugId)
        return bound

    async def export(
        self, device: UsbDevice, connection: socket.socket, holder: Holder
    ) -> UsbDevice:
        """Hand a connection to a device; see L{IUsbBackend.export}."""
        return await self._backend.export(device, connection, holder, EXPORT_SECONDS)

    async def refresh(self, device: UsbDevice) -> None:
        """Have the backend look at a device now."""
        await self._backend.refresh(device)

    async def idle(self, until: float) -> None:
        """
        Wait for the operations in progress.

        @param until: for how long, by the reactor's clock.
        """
        for operation in tuple(self._running.values()):
            if not await operation.ended.within(until - self._clock.seconds()):
                self._log.warn(
                    "stopping although the {verb} of {device} has not ended",
                    verb=operation.action.value,
                    device=str(operation.device),
                )

    def close(self) -> None:
        """Begin no more operations for clients."""
        self._isClosed = True

    @property
    def _seconds(self) -> float:
        """The deadline of a bind, an unbind or a release."""
        return self._view.settings.timeouts.bind

    def _takeUnreported(self, action: Action, device: UsbDevice) -> Operation | None:
        """
        The same operation, if it has failed after its client was answered, and that is recent.
        """
        operation = self._unreported.pop(device.busId, None)
        if operation is None or not operation.isAbout(action, device):
            return None
        age = self._clock.seconds() - operation.endedAt
        isOutdated = age > self._seconds or action.isAchieved(device.state)
        return None if isOutdated else operation

    async def _run(self, operation: Operation, work: Work) -> None:
        device, verb = operation.device, operation.action.value
        try:
            result = await work(operation)
            self._view.refresh({device.busId})
            operation.result = self._view.now(result)
        except ShareError as error:
            operation.error = error = self._updated(error)
            if str(error) != operation.knownError:
                self._log.warn(
                    "{verb} of {device} for {principal} failed: {error}",
                    verb=verb,
                    device=str(device),
                    principal=str(operation.principal),
                    error=str(error),
                )
        except Exception as error:
            operation.error = OperationFailed(
                device, f"{verb} of {device} failed within the daemon: see its log"
            )
            operation.error.__cause__ = error
            self._log.failure("a bug in the {verb} of {device}", verb=verb, device=str(device))
        else:
            self._log.info(
                "{verb} of {device} for {principal} is done",
                verb=verb,
                device=str(operation.result),
                principal=str(operation.principal),
            )
        try:
            self._settle(operation)
        except Exception:
            self._log.failure("a bug after the {verb} of {device}", verb=verb, device=str(device))
        finally:
            del self._running[device.busId]
        operation.endedAt = self._clock.seconds()
        if operation.error is not None and not operation.isReported:
            self._unreported[device.busId] = operation
        operation.ended.fire()
        self._onEnd(device.busId)

    def _settle(self, operation: Operation) -> None:
        """
        Pass the outcome on, to the client that came last first: after a failure the desired
        state is restored step by step.
        """
        error = operation.error
        for settle in reversed(operation.settles):
            settle(error)
        if error is not None and str(error) != operation.knownError:
            self._hooks.failed(self._view.now(operation.device), str(error))

    def _updated(self, error: ShareError) -> ShareError:
        """An error with the device as it is by now."""
        if isinstance(error, OperationFailed):
            now = self._view.now(error.device)
            if isinstance(error, DeviceInUse) and now.holder is not None:
                return DeviceInUse(now, self._view.traffic(now))
            error.device = now
        return error

    async def _seize(self, operation: Operation) -> UsbDevice:
        await self._release(operation)
        return await self.bind(operation)

    async def _release(self, operation: Operation) -> UsbDevice:
        return await self._backend.release(operation.device, self._seconds)

    async def _unbind(self, operation: Operation) -> UsbDevice:
        free = await self._backend.unbind(operation.device, self._seconds)
        self.forget(free)
        return free


def _ignore(error: ShareError | None) -> None:
    """Ignore the outcome."""
