"""
What is true of every request, whatever it came in by and whichever backend carries it
out: matching, one operation at a time on a device, deadlines.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from usbip_server.commands import (
    AttachDevice,
    Command,
    DetachDevice,
    DeviceRequest,
    FindDevice,
    ListDevices,
)
from usbip_server.device import DeviceState, UsbDevice
from usbip_server.errors import (
    BackendUnavailable,
    NotDone,
    OperationFailed,
    ShareError,
    StillWorking,
)
from usbip_server.interfaces import IUsbBackend
from usbip_server.inventory import Snapshot
from usbip_server.limits import Timeouts
from usbip_server.matching import select
from usbip_server.operation import Event, Operation
from usbip_server.policy import Principal
from usbip_server.replies import Devices

Method = Callable[[Any, Principal, float], Awaitable[Devices]]
"""Takes the command, who asks, and until when there has to be an answer."""

Lookup = Callable[[Any], Devices]

Work = Callable[[UsbDevice, float], Awaitable[UsbDevice]]

_ACHIEVED = {"attach": DeviceState.BOUND, "detach": DeviceState.FREE}


class Sharing:
    """
    Carries out commands on a backend.
    """

    _log = Logger()

    def __init__(self, backend: IUsbBackend, clock: IReactorTime, timeouts: Timeouts) -> None:
        self._backend = backend
        self._clock = clock
        self._timeouts = timeouts
        self._ready = Event(clock)
        self._stopping = False
        self._broken = False
        self._operations: dict[str, Operation] = {}
        self._unheard: dict[str, Operation] = {}
        self._work: dict[str, Work] = {"attach": backend.bind, "detach": backend.unbind}
        self._lookups: dict[type[Any], Lookup] = {
            ListDevices: self._list,
            FindDevice: self._select,
        }
        self._methods: dict[type[Any], Method] = {
            AttachDevice: lambda *asked: self._operate("attach", *asked),
            DetachDevice: lambda *asked: self._operate("detach", *asked),
        }

    async def start(self) -> None:
        """
        Start the backend. Requests that come before it is ready wait for it.

        @raise Exception: it does not start, which is a bug in it; requests are told.
        """
        try:
            await self._backend.start()
        except Exception:
            self._broken = True
            raise
        finally:
            self._ready.happen()

    async def stop(self) -> None:
        """
        Begin nothing more, wait for what is in progress (at most C{timeouts.stop}), and
        stop the backend.
        """
        self._stopping = True
        until = self._clock.seconds() + self._timeouts.stop
        for operation in tuple(self._operations.values()):
            if not await operation.ended.within(until - self._clock.seconds()):
                self._log.warn(
                    "stopping although the {verb} of {device} has not come to an end",
                    verb=operation.verb,
                    device=str(operation.device),
                )
        await self._backend.stop()

    async def perform(self, command: Command, principal: Principal) -> Devices:
        """
        Carry out a command, within C{timeouts.answer} seconds.

        @return: the devices it is about: a tuple for C{list}, else the one.
        @raise ShareError: as the command cannot be carried out.
        """
        until = self._clock.seconds() + self._timeouts.answer
        self._requireBackend()
        if not self._ready.happened:
            if not await self._ready.within(self._timeouts.answer):
                raise BackendUnavailable("the daemon is still starting: ask again in a moment")
            self._requireBackend()
        if type(command) in self._lookups:
            return self._lookups[type(command)](command)
        devices: Devices = await self._methods[type(command)](command, principal, until)
        return devices

    def atOnce(self, command: Command, principal: Principal) -> Devices | None:
        """
        Carry out a command that needs no waiting: that saves its answer a Deferred.

        @return: as C{perform}; C{None} where that is what it takes.
        @raise ShareError: as the command cannot be carried out.
        """
        lookup = self._lookups.get(type(command))
        if lookup is None or not self._ready.happened:
            return None
        self._requireBackend()
        return lookup(command)

    def _requireBackend(self) -> None:
        """
        @raise BackendUnavailable: there is nothing to be had at present.
        """
        if self._stopping:
            raise BackendUnavailable("the daemon is stopping: ask again when it is back")
        if self._broken:
            raise BackendUnavailable("the daemon's backend does not start: see its log")
        if self._backend.inventory.trouble is not None:
            raise BackendUnavailable(self._backend.inventory.trouble)

    def _list(self, command: ListDevices) -> Devices:
        snapshot: Snapshot = self._backend.inventory.snapshot
        return snapshot.devices

    def _select(self, request: DeviceRequest) -> UsbDevice:
        return select(request, self._backend.inventory.snapshot.devices)

    async def _operate(
        self, verb: str, request: DeviceRequest, principal: Principal, until: float
    ) -> Devices:
        """
        Attach or detach. Whoever asks for what is in progress already waits for that;
        whoever asks for the opposite waits until it has ended. What takes longer than an
        answer may goes on, and is told to whoever asks next.
        """
        device = self._select(request)
        while (other := self._operations.get(device.busId)) and not other.isAbout(verb, device):
            if not await other.ended.within(until - self._clock.seconds()):
                raise NotDone(
                    f"{device}: the {other.verb} of {other.device} that {other.principal} asked "
                    f"for is still in progress, so nothing was done; ask again when it has ended"
                )
            device = self._select(request)
        operation = other or self._untold(verb, device) or self._begin(verb, device, principal)
        if not await operation.ended.within(until - self._clock.seconds()):
            raise StillWorking(
                self._backend.inventory.same(device) or device,
                f"the {verb} of {device} takes longer than {self._timeouts.answer:g} s and goes "
                f"on, for {self._timeouts.bind:g} s at the most; ask again to hear how it went",
            )
        operation.heard = True
        self._unheard.pop(device.busId, None)
        return operation.outcome()

    def _untold(self, verb: str, device: UsbDevice) -> Operation | None:
        """
        An operation that has failed when nobody waited for it any more, if that is news
        still.
        """
        operation = self._unheard.pop(device.busId, None)
        if operation is None or not operation.isAbout(verb, device):
            return None
        age = self._clock.seconds() - operation.endedAt
        isDone = device.state is _ACHIEVED[verb]
        return None if isDone or age > self._timeouts.bind else operation

    def _begin(self, verb: str, device: UsbDevice, principal: Principal) -> Operation:
        self._requireBackend()
        operation = Operation(verb, device, principal, Event(self._clock))
        self._operations[device.busId] = operation
        Deferred.fromCoroutine(self._run(operation))
        return operation

    async def _run(self, operation: Operation) -> None:
        device = operation.device
        work = self._work[operation.verb]
        try:
            operation.result = await work(device, self._timeouts.bind)
        except ShareError as error:
            operation.error = error
            if isinstance(error, OperationFailed):
                error.device = self._backend.inventory.same(device) or error.device
            self._log.warn(
                "{verb} of {device} for {principal} failed: {error}",
                verb=operation.verb,
                device=str(device),
                principal=str(operation.principal),
                error=str(error),
            )
        except Exception as error:
            operation.error = OperationFailed(
                device, f"{operation.verb} of {device} failed within the daemon: see its log"
            )
            operation.error.__cause__ = error
            self._log.failure(
                "a bug in the {verb} of {device}", verb=operation.verb, device=str(device)
            )
        else:
            self._log.info(
                "{principal} {verb}ed {device}",
                verb=operation.verb,
                device=str(operation.result),
                principal=str(operation.principal),
            )
        finally:
            del self._operations[device.busId]
        operation.endedAt = self._clock.seconds()
        operation.ended.happen()
        if operation.error is not None and not operation.heard:
            self._unheard[device.busId] = operation
