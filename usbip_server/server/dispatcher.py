"""
Dispatches commands: authenticates and authorizes the client, writes the audit log, and calls
the method for the command.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Awaitable, Callable, Iterator
from inspect import iscoroutinefunction
from typing import Any, cast

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from usbip_server.model.device import Traffic, UsbDevice
from usbip_server.model.errors import BackendUnavailable, NotAllowed, UnknownToken
from usbip_server.model.inventory import Inventory
from usbip_server.model.policy import Principal, Right
from usbip_server.model.replies import Devices, Notice, Reply
from usbip_server.model.requests import (
    AttachDevice,
    Command,
    DetachDevice,
    FindDevice,
    KickClient,
    ListDevices,
    RenewLease,
    WatchDevices,
)
from usbip_server.net.caller import Caller
from usbip_server.net.handover import SessionSocket
from usbip_server.runtime.eventlog import Subscription
from usbip_server.runtime.latch import Latch
from usbip_server.server.access.audit import Audit
from usbip_server.server.access.authorizer import Authorizer, rightOf
from usbip_server.server.allocation import Allocator
from usbip_server.server.config import LiveSettings
from usbip_server.server.devices.events import DeviceEvents, Event
from usbip_server.server.exports import Exports


class Phase(enum.Enum):
    """
    The phases of the daemon's life; the value is what a client is answered in it.
    """

    STARTING = "the daemon is still starting: ask again in a moment"
    RUNNING = ""
    BROKEN = "the daemon's backend does not start: see its log"
    STOPPING = "the daemon is stopping: ask again when it is back"


# CPython 3.11 takes 50 ns to get a member as an attribute of its class.
STARTING, RUNNING, BROKEN, STOPPING = Phase
LIST = Right.LIST


class Readiness:
    """
    Can commands be carried out now?

    @ivar phase: set by the composition root.
    """

    def __init__(self, inventory: Inventory, settings: LiveSettings, clock: IReactorTime) -> None:
        """
        @param inventory: the backend's.
        """
        self.phase = STARTING
        self._inventory = inventory
        self._settings = settings
        self._clock = clock
        self._started = Latch(clock)

    def enter(self, phase: Phase) -> None:
        """Begin another phase. Nothing follows on C{STOPPING}."""
        if self.phase is not STOPPING:
            self.phase = phase
        if phase in (RUNNING, BROKEN):
            self._started.fire()

    def deadline(self) -> float:
        """When a command that arrives now has to be answered, by the reactor's clock."""
        return self._clock.seconds() + self._settings.timeouts.answer

    def require(self) -> None:
        """
        @raise BackendUnavailable: no command can be carried out at present.
        """
        if self.phase is not RUNNING:
            raise BackendUnavailable(self.phase.value)
        trouble = self._inventory.trouble
        if isinstance(trouble, BackendUnavailable):
            raise trouble.with_traceback(None)
        if trouble is not None:
            raise BackendUnavailable(trouble)

    async def wait(self) -> None:
        """
        Wait for the backend to start, for C{timeouts.answer} seconds at most.

        @raise BackendUnavailable: it has not started, or has no devices at present.
        """
        if self.phase is STARTING:
            await self._started.within(self._settings.timeouts.answer)
        self.require()

    async def sleep(self, until: float) -> None:
        """Wait until a time by the reactor's clock."""
        await deferLater(self._clock, max(0.0, until - self._clock.seconds()))


class Watch(msgspec.Struct, frozen=True):
    """
    The outcome of a watch command.

    @ivar reply: the reply, with the devices unless the watch is resumed.
    @ivar subscription: the events that follow the reply.
    """

    reply: Reply
    subscription: Subscription[Event]


Result = Devices | Watch

Method = Callable[[Any, Caller, float], "Result | Awaitable[Result]"]
"""Takes the command, the client, and when there has to be an answer."""


