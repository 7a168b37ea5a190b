"""
What is done to devices: one operation at a time on each, each with a deadline.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from usbip_server.interfaces import IUsbBackend
from usbip_server.model.device import DeviceState, PlugId, Traffic, UsbDevice
from usbip_server.model.errors import (
    ASK_AGAIN,
    BackendUnavailable,
    DeviceInUse,
    NotDone,
    OperationFailed,
    Settle,
    ShareError,
    StillWorking,
)
from usbip_server.model.options import Timeouts
from usbip_server.model.policy import Principal
from usbip_server.model.rules import Rules
from usbip_server.runtime.latch import Latch
from usbip_server.server.devices.hooks import HookDispatcher
from usbip_server.server.devices.view import DeviceView


class Operation:
    """
    The attach, detach or kick of one device, while it lasts and until somebody has heard how
    it went.

    @ivar verb: C{"attach"}, C{"detach"}, C{"kick"} or C{"forced attach"}.
    @ivar device: the device as it was when it was asked for.
    @ivar principal: who asked first.
    @ivar ended: happens when it has come to an end.
    @ivar result: the device after it, if it went well.
    @ivar error: what went wrong, if it did not.
    @ivar heard: has somebody been told?
    @ivar settles: whom to tell how it went, each once.
    @ivar known: what has gone wrong before in the same way: it is not told again.
    @ivar endedAt: when it came to its end, by the reactor's clock.
    """

    def __init__(
        self,
        verb: str,
        device: UsbDevice,
        principal: Principal,
        ended: Latch,
        heard: bool = False,
    ) -> None:
        self.verb = verb
        self.device = device
        self.principal = principal
        self.ended = ended
        self.result: UsbDevice | None = None
        self.error: ShareError | None = None
        self.heard = heard
        self.settles: list[Settle] = []
        self.known: str | None = None
        self.endedAt = 0.0

    def isAbout(self, verb: str, device: UsbDevice) -> bool:
        """Is it this, on the very device that is there now?"""
        return self.verb == verb and self.device.plugId == device.plugId

    def outcome(self) -> UsbDevice:
        """
        The device after it.

        @raise ShareError: it went wrong.
        """
        if self.error is not None:
            raise self.error
        assert self.result is not None, "asked before it ended"
        return self.result


Work = Callable[[Operation], Awaitable[UsbDevice]]

_ACHIEVED: dict[str, Callable[[DeviceState], bool]] = {
    "attach": lambda state: state is DeviceState.BOUND,
    "detach": lambda state: state is DeviceState.FREE,
    "forced attach": lambda state: state is DeviceState.BOUND,
    "kick": lambda state: state is not DeviceState.IN_USE,
}


class Operations:
    """
    Has a backend bind, unbind and release devices.

    @ivar timeouts: how long things may take.
    @ivar traffic: what a device's holder has moved.
    @ivar onEnd: called with the bus id when something has come to its end.
    """

    _log = Logger()

    def __init__(
        self,
        backend: IUsbBackend,
        catalogue: DeviceView,
        rules: Rules,
        herald: HookDispatcher,
        clock: IReactorTime,
        timeouts: Timeouts,
    ) -> None:
        self.timeouts = timeouts
        self.onEnd: Callable[[str], None] = lambda busId: None
        self.traffic: Callable[[UsbDevice], Traffic | None] = backend.traffic
        self._backend = backend
        self._catalogue = catalogue
        self._rules = rules
        self._herald = herald
        self._clock = clock
        self._closed = False
        self._running: dict[str, Operation] = {}
        self._unheard: dict[str, Operation] = {}
        self._bound: set[PlugId] = set()
        self._work: dict[str, Work] = {
            "attach": self.bind,
            "forced attach": self._seize,
            "detach": self._unbind,
            "kick": lambda o: backend.release(o.device, self.timeouts.bind),
        }

    def isBusy(self, busId: str) -> bool:
        """Is something being done to the device there?"""
        return busId in self._running

    def hasBound(self, device: UsbDevice) -> bool:
        """Has this daemon bound the device, in this stay of it?"""
        return device.plugId in self._bound

    def forget(self, device: UsbDevice) -> None:
        """The device is gone, or not bound any more."""
        self._bound.discard(device.plugId)

    async def perform(
        self,
        verb: str,
        device: UsbDevice,
        again: Callable[[], UsbDevice],
        principal: Principal,
        until: float,
        prepare: Callable[[], Settle] = lambda: _nothing,
        work: Work | None = None,
    ) -> UsbDevice:
        """
        Do something to a device.

        Whoever asks for what is in progress already waits for that; whoever asks for
        something else waits until it has ended. What takes longer than an answer may goes
        on, and is told to whoever asks next.

        @param again: the device as it is after such a wait; fails if it is not to be done
            any more.
        @param until: when there has to be an answer, by the reactor's clock.
        @param prepare: called when it is certain that it is done, before anybody else can
            ask for something; returns whom to tell how it went.
        @param work: what to do; nobody can join that. Else the verb says it.
        @return: the device after it, as clients see it.
        @raise ShareError: it went wrong, or goes on.
        """
        while (other := self._running.get(device.busId)) and (
            work is not None or not other.isAbout(verb, device)
        ):
            if not await other.ended.within(until - self._clock.seconds()):
                raise NotDone(
                    f"{device}: the {other.verb} of {other.device} that {other.principal} asked "
                    f"for is still in progress, so nothing was done; ask again when it has ended"
                )
            device = again()
        if self._closed:
            raise BackendUnavailable("the daemon is stopping: ask again when it is back")
        operation = other or (None if work else self._untold(verb, device))
        if operation is None:
            heard = work is not None  # it is told to its client, or to nobody
            operation = self.begin(verb, device, principal, prepare, heard, work=work)
        elif not operation.ended.happened:
            operation.settles.append(prepare())
        if not await operation.ended.within(until - self._clock.seconds()):
            raise StillWorking(
                self._catalogue.now(device),
                f"the {verb} of {device} takes longer than {self.timeouts.answer:g} s and goes "
                f"on, for {self.timeouts.bind:g} s at the most; {ASK_AGAIN}",
            )
        operation.heard = True
        self._unheard.pop(device.busId, None)
        return operation.outcome()

    def begin(
        self,
        verb: str,
        device: UsbDevice,
        principal: Principal,
        prepare: Callable[[], Settle] = lambda: _nothing,
        heard: bool = False,
        known: str | None = None,
        work: Work | None = None,
    ) -> Operation:
        """
        Begin to do something to a device that nothing is done to at present.

        @param prepare: as in C{perform}.
        @param heard: nobody has to be told how it went.
        @param known: what went wrong the last time: if it goes wrong in the same way, that is
            nothing new.
        """
        operation = Operation(verb, device, principal, Latch(self._clock), heard)
        operation.known = known
        self._running[device.busId] = operation
        operation.settles.append(prepare())
        Deferred.fromCoroutine(self._run(operation, work or self._work[verb]))
        return operation

    async def bind(self, operation: Operation) -> UsbDevice:
        """Bind the device of an operation, as part of it, unless a hook objects."""
        device = operation.device
        if device.state not in (DeviceState.BOUND, DeviceState.IN_USE):
            objection = await self._herald.objection(device, operation.principal)
            if objection is not None:
                raise OperationFailed(device, f"{device} is not bound: {objection}")
        mounted = self._rules.of(device).allow_mounted
        wasFree = device.state is DeviceState.FREE
        bound = await self._backend.bind(device, self.timeouts.bind, mounted)
        if wasFree and self._backend.inventory.same(bound) is not None:
            self._bound.add(bound.plugId)
        return bound

    async def idle(self, until: float) -> None:
        """
        Wait for what is in progress.

        @param until: for how long, by the reactor's clock.
        """
        for operation in tuple(self._running.values()):
            if not await operation.ended.within(until - self._clock.seconds()):
                self._log.warn(
                    "stopping although the {verb} of {device} has not come to an end",
                    verb=operation.verb,
                    device=str(operation.device),
                )

    def close(self) -> None:
        """Begin nothing more for clients."""
        self._closed = True

    def _untold(self, verb: str, device: UsbDevice) -> Operation | None:
        """
        An operation that has failed when nobody waited for it any more, if that is news
        still.
        """
        operation = self._unheard.pop(device.busId, None)
        if operation is None or not operation.isAbout(verb, device):
            return None
        age = self._clock.seconds() - operation.endedAt
        isDone = _ACHIEVED[verb](device.state)
        return None if isDone or age > self.timeouts.bind else operation

    async def _run(self, operation: Operation, work: Work) -> None:
        device, verb = operation.device, operation.verb
        try:
            operation.result = self._catalogue.now(await work(operation))
        except ShareError as error:
            operation.error = error = self._told(error)
            if str(error) != operation.known:
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
        if operation.error is not None and not operation.heard:
            self._unheard[device.busId] = operation
        operation.ended.happen()
        self.onEnd(device.busId)

    def _settle(self, operation: Operation) -> None:
        """
        Tell all who want to know how it went, the last one first: what was asked for is
        taken back in the order that undoes it.
        """
        error = operation.error
        for settle in reversed(operation.settles):
            settle(error)
        if error is not None and str(error) != operation.known:
            self._herald.failed(self._catalogue.now(operation.device), str(error))

    def _told(self, error: ShareError) -> ShareError:
        """
        An error as a client is to be told it: with what is known of the device by now.
        """
        if isinstance(error, OperationFailed):
            now = self._catalogue.now(error.device)
            if isinstance(error, DeviceInUse) and now.holder is not None:
                return DeviceInUse(now, self.traffic(now))
            error.device = now
        return error

    async def _seize(self, operation: Operation) -> UsbDevice:
        await self._backend.release(operation.device, self.timeouts.bind)
        return await self.bind(operation)

    async def _unbind(self, operation: Operation) -> UsbDevice:
        free = await self._backend.unbind(operation.device, self.timeouts.bind)
        self.forget(free)
        return free


def _nothing(error: ShareError | None) -> None:
    """
    Nobody wants to know.
    """
