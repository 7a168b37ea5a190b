"""
Publishes what happens to attached devices: events, hooks, log lines, and symlinks to their nodes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from usbip_server.client.attach import Attached
from usbip_server.client.devices import RemoteDevice
from usbip_server.client.service.config import HookEvent
from usbip_server.client.service.devices.attachments import Attachment
from usbip_server.client.service.devices.desiredstate import DesiredAttachment
from usbip_server.client.service.devices.events import ServiceEvent, ServiceEventKind, ServiceEvents
from usbip_server.client.service.devices.symlinks import Symlinks
from usbip_server.model.errors import LocalTrouble
from usbip_server.runtime.hookrunner import HookRunner

POLL_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between polls of the nodes of a newly attached device: the kernel may have to load a
driver, or scan a disk."""


class Notifier:
    """
    One method for each kind of event.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        events: ServiceEvents,
        hooks: HookRunner,
        symlinks: Symlinks,
        ports: Callable[[], Awaitable[tuple[Attached, ...]]],
    ) -> None:
        """
        @param reactor: provides C{IReactorTime}.
        @param ports: lists what is attached to this machine now.
        """
        self._reactor = reactor
        self._events = events
        self._hooks = hooks
        self._symlinks = symlinks
        self._ports = ports
        self._timers: dict[Attachment, IDelayedCall] = {}

    def attached(self, attachment: Attachment) -> None:
        """A device was attached."""
        event = self._begun(attachment, "{device} at {server} attached to port {port}: {nodes}")
        self._runHooks(HookEvent.ATTACHED, attachment, event)

    def adopted(self, attachment: Attachment) -> None:
        """A device that was attached already is kept attached from now on. No hook is run."""
        self._begun(attachment, "{device} at {server} adopted at port {port}: {nodes}")

    def lost(self, attachment: Attachment, reason: str) -> None:
        """A device is not attached any more."""
        self._log.info(
            "{device} at {server} detached: {reason}",
            device=str(attachment.device),
            server=str(attachment.server),
            reason=reason,
        )
        timer = self._timers.pop(attachment, None)
        if timer is not None and timer.active():
            timer.cancel()
        attachment.attached = msgspec.structs.replace(attachment.attached, nodes=())
        self.relink(attachment)
        event = self._record(ServiceEventKind.LOST, attachment, reason)
        self._runHooks(HookEvent.LOST, attachment, event)

    def failed(self, desired: DesiredAttachment, found: RemoteDevice, reason: str) -> None:
        """A device could not be attached."""
        self._log.warn("cannot attach {device}: {reason}", device=str(found), reason=reason)
        self._events.record(
            ServiceEventKind.FAILED, found.server, found.device, rule=desired.rule, message=reason
        )

    def relink(self, attachment: Attachment) -> None:
        """Let the symlinks fit the nodes of a device and the configuration."""
        desired = attachment.desired
        if desired.symlink or self._symlinks.isShown(desired.name):
            self._symlinks.show(desired.name, attachment.nodes if desired.symlink else ())

    def tidy(self, unattached: Iterable[DesiredAttachment]) -> None:
        """Remove the symlinks that an earlier process has left for devices not attached now."""
        for desired in unattached:
            if desired.symlink:
                self._symlinks.hide(desired.name)

    def stop(self) -> None:
        """Stop polling nodes."""
        for timer in self._timers.values():
            if timer.active():
                timer.cancel()
        self._timers.clear()

    def _begun(self, attachment: Attachment, message: str) -> ServiceEvent:
        self.relink(attachment)
        self._log.info(
            message,
            device=str(attachment.device),
            server=str(attachment.server),
            port=attachment.attached.port,
            nodes=" ".join(attachment.nodes) or "no nodes yet",
        )
        self._pollLater(attachment, 0)
        return self._record(ServiceEventKind.ATTACHED, attachment)

    def _pollLater(self, attachment: Attachment, number: int) -> None:
        if number < len(POLL_PAUSES):
            self._timers[attachment] = self._reactor.callLater(
                POLL_PAUSES[number], self._poll, attachment, number + 1
            )

    def _poll(self, attachment: Attachment, number: int) -> None:
        Deferred.fromCoroutine(self._pollNow(attachment, number)).addErrback(
            lambda failure: self._log.failure("bug while polling device nodes", failure)
        )

    async def _pollNow(self, attachment: Attachment, number: int) -> None:
        try:
            ports = await self._ports()
        except LocalTrouble:
            ports = ()
        if attachment not in self._timers:
            return
        known = attachment.attached
        for now in ports:
            isSame = (now.port, now.localBusId) == (known.port, known.localBusId)
            if isSame and now.nodes != known.nodes:
                attachment.attached = msgspec.structs.replace(known, nodes=now.nodes)
                self.relink(attachment)
                self._record(ServiceEventKind.NODES, attachment)
        self._pollLater(attachment, number)

    def _record(
        self, kind: ServiceEventKind, attachment: Attachment, reason: str | None = None
    ) -> ServiceEvent:
        rule = attachment.desired.rule
        return self._events.record(
            kind, attachment.server, attachment.device, attachment.nodes, rule, reason
        )

    def _runHooks(self, kind: HookEvent, attachment: Attachment, event: ServiceEvent) -> None:
        for hook in attachment.desired.hooks:
            if kind in hook.events:
                line = event.line(detail=True).rstrip()
                self._hooks.call(hook, attachment.device.busId, line)
