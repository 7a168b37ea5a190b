"""
The client service as a Twisted service: it starts, listens to this machine's programs, keeps
devices plugged in, and stops.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from usbip_server.client.service.config import OnStop, SocketConfig
from usbip_server.client.service.core import Core
from usbip_server.client.service.devices.attachments import Attachment
from usbip_server.client.service.devices.operations import CannotPlug
from usbip_server.net.endpoints import BACKLOG, CannotListen, explain
from usbip_server.runtime.service import Rereading, notify

CLOSING_SECONDS = 2.0
"""For clients to take their last answers when the service stops."""


class ClientService(Service):
    """
    Runs the parts.
    """

    _log = Logger()

    def __init__(
        self, parts: Core, reactor: Any, reload: Callable[[ClientService], Awaitable[None]]
    ) -> None:
        """
        @param reload: called on SIGHUP.
        """
        self.parts = parts
        self._reactor = reactor
        self._rereading = Rereading(reactor, lambda: reload(self))
        self._socket: SocketConfig | None = None
        self._port: IListeningPort | None = None

    def startService(self) -> None:
        """
        Find out what is plugged in, and begin.

        @raise Deaf: it cannot listen.
        """
        super().startService()
        self._rereading.start()
        self._listen(self.parts.config.socket)
        Deferred.fromCoroutine(self._start()).addErrback(
            lambda failure: self._log.failure("the service does not start", failure)
        )

    def stopService(self) -> Deferred[None]:
        """
        Answer what is in progress, and end.
        """
        super().stopService()
        self._rereading.stop()
        return Deferred.fromCoroutine(self._stop())

    async def listenAt(self, config: SocketConfig) -> None:
        """
        Listen there, and nowhere else.

        @raise Deaf: that is not possible.
        """
        if self._socket != config:
            await self._listenNowhere()
            self._listen(config)

    def _listen(self, config: SocketConfig) -> None:
        """
        @raise Deaf: that is not possible.
        """
        groups = {*config.allowGids}
        if config.path is not None:
            try:
                groups.add(self._opened(config.path, config))
            except Exception as error:  # Twisted has several
                raise CannotListen(explain(f"unix:{config.path}", error)) from error
            self._log.info("listening on {path}", path=config.path)
        self._socket = config
        self.parts.doorkeeper.become(config.allowUids, [*groups])

    def _opened(self, path: str, config: SocketConfig) -> int:
        """
        @return: the group of the socket.
        """
        os.makedirs(os.path.dirname(path) or ".", 0o755, exist_ok=True)
        self._port = self._reactor.listenUNIX(
            path, self.parts.factory, BACKLOG, config.permissions, wantPID=True
        )
        group = config.groupId()
        if group is not None:
            os.chown(path, -1, group)
        return os.stat(path).st_gid

    async def _listenNowhere(self) -> None:
        port, self._port = self._port, None
        self._socket = None
        closing = None if port is None else port.stopListening()
        if closing is not None:
            await closing

    async def _start(self) -> None:
        parts = self.parts
        if parts.stateFile is not None:
            parts.wants.load(parts.stateFile.open())
        await parts.orphans.find()
        parts.watch()
        parts.keeping.start()
        self._log.info("ready")
        notify("READY=1")

    async def _stop(self) -> None:
        notify("STOPPING=1")
        parts = self.parts
        timeouts = parts.config.timeouts
        await self._listenNowhere()
        parts.keeping.stop()
        parts.links.stop()
        if parts.config.onStop is OnStop.DETACH:
            await parts.keeping.idle(timeouts.stop)
            letting = [Deferred.fromCoroutine(self._letGo(plug)) for plug in parts.plugs]
            work = gatherResults(letting).addTimeout(timeouts.stop, self._reactor)
            await work.addErrback(lambda failure: None)
        parts.plugs.stop()
        parts.telling.stop()
        await parts.hooks.stop(timeouts.stop)
        if parts.stateFile is not None:
            await parts.stateFile.close(timeouts.stop)
        parts.calls.stop()
        await parts.factory.close(CLOSING_SECONDS)
        self._log.info("stopped")

    async def _letGo(self, plug: Attachment) -> None:
        try:
            await self.parts.keeping.letGo(plug)
        except CannotPlug as error:
            self._log.warn(
                "{device} stays plugged in: {error}", device=str(plug.device), error=str(error)
            )
