"""
What is true of every request, whatever it came in by and whichever backend carries it
out. Puts together the parts that do it, and starts and stops them.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.logger import Logger

from usbip_server.interfaces import IUsbBackend
from usbip_server.model.device import Traffic, UsbDevice
from usbip_server.model.errors import BackendUnavailable
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
from usbip_server.model.rules import Rules
from usbip_server.net.caller import Caller
from usbip_server.net.handover import SessionSocket
from usbip_server.runtime.eventlog import Subscription
from usbip_server.runtime.hookrunner import HookRunner
from usbip_server.runtime.latch import Latch
from usbip_server.runtime.statefile import StateFile
from usbip_server.server.access.authorizer import Authorizer
from usbip_server.server.allocation import Allocator
from usbip_server.server.config import OnStop, Settings
from usbip_server.server.devices.desired import DesiredState, State
from usbip_server.server.devices.events import DeviceEvents
from usbip_server.server.devices.hooks import HookDispatcher
from usbip_server.server.devices.operations import Operations
from usbip_server.server.devices.reconciler import Reconciler
from usbip_server.server.devices.view import DeviceView, FlapDamper
from usbip_server.server.dispatcher import Gate, Looking
from usbip_server.server.exports import Exports

LAST_WRITE = 1.0
"""Seconds that the state file may take at the end, whatever else has taken long."""

Method = Callable[[Any, Caller, float], Awaitable[UsbDevice]]
"""Takes the command, who asks, and until when there has to be an answer."""

Lookup = Callable[[Any, Principal], Devices]


class Sharing:
    """
    Carries out commands on a backend, and keeps its devices as they are wanted.
    """

    _log = Logger()

    def __init__(
        self,
        backend: IUsbBackend,
        clock: Any,
        settings: Settings,
        stateFile: StateFile[State] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """
        @param clock: provides C{IReactorTime}, and what hooks and exports need.
        @param stateFile: where what clients have asked for is kept; C{None}: nowhere.
        @param now: the time, in seconds since the epoch.
        """
        self._backend = backend
        self._clock = clock
        self._settings = settings
        self._stateFile = stateFile
        self._ready = Latch(clock)
        self._stopping = False
        self._broken = False
        source = backend.inventory
        self._access = Authorizer(settings.access, clock.seconds)
        self._gate = Gate(self._access)
        self._rules = Rules(settings.devices, settings.hooks)
        self._wishes = DesiredState(clock, now, source.get, settings.remember)
        self._damper = FlapDamper(clock, self._lookAgain)
        # Events are numbered from the time in microseconds, so that a number of an earlier
        # daemon is never taken for one of this.
        self._catalogue = DeviceView(
            source, self._rules, self._wishes, self._damper, seq=int(now() * 1e6)
        )
        self._feed = DeviceEvents(
            self._catalogue.inventory, now, settings.limits.history, self.traffic
        )
        self._looking = Looking(self._access, self._catalogue, self._feed)
        self._hooks = HookRunner(clock, settings.limits.hooks)
        self._herald = HookDispatcher(self._rules, self._hooks, now)
        self._operations = Operations(
            backend, self._catalogue, self._rules, self._herald, clock, settings.timeouts
        )
        self._keeper = Reconciler(
            source,
            self._catalogue,
            self._rules,
            self._wishes,
            self._damper,
            self._operations,
            clock,
        )
        self._claims = Allocator(
            self._access,
            self._catalogue,
            self._rules,
            self._wishes,
            self._operations,
            self._keeper,
            clock,
            now,
            self.traffic,
        )
        self._exports = Exports(
            backend,
            self._access,
            self._catalogue,
            self._rules,
            self._wishes,
            self._operations,
            self._keeper,
            clock,
            now,
        )
        self._operations.onEnd = self._keeper.look
        self._operations.traffic = self.traffic
        self._wishes.follow(self._asked, self._keeper.leaseEnded)
        self._lookups: dict[type[Any], Lookup] = {
            ListDevices: self._looking.list,
            FindDevice: self._looking.find,
        }
        self._methods: dict[type[Any], Method] = {
            AttachDevice: self._claims.attach,
            DetachDevice: self._claims.detach,
            KickClient: self._claims.kick,
            RenewLease: self._claims.renew,
        }

    async def start(self) -> None:
        """
        Start the backend, and see to its devices. Requests that come before it is ready
        wait for it.

        @raise Exception: it does not start, which is a bug in it; requests are told.
        """
        self._access.tell()
        if self._stateFile is not None:
            self._wishes.load(self._stateFile.open())
        try:
            await self._backend.start()
        except Exception:
            self._broken = True
            raise
        finally:
            self._ready.happen()
        if not self._stopping:
            for device in self._backend.inventory.snapshot.devices:
                self._wishes.moved(device)
            self._catalogue.refresh()  # what was remembered shows in devices
            self._feed.listen(self._herald.happened)
            self._keeper.start()
            self._wishes.start()

    async def stop(self) -> None:
        """
        Begin nothing more, wait for what is in progress (at most C{timeouts.stop}), and
        stop the backend.
        """
        self._stopping = True
        self._claims.queue.stop()
        self._operations.close()
        self._keeper.stop()
        self._wishes.stop()
        self._damper.stop()
        self._exports.stop()
        until = self._clock.seconds() + self._settings.timeouts.stop
        await self._operations.idle(until)
        if self._settings.onStop is OnStop.UNBIND:
            self._keeper.unbindAll()
            await self._operations.idle(until)
        await self._hooks.stop(max(0.0, until - self._clock.seconds()))
        if self._stateFile is not None:
            await self._stateFile.close(max(LAST_WRITE, until - self._clock.seconds()))
        await self._backend.stop()

    def apply(self, settings: Settings) -> None:
        """Let other settings be true from now on; nobody is disturbed."""
        self._settings = settings
        self._access.become(settings.access)
        self._rules.become(settings.devices, settings.hooks)
        self._wishes.remember = settings.remember
        self._operations.timeouts = settings.timeouts
        self._claims.queue.heartbeat = settings.timeouts.heartbeat
        self._hooks.most = settings.limits.hooks
        self._feed.keep(settings.limits.history)
        self._catalogue.refresh()
        self._keeper.lookAtAll()
        self._save()

    async def perform(self, command: Command, caller: Caller) -> Devices:
        """
        Carry out a command, within C{timeouts.answer} seconds unless it wants to wait.

        @return: the devices it is about: a tuple for C{list}, else the one.
        @raise ShareError: as the command cannot be carried out.
        """
        until = self._clock.seconds() + self._settings.timeouts.answer
        with self._gate.passing(caller, command) as done:
            await self.ready()
            if type(command) in self._lookups:
                return self._lookups[type(command)](command, caller.principal)
            device = await self._methods[type(command)](command, caller, until)
            done(device)
            return device

    def atOnce(self, command: Command, caller: Caller) -> Devices | None:
        """
        Carry out a command that needs no waiting: that saves its answer a Deferred.

        @return: as C{perform}; C{None} where that is what it takes.
        @raise ShareError: as the command cannot be carried out.
        """
        lookup = self._lookups.get(type(command))
        if lookup is None or not self._ready.happened:
            return None
        with self._gate.passing(caller, command):
            self._requireBackend()
            return lookup(command, caller.principal)

    def watch(self, request: WatchDevices, caller: Caller) -> tuple[Reply, Subscription[Any]]:
        """
        What a watcher is answered, and what it is told from then on; C{ready} first.

        @raise ShareError: it cannot be told that.
        """
        with self._gate.passing(caller, request):
            return self._looking.watch(request, caller.principal)

    def heartbeat(self) -> Notice:
        """What says that the daemon lives, and which event was the last."""
        return self._feed.heartbeat()

    def traffic(self, device: UsbDevice) -> Traffic | None:
        """What the session of a device's holder has moved, where that is known."""
        if device.holder is None:
            return None
        return self._exports.handoffs.traffic(device) or self._backend.traffic(device)

    async def importable(self, principal: Principal) -> tuple[UsbDevice, ...]:
        """
        The devices that somebody can import, or could, if nobody had them.

        @raise BackendUnavailable: there are none to speak of.
        """
        await self.ready()
        return self._exports.importable(principal)

    async def handOver(
        self, busId: str, caller: Caller, carrier: SessionSocket, ended: Callable[[], None]
    ) -> UsbDevice:
        """
        Give a device to a client: from now on USB traffic goes over this.

        @param carrier: see L{Exports.handOver}.
        @param ended: called when the session has ended.
        @raise ShareError: it is not to be had.
        """
        request = FindDevice(bus=busId)
        with self._gate.passing(caller, request, Right.IMPORT) as done:
            await self.ready()
            device = await self._exports.handOver(busId, caller, carrier, ended)
            done(device)
            return device

    async def ready(self) -> None:
        """
        Wait until there are devices to speak of, within C{timeouts.answer} seconds.

        @raise BackendUnavailable: there are none.
        """
        self._requireBackend()
        if not self._ready.happened:
            if not await self._ready.within(self._settings.timeouts.answer):
                raise BackendUnavailable("the daemon is still starting: ask again in a moment")
            self._requireBackend()

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

    def _lookAgain(self, busId: str) -> None:
        """A pause for a device that flaps is over."""
        self._catalogue.refresh({busId})
        self._keeper.look(busId)

    def _asked(self, busId: str) -> None:
        """Something was asked of a device, or is not any more."""
        self._catalogue.refresh({busId})
        self._save()

    def _save(self) -> None:
        if self._stateFile is not None:
            self._stateFile.save(self._wishes.state())
