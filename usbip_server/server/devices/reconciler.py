"""
A level-triggered reconciler: compares the desired with the actual state of a device after each
event and each retry delay, and starts the operation that is missing.
"""

from __future__ import annotations

from functools import partial

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from usbip_server.model.device import DeviceState, PlugId, UsbDevice
from usbip_server.model.devicerules import Share
from usbip_server.model.errors import ShareError
from usbip_server.model.inventory import Change, ChangeKind
from usbip_server.model.policy import Principal
from usbip_server.runtime.backoff import BackoffOptions
from usbip_server.server.devices.desireddevice import DesiredDevice
from usbip_server.server.devices.operations import Action, Operations
from usbip_server.server.devices.view import DeviceView

DAEMON = Principal("usbipshare")
"""On whose behalf the reconciler acts."""

DRIVER_SECONDS = 1.0
"""
Time for this machine's own driver to take a device that has none, as it is new or another program
is unbinding it. C{usbip unbind} gives the driver back by C{rebind}, and a device that is bound
before that crashes the kernel when it is unbound.
"""

RETRY = BackoffOptions(first=1.0, longest=60.0)
"""The pauses after a bind that has failed."""


class Reconciler:
    """
    Binds the devices that the configuration or a client wants bound, and unbinds the others.
    """

    def __init__(self, view: DeviceView, operations: Operations, clock: IReactorTime) -> None:
        self._view = view
        self._operations = operations
        self._clock = clock
        self._isRunning = False
        self._detached: set[PlugId] = set()
        self._expired: set[PlugId] = set()
        self._released: set[PlugId] = set()
        self._driverless: set[PlugId] = set()
        self._troubled: set[PlugId] = set()
        self._failures: dict[PlugId, tuple[int, str]] = {}
        self._timers: dict[PlugId, IDelayedCall] = {}

    def start(self) -> None:
        """Begin to reconcile."""
        self._isRunning = True
        self.reconcileAll()

    def stop(self) -> None:
        """Start no more operations."""
        self._isRunning = False
        for timer in self._timers.values():
            if timer.active():
                timer.cancel()
        self._timers.clear()

    def reconcileAll(self) -> None:
        """Reconcile all devices."""
        for device in self._view.source.snapshot.devices:
            self.reconcile(device.busId)

    def reconcile(self, busId: str) -> None:
        """Start the operation that the device at a bus id lacks, if there is one."""
        device = self._view.source.get(busId)
        if not self._isRunning or device is None or self._view.damper.trouble(busId) is not None:
            return
        self._noteTrouble(device)
        if self._operations.isBusy(busId) or self._isPausing(device):
            return  # called again when that has ended
        action = self._missing(device)
        if device.driver is not None:
            self._driverless.discard(device.plugId)
        isNew = device.driver is None and device.plugId not in self._driverless
        if action is Action.ATTACH and isNew:
            self._driverless.add(device.plugId)
            self._retryIn(DRIVER_SECONDS, device.plugId)
        elif action is not None:
            self._begin(action, device)

    def update(self, changes: tuple[Change, ...]) -> None:
        """Reconcile the devices that have changed."""
        if not self._isRunning:
            return
        for change in changes:
            if change.kind is ChangeKind.REMOVED:
                self._forget(change.device)
            else:
                self.reconcile(change.device.busId)

    def wants(self, device: UsbDevice) -> bool:
        """Is a device to be bound?"""
        share = self._view.rule(device).share
        if share is Share.NEVER:
            return False
        if self._view.desired.of(device) is not None:
            return True
        return share is Share.ALWAYS and device.plugId not in self._detached

    def detached(self, device: UsbDevice) -> None:
        """
        A client has detached a device whose rule is C{share: always}: it stays unbound until it
        is plugged in again or attached.
        """
        self._detached.add(device.plugId)

    def attached(self, device: UsbDevice) -> None:
        """A client has attached a device."""
        self._detached.discard(device.plugId)

    def leaseEnded(self, desired: DesiredDevice) -> None:
        """End the session on a device whose lease is over, or unbind it."""
        device = self._view.source.get(desired.busId)
        if device is not None and desired.isFor(device):
            self._expired.add(device.plugId)
            self.reconcile(device.busId)

    def released(self, device: UsbDevice) -> None:
        """
        A client has ended its session on a device that is to be unbound then, unless a client
        has attached it: do so as soon as it is not in use any more.
        """
        if self._view.source.same(device) is not None and not self.wants(device):
            self._released.add(device.plugId)
            self.reconcile(device.busId)

    def imported(self, device: UsbDevice) -> None:
        """A client has imported a device."""
        self._released.discard(device.plugId)

    def unbindAll(self) -> None:
        """Unbind the devices that this daemon has bound, or would bind."""
        for device in self._view.source.snapshot.devices:
            isBound = device.state in (DeviceState.BOUND, DeviceState.IN_USE)
            isOurs = self._operations.hasBound(device) or self.wants(device)
            if isBound and isOurs and not self._operations.isBusy(device.busId):
                self._begin(Action.DETACH, device)

    def _missing(self, device: UsbDevice) -> Action | None:
        """The action that brings a device into its desired state."""
        plugId, state = device.plugId, device.state
        if self.wants(device):
            if state in (DeviceState.FREE, DeviceState.ERROR):
                return Action.ATTACH
            if state is DeviceState.IN_USE and plugId in self._expired:
                return Action.KICK
        else:
            isLeftOver = state is not DeviceState.FREE and plugId in self._expired
            if state in (DeviceState.BOUND, DeviceState.ERROR) and plugId in self._released:
                isLeftOver = True
            if isLeftOver or (state is DeviceState.BOUND and self._isForbidden(device)):
                return Action.DETACH
        self._expired.discard(plugId)
        if state is DeviceState.FREE:
            self._released.discard(plugId)
        return None

    def _isForbidden(self, device: UsbDevice) -> bool:
        isOurs = self._operations.hasBound(device) or self._view.desired.of(device) is not None
        return isOurs and self._view.rule(device).share is Share.NEVER

    def _noteTrouble(self, device: UsbDevice) -> None:
        """
        End the pause after failures of a device whose trouble is over: it was authorized, or
        answers again.
        """
        if device.trouble is not None:
            self._troubled.add(device.plugId)
        elif device.plugId in self._troubled:
            self._troubled.discard(device.plugId)
            self._failures.pop(device.plugId, None)
            self._cancelRetry(device.plugId)

    def _isPausing(self, device: UsbDevice) -> bool:
        plugId = device.plugId
        if plugId not in self._timers:
            return False
        if plugId in self._failures or device.driver is None:
            return True
        self._timers.pop(plugId).cancel()  # its driver has taken the device
        return False

    def _begin(self, action: Action, device: UsbDevice) -> None:
        plugId = device.plugId
        _, knownError = self._failures.get(plugId, (0, None))
        self._operations.begin(
            action,
            self._view.now(device),
            DAEMON,
            lambda: partial(self._ended, plugId),
            isReported=True,
            knownError=knownError,
        )

    def _ended(self, plugId: PlugId, error: ShareError | None) -> None:
        device = self._view.source.get(plugId.busId)
        if error is None or device is None or device.plugId != plugId:
            self._failures.pop(plugId, None)
            return
        count = self._failures.get(plugId, (0, ""))[0] + 1
        self._failures[plugId] = count, str(error)
        self._retryIn(RETRY.after(count), plugId)

    def _retryIn(self, seconds: float, plugId: PlugId) -> None:
        if self._isRunning:
            self._timers[plugId] = self._clock.callLater(seconds, self._retry, plugId)

    def _retry(self, plugId: PlugId) -> None:
        self._timers.pop(plugId, None)
        self.reconcile(plugId.busId)

    def _forget(self, device: UsbDevice) -> None:
        plugId = device.plugId
        self._operations.forget(device)
        for plugIds in (self._detached, self._expired, self._released, self._driverless):
            plugIds.discard(plugId)
        self._troubled.discard(plugId)
        self._failures.pop(plugId, None)
        self._cancelRetry(plugId)
        self._view.desired.removed(device)

    def _cancelRetry(self, plugId: PlugId) -> None:
        timer = self._timers.pop(plugId, None)
        if timer is not None and timer.active():
            timer.cancel()
