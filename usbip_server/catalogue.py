"""
The devices as clients see them: those of the backend, with what the configuration and
clients have said of them, and without those that are nobody's business.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from usbip_server.damper import Damper
from usbip_server.device import DeviceState, UsbDevice
from usbip_server.inventory import Change, ChangeKind, Inventory
from usbip_server.rules import Rules, Share
from usbip_server.wishes import Wishes


class Catalogue:
    """
    Keeps an inventory in step with the backend's.

    @ivar inventory: the devices that clients see.
    """

    def __init__(
        self, source: Inventory, rules: Rules, wishes: Wishes, damper: Damper, seq: int = 0
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
