"""
Tells hooks what happens, and asks those that may say no.
"""

from __future__ import annotations

from collections.abc import Callable

from usbip_server.model.device import UsbDevice
from usbip_server.model.policy import Principal
from usbip_server.model.replies import Notice, encodeDevices
from usbip_server.model.rules import Occasion, Rules
from usbip_server.model.timestamps import timestamp
from usbip_server.runtime.hookrunner import HookRunner
from usbip_server.server.devices.events import Event


class HookDispatcher:
    """
    Finds the hooks for what happens to a device.
    """

    def __init__(self, rules: Rules, hooks: HookRunner, now: Callable[[], float]) -> None:
        """
        @param now: the time, in seconds since the epoch.
        """
        self._rules = rules
        self._hooks = hooks
        self._now = now

    def happened(self, event: Event) -> None:
        """Tell of an event."""
        for hook in self._rules.hooks(event.device, Occasion(event.kind.value)):
            self._hooks.call(hook, event.device.busId, event.line(detail=True).rstrip())

    def failed(self, device: UsbDevice, message: str) -> None:
        """Tell that something done to a device went wrong."""
        for hook in self._rules.hooks(device, Occasion.FAILED):
            self._hooks.call(hook, device.busId, self._notice(Occasion.FAILED, device, message))

    async def objection(self, device: UsbDevice, principal: Principal) -> str | None:
        """
        Ask whether a device may be bound.

        @param principal: for whom.
        @return: why not, if not.
        """
        for hook in self._rules.hooks(device, Occasion.BEFORE_BIND):
            body = self._notice(Occasion.BEFORE_BIND, device, f"asked for by {principal}")
            reason = await self._hooks.ask(hook, device.busId, body)
            if reason is not None:
                return f"the hook `{hook}` says no: {reason}"
        return None

    def _notice(self, occasion: Occasion, device: UsbDevice, message: str) -> bytes:
        return (
            Notice(
                event=occasion.value,
                time=timestamp(self._now()),
                data=encodeDevices(device, detail=True),
                message=message,
            )
            .encode()
            .rstrip()
        )
