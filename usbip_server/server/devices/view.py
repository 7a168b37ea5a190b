"""
The devices as clients see them: the backend's, with the names, leases and rules of the
configuration and of clients, and without those that are never shared.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import msgspec
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from usbip_server.interfaces import IUsbBackend
from usbip_server.model.device import DeviceState, Traffic, UsbDevice, busOrder
from usbip_server.model.devicerules import Rule, Share
from usbip_server.model.inventory import Change, ChangeKind, Inventory
from usbip_server.runtime.backoff import BackoffOptions
from usbip_server.server.config import LiveSettings
from usbip_server.server.devices.desiredstate import DesiredState
from usbip_server.server.sessions import SessionTable


class DeviceView:
    """
    Everything that is known of the devices: what the backend reports, what is configured, what
    is desired, and which bus ids are flapping.

    @ivar source: the backend's devices.
    @ivar inventory: the devices that clients see.
    @ivar settings: the settings in force.
    @ivar desired: the devices that clients have attached or leased.
    @ivar damper: the bus ids that are left alone for a while.
    @ivar sessions: the USB/IP sessions in progress.
    """

    def __init__(
        self,
        backend: IUsbBackend,
        settings: LiveSettings,
        desired: DesiredState,
        damper: FlapDamper,
        sessions: SessionTable,
        seq: int = 0,
    ) -> None:
        """
        @param seq: the number before that of the first change.
        """
        self.source: Inventory = backend.inventory
        self.inventory = Inventory(seq)
        self.settings = settings
        self.desired = desired
        self.damper = damper
        self.sessions = sessions
        self._backend = backend
        self.refresh()

    @property
    def devices(self) -> tuple[UsbDevice, ...]:
        """The devices that clients see, in bus order: the same tuple until something changes."""
        return self.inventory.snapshot.devices

    def away(self) -> tuple[UsbDevice, ...]:
        """The desired devices that are not plugged in, with their names, in bus order."""
        devices = sorted(self.desired.away(), key=lambda device: busOrder(device.busId))
        return tuple(
            msgspec.structs.replace(device, name=self.rule(device).name) for device in devices
        )

    def unavailable(self) -> list[tuple[UsbDevice, str]]:
        """Devices that cannot be selected, with the reason of each."""
        excluded = [(it, f"{it} {it.trouble}") for it in self.source.excluded.values()]
        away = [(it, f"{it} was attached and is not plugged in now") for it in self.away()]
        return excluded + away

    def rule(self, device: UsbDevice) -> Rule:
        """The configured rule for a device."""
        return self.settings.rules.of(device)

    def now(self, device: UsbDevice) -> UsbDevice:
        """A device as clients see it now; as it was if it is gone."""
        return self.inventory.same(device) or device

    def traffic(self, device: UsbDevice) -> Traffic | None:
        """The bytes that the holder of a device has transferred, if that is known."""
        if device.holder is None:
            return None
        return self.sessions.traffic(device) or self._backend.traffic(device)

    def refresh(self, busIds: Iterable[str] | None = None) -> None:
        """Update the devices at some bus ids, or (C{None}) at all of them."""
        if busIds is None:
            known = (*self.source.snapshot.devices, *self.inventory.snapshot.devices)
            busIds = {device.busId for device in known}
        among = frozenset(busIds)
        shown = (self._shown(busId) for busId in among)
        self.inventory.replace([device for device in shown if device is not None], among)

    def update(self, changes: tuple[Change, ...]) -> None:
        """Apply changes of the backend's devices."""
        for change in changes:
            if change.kind is ChangeKind.REMOVED:
                self.desired.gone(change.device)
            elif change.kind is ChangeKind.ADDED:
                self.damper.plugged(change.device.busId)
        self.desired.added(change.device for change in changes if _isNew(change))
        self.refresh({change.device.busId for change in changes})

    def _shown(self, busId: str) -> UsbDevice | None:
        trouble = self.damper.trouble(busId)
        device = self.source.get(busId)
        if trouble is not None:
            device = self.inventory.get(busId) or device
        if device is None:
            return None
        rule, desired = self.rule(device), self.desired.of(device)
        if rule.share is Share.NEVER:
            return None
        lease = None if desired is None else desired.lease
        if trouble is not None:
            device = msgspec.structs.replace(
                device, state=DeviceState.ERROR, holder=None, trouble=trouble
            )
        if (device.name, device.lease) == (rule.name, lease):
            return device
        return msgspec.structs.replace(device, name=rule.name, lease=lease)


def _isNew(change: Change) -> bool:
    """Has a device been plugged in, or has it answered only now who it is?"""
    before = () if change.before is None else change.before.unknown
    return change.kind is ChangeKind.ADDED or "serial" in {*before} - {*change.device.unknown}


OFTEN = 6
"""Plug-ins within L{WINDOW} that count as flapping; flashing a board takes two or three."""

WINDOW = 10.0
"""Seconds."""

PAUSES = BackoffOptions(first=2.0, longest=60.0)
"""The time that a port is left alone: longer each time that devices go on flapping."""


class _Port:
    """
    The recent plug-ins at one bus id.
    """

    def __init__(self) -> None:
        self.plugs: deque[float] = deque(maxlen=OFTEN)
        self.pauses = 1
        self.count = 0
        self.timer: IDelayedCall | None = None


class FlapDamper:
    """
    Detects bus ids where a device appears again and again, and suspends them for a while.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, onResume: Callable[[str], None]) -> None:
        """
        @param onResume: called with the bus id when its pause is over.
        """
        self._clock = clock
        self._onResume = onResume
        self._ports: dict[str, _Port] = {}

    def plugged(self, busId: str) -> None:
        """Count a device that was plugged in."""
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
                pause=PAUSES.after(port.pauses),
            )
            port.count = OFTEN
            port.timer = self._clock.callLater(PAUSES.after(port.pauses), self._resume, busId)
        self._forget(now)

    def trouble(self, busId: str) -> str | None:
        """Why a bus id is suspended; C{None} if it is not."""
        port = self._ports.get(busId)
        if port is None or port.timer is None:
            return None
        return (
            f"flapping: plugged in {OFTEN} times within {WINDOW:g} s, so it is left alone for "
            f"{PAUSES.after(port.pauses):g} s. Is it a loose plug, a weak power supply, or a board "
            "that resets?"
        )

    def stop(self) -> None:
        """End all pauses without calling C{onResume}."""
        for port in self._ports.values():
            if port.timer is not None and port.timer.active():
                port.timer.cancel()
        self._ports.clear()

    def _resume(self, busId: str) -> None:
        port = self._ports[busId]
        port.timer = None
        if port.count > OFTEN:  # it went on during the pause
            port.pauses += 1
        port.plugs.clear()
        self._onResume(busId)

    def _forget(self, now: float) -> None:
        """Forget bus ids without a recent plug-in."""
        calm = now - PAUSES.longest - WINDOW
        for busId, port in tuple(self._ports.items()):
            if port.timer is None and (not port.plugs or port.plugs[-1] < calm):
                del self._ports[busId]
