"""
Keeps devices as they are wanted: bound, if the configuration or a client says so, whatever
happens to them meanwhile.
"""

from __future__ import annotations

from functools import partial

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from usbip_server.model.device import DeviceState, PlugId, UsbDevice
from usbip_server.model.errors import ShareError
from usbip_server.model.inventory import Change, ChangeKind, Inventory
from usbip_server.model.policy import Principal
from usbip_server.model.rules import Rules, Share
from usbip_server.server.devices.desired import DesiredDevice, DesiredState
from usbip_server.server.devices.operations import Operations
from usbip_server.server.devices.view import DeviceView, FlapDamper

ITSELF = Principal("usbipshare")
"""Who asks for what the keeper does."""

NO_DRIVER = 1.0
"""Seconds for this machine's own driver to take a new device; to interrupt it does no good."""

FIRST_PAUSE = 1.0
"""Seconds until a bind that failed is tried again; each further pause is twice as long."""

LONGEST_PAUSE = 60.0
"""Seconds."""


class Reconciler:
    """
    Binds devices that are to be bound, and gives back those that are not.
    """

    def __init__(
        self,
        source: Inventory,
        catalogue: DeviceView,
        rules: Rules,
        wishes: DesiredState,
        damper: FlapDamper,
        operations: Operations,
        clock: IReactorTime,
    ) -> None:
        """
        @param source: the backend's inventory: it has also what clients do not see.
        """
        self._source = source
        self._catalogue = catalogue
        self._rules = rules
        self._wishes = wishes
        self._damper = damper
        self._operations = operations
        self._clock = clock
        self._running = False
        self._resting: set[PlugId] = set()
        self._expired: set[PlugId] = set()
        self._released: set[PlugId] = set()
        self._driverless: set[PlugId] = set()
        self._failures: dict[PlugId, tuple[float, str]] = {}
        self._timers: dict[PlugId, IDelayedCall] = {}

    def start(self) -> None:
        """Look at all devices, and at each that changes from now on."""
        self._running = True
        self._source.subscribe(self._changed)
        self.lookAtAll()

    def stop(self) -> None:
        """Do nothing more."""
        self._running = False
        for timer in self._timers.values():
            if timer.active():
                timer.cancel()
        self._timers.clear()

    def lookAtAll(self) -> None:
        """What is wanted may have changed."""
        for device in self._source.snapshot.devices:
            self.look(device.busId)

    def look(self, busId: str) -> None:
        """See to the device there."""
        device = self._source.get(busId)
        if not self._running or device is None or self._damper.trouble(busId) is not None:
            return
        if self._operations.isBusy(busId) or self._isPausing(device):
            return  # it will be looked at when that has ended
        verb = self._missing(device)
        if verb == "attach" and device.driver is None and device.plugId not in self._driverless:
            self._driverless.add(device.plugId)
            self._lookIn(NO_DRIVER, device.plugId)
        elif verb is not None:
            self._do(verb, device)

    def wants(self, device: UsbDevice) -> bool:
        """Is a device to be bound?"""
        share = self._rules.of(device).share
        if share is Share.NEVER:
            return False
        if self._wishes.of(device) is not None:
            return True
        return share is Share.ALWAYS and device.plugId not in self._resting

    def rest(self, device: UsbDevice) -> None:
        """
        A client has detached a device that is always shared: it is left alone until it is
        plugged in anew, or somebody wants it.
        """
        self._resting.add(device.plugId)

    def wake(self, device: UsbDevice) -> None:
        """Somebody wants a device."""
        self._resting.discard(device.plugId)

    def leaseEnded(self, wish: DesiredDevice) -> None:
        """
        Take a device from whoever has it by a lease that is over.
        """
        device = self._source.get(wish.busId)
        if device is not None and wish.isFor(device):
            self._expired.add(device.plugId)
            self.look(device.busId)

    def letGo(self, device: UsbDevice) -> None:
        """
        A client is done with a device: unbind it as soon as it is not in use any more, if
        nobody wants it.
        """
        if self._source.same(device) is not None and not self.wants(device):
            self._released.add(device.plugId)
            self.look(device.busId)

    def taken(self, device: UsbDevice) -> None:
        """Another client has imported a device."""
        self._released.discard(device.plugId)

    def unbindAll(self) -> None:
        """Unbind what this daemon has bound, or would bind."""
        for device in self._source.snapshot.devices:
            isBound = device.state in (DeviceState.BOUND, DeviceState.IN_USE)
            isOurs = self._operations.hasBound(device) or self.wants(device)
            if isBound and isOurs and not self._operations.isBusy(device.busId):
                self._do("detach", device)

    def _missing(self, device: UsbDevice) -> str | None:
        """
        What is to be done to a device so that it is as it is wanted.
        """
        plugId, state = device.plugId, device.state
        if self.wants(device):
            if state in (DeviceState.FREE, DeviceState.ERROR):
                return "attach"
            if state is DeviceState.IN_USE and plugId in self._expired:
                return "kick"
        else:
            isLeftOver = state is not DeviceState.FREE and plugId in self._expired
            if state in (DeviceState.BOUND, DeviceState.ERROR) and plugId in self._released:
                isLeftOver = True
            if isLeftOver or (state is DeviceState.BOUND and self._isForbidden(device)):
                return "detach"
        self._expired.discard(plugId)
        if state is DeviceState.FREE:
            self._released.discard(plugId)
        return None

    def _isForbidden(self, device: UsbDevice) -> bool:
        isOurs = self._operations.hasBound(device) or self._wishes.of(device) is not None
        return isOurs and self._rules.of(device).share is Share.NEVER

    def _isPausing(self, device: UsbDevice) -> bool:
        plugId = device.plugId
        if plugId not in self._timers:
            return False
        if plugId in self._failures or device.driver is None:
            return True
        self._timers.pop(plugId).cancel()  # the driver that was waited for has come
        return False

    def _do(self, verb: str, device: UsbDevice) -> None:
        plugId = device.plugId
        _, known = self._failures.get(plugId, (0.0, None))
        self._operations.begin(
            verb,
            self._catalogue.now(device),
            ITSELF,
            lambda: partial(self._done, plugId),
            heard=True,
            known=known,
        )

    def _done(self, plugId: PlugId, error: ShareError | None) -> None:
        device = self._source.get(plugId.busId)
        if error is None or device is None or device.plugId != plugId:
            self._failures.pop(plugId, None)
            return
        pause, _ = self._failures.get(plugId, (FIRST_PAUSE, ""))
        self._failures[plugId] = min(2 * pause, LONGEST_PAUSE), str(error)
        self._lookIn(pause, plugId)

    def _lookIn(self, seconds: float, plugId: PlugId) -> None:
        if self._running:
            self._timers[plugId] = self._clock.callLater(seconds, self._again, plugId)

    def _again(self, plugId: PlugId) -> None:
        self._timers.pop(plugId, None)
        self.look(plugId.busId)

    def _changed(self, changes: tuple[Change, ...]) -> None:
        for change in changes:
            if change.kind is ChangeKind.REMOVED:
                self._forget(change.device)
            else:
                self.look(change.device.busId)

    def _forget(self, device: UsbDevice) -> None:
        plugId = device.plugId
        self._operations.forget(device)
        for plugIds in (self._resting, self._expired, self._released, self._driverless):
            plugIds.discard(plugId)
        self._failures.pop(plugId, None)
        timer = self._timers.pop(plugId, None)
        if timer is not None and timer.active():
            timer.cancel()
        if not self._wishes.remember:
            wish = self._wishes.of(device)
            if wish is not None and wish.lease is None:
                self._wishes.withdraw(device)
