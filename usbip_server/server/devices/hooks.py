"""
Runs the hooks of an event; C{before_bind} hooks may veto.
"""

from __future__ import annotations

from collections.abc import Callable

from usbip_server.model.device import UsbDevice
from usbip_server.model.devicerules import Occasion
from usbip_server.model.policy import Principal
from usbip_server.model.replies import Notice, encodeDevices
from usbip_server.model.timestamps import timestamp
from usbip_server.runtime.hookrunner import HookRunner
from usbip_server.server.config import LiveSettings
from usbip_server.server.devices.events import Event


class HookDispatcher:
    """
    Finds the configured hooks for an event, and has a L{HookRunner} run them.
    """

    def __init__(
        self, settings: LiveSettings, runner: HookRunner, now: Callable[[], float]
    ) -> None:
        """
        @param now: the time, in seconds since the epoch.
        """
        self._settings = settings
        self._runner = runner
        self._now = now

    def happened(self, event: Event) -> None:
        """Run the hooks for an event."""
        for hook in self._settings.rules.hooks(event.device, Occasion(event.kind.value)):
            self._runner.call(hook, event.device.busId, event.line(detail=True).rstrip())

    def failed(self, device: UsbDevice, message: str) -> None:
        """Run the hooks for a failed operation on a device."""
        for hook in self._settings.rules.hooks(device, Occasion.FAILED):
            self._runner.call(hook, device.busId, self._notice(Occasion.FAILED, device, message))

    async def objection(self, device: UsbDevice, principal: Principal) -> str | None:
        """
        Run the C{before_bind} hooks of a device.

        @param principal: for whom it is to be bound.
        @return: why a hook refuses, for the client: of the hook it contains the name and the
            reason that the hook gives, and nothing that may be secret. C{None} if none refuses.
        """
        for hook in self._settings.rules.hooks(device, Occasion.BEFORE_BIND):
            body = self._notice(Occasion.BEFORE_BIND, device, f"asked for by {principal}")
            reason = await self._runner.ask(hook, device.busId, body)
            if reason is not None:
                if hook.name is None:
                    return f"a hook refuses: {reason}"
                return f"the hook `{hook.name}` refuses: {reason}"
        return None

    def _notice(self, occasion: Occasion, device: UsbDevice, message: str) -> bytes:
        notice = Notice(
            event=occasion.value,
            time=timestamp(self._now()),
            data=encodeDevices(device, detail=True),
            message=message,
        )
        return notice.encode().rstrip()
