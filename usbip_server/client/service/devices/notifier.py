"""
Whoever is to know what becomes of devices is told: watchers, hooks, the log, and the links to
nodes.
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
from usbip_server.client.service.config import Moment
from usbip_server.client.service.devices.attachments import Attachment
from usbip_server.client.service.devices.desired import DesiredAttachment
from usbip_server.client.service.devices.events import Item, ServiceEvents, Word
from usbip_server.client.service.devices.symlinks import Symlinks
from usbip_server.model.errors import LocalTrouble
from usbip_server.runtime.hookrunner import HookRunner

LOOKS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between looks at the nodes of what was just plugged in: a driver may have to be loaded
first, or a disk be scanned."""


class Notifier:
    """
    Does it.

    @ivar symlinks: where links are.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        news: ServiceEvents,
        hooks: HookRunner,
        symlinks: Symlinks,
        look: Callable[[], Awaitable[tuple[Attached, ...]]],
    ) -> None:
        """
        @param reactor: provides C{IReactorTime}.
        @param look: tells what is plugged in now.
        """
        self.symlinks = symlinks
        self._reactor = reactor
        self._news = news
        self._hooks = hooks
        self._look = look
        self._timers: dict[Attachment, IDelayedCall] = {}

    def attached(self, plug: Attachment) -> None:
        """A device was plugged in."""
        self.relink(plug)
        self._log.info(
            "{device} of {server} is plugged in at port {port}: {nodes}",
            device=str(plug.device),
            server=str(plug.server),
            port=plug.attached.port,
            nodes=" ".join(plug.nodes) or "no nodes",
        )
        self._lookLater(plug, 0)
        self._call(Moment.ATTACHED, plug, self._item(Word.ATTACHED, plug))

    def adopted(self, plug: Attachment) -> None:
        """One was plugged in already."""
        self.relink(plug)
        self._log.info(
            "{device} of {server} is plugged in already, at port {port}",
            device=str(plug.device),
            server=str(plug.server),
            port=plug.attached.port,
        )
        self._lookLater(plug, 0)
        self._item(Word.ATTACHED, plug)

    def lost(self, plug: Attachment, why: str) -> None:
        """A device is not plugged in any more."""
        self._log.info(
            "{device} of {server} is not plugged in any more: {why}",
            device=str(plug.device),
            server=str(plug.server),
            why=why,
        )
        timer = self._timers.pop(plug, None)
        if timer is not None and timer.active():
            timer.cancel()
        if plug.want.symlink:
            self.symlinks.hide(plug.want.name)
        plug.attached = msgspec.structs.replace(plug.attached, nodes=())
        self._call(Moment.LOST, plug, self._item(Word.LOST, plug, why))

    def failed(self, want: DesiredAttachment, found: RemoteDevice, why: str) -> None:
        """A device could not be plugged in."""
        self._log.warn("{device} cannot be plugged in: {why}", device=str(found), why=why)
        self._news.happened(Word.FAILED, found.server, found.device, rule=want.rule, message=why)

    def relink(self, plug: Attachment) -> None:
        """Let the links to a device's nodes be as they should."""
        if plug.want.symlink:
            self.symlinks.show(plug.want.name, plug.nodes)

    def tidy(self, wants: Iterable[DesiredAttachment]) -> None:
        """What an earlier service has left of the links to these is not true any more."""
        for want in wants:
            if want.symlink:
                self.symlinks.hide(want.name)

    def stop(self) -> None:
        """Look at no nodes any more."""
        for timer in self._timers.values():
            if timer.active():
                timer.cancel()
        self._timers.clear()

    def _lookLater(self, plug: Attachment, number: int) -> None:
        if number < len(LOOKS):
            self._timers[plug] = self._reactor.callLater(
                LOOKS[number], self._lookAgain, plug, number + 1
            )

    def _lookAgain(self, plug: Attachment, number: int) -> None:
        Deferred.fromCoroutine(self._lookNow(plug, number)).addErrback(
            lambda failure: self._log.failure("a bug in looking at nodes", failure)
        )

    async def _lookNow(self, plug: Attachment, number: int) -> None:
        try:
            ports = await self._look()
        except LocalTrouble:
            ports = ()
        if plug not in self._timers:
            return
        for now in ports:
            isSame = (now.port, now.localBusId) == (plug.attached.port, plug.attached.localBusId)
            if isSame and now.nodes != plug.nodes:
                plug.attached = msgspec.structs.replace(plug.attached, nodes=now.nodes)
                self.relink(plug)
                self._item(Word.NODES, plug)
        self._lookLater(plug, number)

    def _item(self, word: Word, plug: Attachment, message: str | None = None) -> Item:
        return self._news.happened(
            word, plug.server, plug.device, plug.nodes, plug.want.rule, message
        )

    def _call(self, moment: Moment, plug: Attachment, item: Item) -> None:
        for hook in plug.want.hooks:
            if moment in hook.events:
                self._hooks.call(hook, plug.device.busId, item.line(detail=True).rstrip())
