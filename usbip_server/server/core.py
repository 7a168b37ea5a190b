"""
The composition root of the daemon: builds its parts, starts, reloads and stops them.

A command's way through the parts::

    Dispatcher -> Allocator -> Operations -> IUsbBackend
                               Operations <- Reconciler <- changes, lease ends, retry delays

A change's way::

    IUsbBackend.inventory -> DeviceView.inventory -> DeviceEvents -> watching clients, hooks
                          -> Reconciler           -> WaitQueue
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from usbip_server.interfaces import IUsbBackend
from usbip_server.model.inventory import Change
from usbip_server.net.onlink import OnLink
from usbip_server.runtime.hookrunner import HookRunner
from usbip_server.runtime.statefile import StateFile
from usbip_server.server.access.audit import Audit
from usbip_server.server.access.authorizer import Authorizer
from usbip_server.server.allocation import Allocator
from usbip_server.server.config import LiveSettings, OnStop, Settings
from usbip_server.server.devices.desireddevice import DesiredDevice, State
from usbip_server.server.devices.desiredstate import DesiredState
from usbip_server.server.devices.events import DeviceEvents
from usbip_server.server.devices.hooks import HookDispatcher
from usbip_server.server.devices.operations import Operations
from usbip_server.server.devices.reconciler import Reconciler
from usbip_server.server.devices.view import DeviceView, FlapDamper
from usbip_server.server.dispatcher import Dispatcher, Phase, Readiness
from usbip_server.server.exports import Exports
from usbip_server.server.metrics import DaemonMetrics, Measure, Monitor, RequestMetrics
from usbip_server.server.sessions import SessionTable

LAST_WRITE = 1.0
"""Seconds that the state file may take at the end, however long the rest has taken."""


class Core:
    """
    The parts that share a backend's devices.

    @ivar dispatcher: carries out commands and imports.
    @ivar settings: the settings in force.
    @ivar requests: counts requests.
    @ivar monitor: shows operators the metrics of all parts.
    """

    def __init__(
        self,
        backend: IUsbBackend,
        reactor: Any,
        settings: LiveSettings,
        stateFile: StateFile[State] | None = None,
        measures: Iterable[Measure] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        """
        @param reactor: provides C{IReactorTime}, C{IReactorFDSet}, and what hooks need.
        @param stateFile: where the desired state is saved; C{None}: nowhere.
        @param measures: return the metrics of the other parts of the daemon.
        @param now: the time, in seconds since the epoch.
        """
        self.settings = settings
        self._backend = backend
        self._reactor = reactor
        self._readiness = Readiness(backend.inventory, settings, reactor)
        onLink = OnLink(reactor.seconds)
        self._authorizer = Authorizer(settings, reactor.seconds, onLink.networks)
        self._audit = Audit(reactor)
        self._desired = DesiredState(
            *(reactor, now, settings, backend.inventory.get),
            *(self._desiredChanged, self._leaseEnded, stateFile),
        )
        self._damper = FlapDamper(reactor, self._resumed)
        # Event numbers begin at the time in microseconds, so that no number of an earlier
        # daemon is used again.
        self._view = DeviceView(
            backend,
            settings,
            self._desired,
            self._damper,
            SessionTable(reactor),
            seq=int(now() * 1e6),
        )
        self._events = DeviceEvents(self._view, now)
        self._hookRunner = HookRunner(reactor, lambda: settings.limits.hooks)
        self._hooks = HookDispatcher(settings, self._hookRunner, now)
        self._operations = Operations(
            backend, self._view, self._hooks, reactor, self._operationEnded
        )
        self._reconciler = Reconciler(self._view, self._operations, reactor)
        self._allocator = Allocator(
            self._authorizer, self._view, self._operations, self._reconciler, reactor, now
        )
        self._exports = Exports(
            self._authorizer, self._view, self._operations, self._reconciler, reactor, now
        )
        self.dispatcher = Dispatcher(
            self._authorizer,
            self._audit,
            self._readiness,
            self._events,
            self._allocator,
            self._exports,
        )
        self.requests = RequestMetrics(reactor.seconds)
        metrics = DaemonMetrics(
            backend,
            self._view,
            self._events,
            self._allocator.queue,
            (self.requests.metrics, self._hookRunner.metrics, *measures),
        )
        self.monitor = Monitor(self._authorizer, self._readiness, self._audit, metrics)
        backend.inventory.subscribe(self._backendChanged)
        self._view.inventory.subscribe(self._viewChanged)

    async def start(self) -> None:
        """
        Start the backend, and reconcile its devices. Commands that come before it has started
        wait for it.

        @raise Exception: the backend does not start, which is a bug in it.
        """
        self._authorizer.logPreset()
        self._desired.load()
        try:
            await self._backend.start()
        except Exception:
            self._readiness.enter(Phase.BROKEN)
            raise
        self._readiness.enter(Phase.RUNNING)
        if self._readiness.phase is Phase.STOPPING:
            return
        self._desired.added(self._backend.inventory.snapshot.devices)
        self._view.refresh()  # shows the leases that were loaded
        self._events.listen(self._hooks.happened)
        self._reconciler.start()
        self._desired.start()

    async def stop(self) -> None:
        """
        Begin nothing more, wait for the operations in progress (C{timeouts.stop} seconds at
        most), and stop the backend.
        """
        self._readiness.enter(Phase.STOPPING)
        self._allocator.queue.stop()
        self._operations.close()
        self._reconciler.stop()
        self._desired.stop()
        self._damper.stop()
        self._exports.stop()
        until = self._reactor.seconds() + self.settings.timeouts.stop
        await self._operations.idle(until)
        if self.settings.onStop is OnStop.UNBIND:
            self._reconciler.unbindAll()
            await self._operations.idle(until)
        await self._hookRunner.stop(max(0.0, until - self._reactor.seconds()))
        await self._desired.close(max(LAST_WRITE, until - self._reactor.seconds()))
        await self._backend.stop()
        self._audit.stop()

    def reload(self, settings: Settings) -> None:
        """Put other settings in force. Sessions and connections go on."""
        isOther = settings.access != self.settings.access
        self.settings.replace(settings)
        if isOther:
            self._authorizer.logPreset()
        self._view.refresh()
        self._allocator.queue.updateAll()
        self._reconciler.reconcileAll()
        self._desired.save()

    def _backendChanged(self, changes: tuple[Change, ...]) -> None:
        self._view.update(changes)
        self._reconciler.update(changes)

    def _viewChanged(self, changes: tuple[Change, ...]) -> None:
        self._events.update(changes)
        self._allocator.queue.update(changes)

    def _desiredChanged(self, busId: str) -> None:
        self._view.refresh({busId})

    def _leaseEnded(self, desired: DesiredDevice) -> None:
        self._reconciler.leaseEnded(desired)

    def _operationEnded(self, busId: str) -> None:
        self._reconciler.reconcile(busId)

    def _resumed(self, busId: str) -> None:
        """The pause of a bus id that was flapping is over."""
        self._view.refresh({busId})
        self._reconciler.reconcile(busId)