class Dispatcher:
    """
    Carries out the commands and imports of clients.
    """

    def __init__(
        self,
        authorizer: Authorizer,
        audit: Audit,
        readiness: Readiness,
        events: DeviceEvents,
        allocator: Allocator,
        exports: Exports,
    ) -> None:
        self._authorizer = authorizer
        self._audit = audit
        self._readiness = readiness
        self._view = events.view
        self._events = events
        self._exports = exports
        self._methods: dict[type[Any], Method] = {
            ListDevices: self.list,
            FindDevice: self.find,
            WatchDevices: self.watch,
            AttachDevice: allocator.attach,
            DetachDevice: allocator.detach,
            KickClient: allocator.kick,
            RenewLease: allocator.renew,
        }
        self._rights = {kind: rightOf(kind) for kind in self._methods}
        self._immediate = {
            kind: (method, self._rights[kind])
            for kind, method in self._methods.items()
            if not iscoroutinefunction(method)
        }

    async def perform(self, command: Command, caller: Caller) -> Result:
        """
        Carry out a command, within C{timeouts.answer} seconds unless it asks to wait.

        @return: for C{list} a tuple of devices, for C{watch} a L{Watch}, else the device.
        @raise ShareError: the command cannot be carried out.
        """
        until = self._readiness.deadline()
        isSlow = command.token is not None and self._authorizer.isSlow(caller.peer)
        try:
            with self._audited(command, caller, self._rights[type(command)]) as done:
                await self._readiness.wait()
                result = self._methods[type(command)](command, caller, until)
                if type(command) not in self._immediate:
                    device = await cast("Awaitable[UsbDevice]", result)
                    isLate = bool(getattr(command, "wait", None))
                    await self._view.desired.saved(self._readiness.deadline() if isLate else until)
                    done(device)
                    return device
                return cast(Result, result)
        except UnknownToken:
            if isSlow:
                await self._readiness.sleep(until)
            raise

    def atOnce(self, command: Command, caller: Caller) -> Result | None:
        """
        Carry out a command that needs no waiting, without the cost of a Deferred.

        @return: see C{perform}; C{None} if the command has to wait.
        @raise ShareError: the command cannot be carried out.
        """
        immediate = self._immediate.get(type(command))
        if immediate is None or self._readiness.phase is STARTING:
            return None
        if command.token is not None and self._authorizer.isSlow(caller.peer):
            return None  # a wrong token is refused later
        method, right = immediate
        try:
            self._authorize(command, caller, right)
            self._readiness.require()
            return method(command, caller, 0)  # type: ignore[return-value]  # no coroutine
        except Exception as error:
            self._audit.failed(caller.principal, right, command, error)
            raise

    async def handOver(
        self, busId: str, caller: Caller, carrier: SessionSocket, ended: Callable[[], None]
    ) -> UsbDevice:
        """
        Carry out an import; see L{usbip_server.protocols.interfaces.IImportHandler}.

        @raise ShareError: the client cannot import the device.
        """
        with self._audited(FindDevice(bus=busId), caller, Right.IMPORT) as done:
            await self._readiness.wait()
            device = await self._exports.handOver(busId, caller, carrier, ended)
            done(device)
            return device

    def hasRights(self, principal: Principal) -> bool:
        """Whether a client has any rights, without a token."""
        return self._authorizer.of(principal).hasAny

    def mayImport(self, principal: Principal) -> bool:
        """Whether a client may import any device."""
        return self._authorizer.of(principal).mayAny(Right.IMPORT)

    async def importable(self, principal: Principal) -> tuple[UsbDevice, ...]:
        """
        The devices that a client may import, including those that are in use.

        @raise BackendUnavailable: the devices are not known at present.
        """
        await self._readiness.wait()
        return self._exports.importable(principal)

    def list(self, command: ListDevices, caller: Caller, until: float) -> Devices:
        """
        All devices that the client may list: those that are plugged in, or with C{away} the other
        desired ones.
        """
        devices = self._view.away() if command.away else self._view.devices
        return self._authorizer.of(caller.principal).among(LIST, devices)

    def find(self, command: FindDevice, caller: Caller, until: float) -> UsbDevice:
        """
        The one device that the command selects.

        @raise ShareError: it selects none or several.
        """
        rights = self._authorizer.of(caller.principal)
        return rights.select(command, self._view.devices, self._view.unavailable)

    def watch(self, command: WatchDevices, caller: Caller, until: float) -> Watch:
        """
        The devices now, and the events that follow.

        @raise SnapshotNeeded: the events since C{command.since} are not remembered.
        """
        principal = caller.principal

        def mayWatch(device: UsbDevice) -> bool:
            return self._authorizer.of(principal).may(Right.WATCH, device)

        return Watch(*self._events.watch(command, mayWatch))

    def refused(self, error: NotAllowed, caller: Caller) -> None:
        """A request was refused before it was read: write that to the audit log."""
        self._audit.refused(caller.peer, error)

    def heartbeat(self) -> Notice:
        """The line that shows that the daemon is alive, with the number of the last event."""
        return self._events.heartbeat()

    def traffic(self, device: UsbDevice) -> Traffic | None:
        """The bytes that the holder of a device has transferred, if that is known."""
        return self._view.traffic(device)

    def _authorize(self, command: Command, caller: Caller, right: Right) -> None:
        """
        Authenticate a client, as C{caller.principal}, and authorize it.

        @raise NotAllowed: the token is unknown, or the client has this right for no device.
        """
        caller.principal = caller.peer
        if command.token is not None:
            caller.principal = self._authorizer.identify(caller.peer, command.token)
        self._authorizer.of(caller.principal).require(right)

    @contextlib.contextmanager
    def _audited(
        self, command: Command, caller: Caller, right: Right
    ) -> Iterator[Callable[[UsbDevice], None]]:
        """
        Authorize a client for the body of the C{with}, and write the outcome to the audit log.

        @return: to be called with the device after success.
        """
        try:
            self._authorize(command, caller, right)
            yield lambda device: self._audit.done(caller.principal, right, command, device)
        except Exception as error:
            self._audit.failed(caller.principal, right, command, error)
            raise
