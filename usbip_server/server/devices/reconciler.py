"""
Keeps devices as they are wanted: bound, if the configuration or a client says so, whatever
happens to them meanwhile.
"""

from __future__ import annotations

from functools import partial

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from usbip_server.model.device import DeviceState, UsbDevice
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

Stay = tuple[str, int]
"""Bus id and device number."""


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
        self._resting: set[Stay] = set()
        self._expired: set[Stay] = set()
        self._released: set[Stay] = set()
        self._driverless: set[Stay] = set()
        self._failures: dict[Stay, tuple[float, str]] = {}
        self._timers: dict[Stay, IDelayedCall] = {}

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
        if verb == "attach" and device.driver is None and _stay(device) not in self._driverless:
            self._driverless.add(_stay(device))
            self._lookIn(NO_DRIVER, _stay(device))
        elif verb is not None:
            self._do(verb, device)

    def wants(self, device: UsbDevice) -> bool:
        """Is a device to be bound?"""
        share = self._rules.of(device).share
        if share is Share.NEVER:
            return False
        if self._wishes.of(device) is not None:
            return True
        return share is Share.ALWAYS and _stay(device) not in self._resting

    def rest(self, device: UsbDevice) -> None:
        """
        A client has detached a device that is always shared: it is left alone until it is
        plugged in anew, or somebody wants it.
        """
        self._resting.add(_stay(device))

    def wake(self, device: UsbDevice) -> None:
        """Somebody wants a device."""
        self._resting.discard(_stay(device))

    def leaseEnded(self, wish: DesiredDevice) -> None:
        """
        Take a device from whoever has it by a lease that is over.
        """
        device = self._source.get(wish.busId)
        if device is not None and wish.isFor(device):
            self._expired.add(_stay(device))
            self.look(device.busId)

    def letGo(self, device: UsbDevice) -> None:
        """
        A client is done with a device: unbind it as soon as it is not in use any more, if
        nobody wants it.
        """
        if self._source.same(device) is not None and not self.wants(device):
            self._released.add(_stay(device))
            self.look(device.busId)

    def taken(self, device: UsbDevice) -> None:
        """Another client has imported a device."""
        self._released.discard(_stay(device))

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
        stay, state = _stay(device), device.state
        if self.wants(device):
            if state in (DeviceState.FREE, DeviceState.ERROR):
                return "attach"
            if state is DeviceState.IN_USE and stay in self._expired:
                return "kick"
        else:
            isLeftOver = state is not DeviceState.FREE and stay in self._expired
            if state in (DeviceState.BOUND, DeviceState.ERROR) and stay in self._released:
                isLeftOver = True
            if isLeftOver or (state is DeviceState.BOUND and self._isForbidden(device)):
                return "detach"
        self._expired.discard(stay)
        if state is DeviceState.FREE:
            self._released.discard(stay)
        return None

    def _isForbidden(self, device: UsbDevice) -> bool:
        isOurs = self._operations.hasBound(device) or self._wishes.of(device) is not None
        return isOurs and self._rules.of(device).share is Share.NEVER

    def _isPausing(self, device: UsbDevice) -> bool:
        stay = _stay(device)
        if stay not in self._timers:
            return False
        if stay in self._failures or device.driver is None:
            return True
        self._timers.pop(stay).cancel()  # the driver that was waited for has come
        return False

    def _do(self, verb: str, device: UsbDevice) -> None:
        stay = _stay(device)
        _, known = self._failures.get(stay, (0.0, None))
        self._operations.begin(
            verb,
            self._catalogue.now(device),
            ITSELF,
            lambda: partial(self._done, stay),
            heard=True,
            known=known,
        )

    def _done(self, stay: Stay, error: ShareError | None) -> None:
        device = self._source.get(stay[0])
        if error is None or device is None or _stay(device) != stay:
            self._failures.pop(stay, None)
            return
        pause, _ = self._failures.get(stay, (FIRST_PAUSE, ""))
        self._failures[stay] = min(2 * pause, LONGEST_PAUSE), str(error)
        self._lookIn(pause, stay)

    def _lookIn(self, seconds: float, stay: Stay) -> None:
        if self._running:
            self._timers[stay] = self._clock.callLater(seconds, self._again, stay)

    def _again(self, stay: Stay) -> None:
        self._timers.pop(stay, None)
        self.look(stay[0])

    def _changed(self, changes: tuple[Change, ...]) -> None:
        for change in changes:
            if change.kind is ChangeKind.REMOVED:
                self._forget(change.device)
            else:
                self.look(change.device.busId)

    def _forget(self, device: UsbDevice) -> None:
        stay = _stay(device)
        self._operations.forget(device)
        for stays in (self._resting, self._expired, self._released, self._driverless):
            stays.discard(stay)
        self._failures.pop(stay, None)
        timer = self._timers.pop(stay, None)
        if timer is not None and timer.active():
            timer.cancel()
        if not self._wishes.remember:
            wish = self._wishes.of(device)
            if wish is not None and wish.lease is None:
                self._wishes.withdraw(device)


def _stay(device: UsbDevice) -> Stay:
    return device.busId, device.deviceNumber
