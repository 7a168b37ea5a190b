"""
The devices as clients see them: those of the backend, with what the configuration and
clients have said of them, and without those that are nobody's business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import msgspec
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from usbip_server.model.device import DeviceState, UsbDevice
from usbip_server.model.inventory import Change, ChangeKind, Inventory
from usbip_server.model.rules import Rules, Share
from usbip_server.server.devices.desired import DesiredState


class DeviceView:
    """
    Keeps an inventory in step with the backend's.

    @ivar inventory: the devices that clients see.
    """

    def __init__(
        self,
        source: Inventory,
        rules: Rules,
        wishes: DesiredState,
        damper: FlapDamper,
        seq: int = 0,
    ) -> None:
        """
        @param source: the backend's.
        @param seq: what the numbers of the changes begin behind.
        """
        self.inventory = Inventory(seq)
        self._source = source
        self._rules = rules
        self._wishes = wishes
        self._damper = damper
        source.subscribe(self._changed)
        self.refresh()

    def refresh(self, busIds: Iterable[str] | None = None) -> None:
        """Look again at some devices, or (C{None}) at all."""
        if busIds is None:
            known = (*self._source.snapshot.devices, *self.inventory.snapshot.devices)
            busIds = {device.busId for device in known}
        among = frozenset(busIds)
        shown = (self._shown(busId) for busId in among)
        self.inventory.replace([device for device in shown if device is not None], among)

    def now(self, device: UsbDevice) -> UsbDevice:
        """A device as it is shown now, or was."""
        return self.inventory.same(device) or device

    def _changed(self, changes: tuple[Change, ...]) -> None:
        for change in changes:
            if change.kind is ChangeKind.ADDED:
                self._damper.plugged(change.device.busId)
                self._wishes.moved(change.device)
        self.refresh({change.device.busId for change in changes})

    def _shown(self, busId: str) -> UsbDevice | None:
        trouble = self._damper.trouble(busId)
        device = self._source.get(busId)
        if trouble is not None:
            device = self.inventory.get(busId) or device
        if device is None:
            return None
        rule, wish = self._rules.of(device), self._wishes.of(device)
        if rule.share is Share.NEVER:
            return None
        lease = None if wish is None else wish.lease
        if trouble is not None:
            device = msgspec.structs.replace(
                device, state=DeviceState.ERROR, holder=None, trouble=trouble
            )
        if (device.name, device.lease) == (rule.name, lease):
            return device
        return msgspec.structs.replace(device, name=rule.name, lease=lease)


OFTEN = 6
"""Plugs within L{WINDOW} that are too many; to flash a board takes two or three."""

WINDOW = 10.0
"""Seconds."""

FIRST_PAUSE = 2.0
"""Seconds; each further pause is twice as long."""

LONGEST_PAUSE = 60.0
"""Seconds."""


class _Port:
    """
    What is remembered of one bus id.
    """

    def __init__(self) -> None:
        self.plugs: deque[float] = deque(maxlen=OFTEN)
        self.pause = FIRST_PAUSE
        self.count = 0
        self.timer: IDelayedCall | None = None


class FlapDamper:
    """
    Says which bus ids are to be left alone for a while, as too much happens there.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, onRest: Callable[[str], None]) -> None:
        """
        @param onRest: called with the bus id when a pause is over.
        """
        self._clock = clock
        self._onRest = onRest
        self._ports: dict[str, _Port] = {}

    def plugged(self, busId: str) -> None:
        """Something was plugged in."""
        port = self._ports.setdefault(busId, _Port())
        now = self._clock.seconds()
        port.plugs.append(now)
        port.count += 1
        if port.timer is None and len(port.plugs) == OFTEN and now - port.plugs[0] < WINDOW:
            self._log.warn(
                "{busId} is flapping: plugged in {count} times within {window:g} s; left alone for "
                "{pause:g} s",
                busId=busId,
                count=OFTEN,
                window=WINDOW,
                pause=port.pause,
            )
            port.count = OFTEN
            port.timer = self._clock.callLater(port.pause, self._paused, busId)
        self._forget(now)

    def trouble(self, busId: str) -> str | None:
        """
        What is the matter with a bus id that is to be left alone; C{None} for any other.
        """
        port = self._ports.get(busId)
        if port is None or port.timer is None:
            return None
        return (
            f"flapping: plugged in {OFTEN} times within {WINDOW:g} s, so it is left alone for "
            f"{port.pause:g} s. Is it a loose plug, a weak power supply, or a board that resets?"
        )

    def stop(self) -> None:
        """End all pauses, and say nothing more."""
        for port in self._ports.values():
            if port.timer is not None and port.timer.active():
                port.timer.cancel()
        self._ports.clear()

    def _paused(self, busId: str) -> None:
        port = self._ports[busId]
        port.timer = None
        if port.count > OFTEN:  # it went on meanwhile
            port.pause = min(2 * port.pause, LONGEST_PAUSE)
        port.plugs.clear()
        self._onRest(busId)

    def _forget(self, now: float) -> None:
        """
        Forget those where nothing has happened for long.
        """
        calm = now - LONGEST_PAUSE - WINDOW
        for busId, port in tuple(self._ports.items()):
            if port.timer is None and (not port.plugs or port.plugs[-1] < calm):
                del self._ports[busId]
