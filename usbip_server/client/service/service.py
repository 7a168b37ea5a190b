"""
The client service as a Twisted service: listens on the unix socket, reloads its configuration on
SIGHUP, and stops.
"""

from __future__ import annotations

import os
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from usbip_server.client.service.config import LiveSettings, SocketConfig
from usbip_server.client.service.core import Core
from usbip_server.net.endpoints import BACKLOG, CannotListen, explain
from usbip_server.net.unixsocket import listenUnix
from usbip_server.runtime.service import ReloadOnHangup, notify
from usbip_server.runtime.yamlfile import ConfigError

CLOSING_SECONDS = 2.0
"""For clients to receive their last replies when the service stops."""


class ClientService(Service):
    """
    Starts, reloads and stops a L{Core}.
    """

    _log = Logger()

    def __init__(self, path: str, core: Core, reactor: Any) -> None:
        """
        @param path: the configuration file.
        """
        self._path = path
        self._core = core
        self._reactor = reactor
        self._reloads = ReloadOnHangup(reactor, self._reload)
        self._socket: SocketConfig | None = None
        self._port: IListeningPort | None = None

    def startService(self) -> None:
        """
        Listen and start.

        @raise CannotListen: the socket cannot be listened on.
        """
        super().startService()
        self._reloads.start()
        self._listen(self._core.settings.config.socket)
        Deferred.fromCoroutine(self._start()).addErrback(
            lambda failure: self._log.failure("the service cannot start", failure)
        )

    def stopService(self) -> Deferred[None]:
        """
        Stop, after the replies to requests in progress.
        """
        super().stopService()
        self._reloads.stop()
        return Deferred.fromCoroutine(self._stop())

    async def _start(self) -> None:
        await self._core.start()
        self._log.info("ready")
        notify("READY=1")

    async def _stop(self) -> None:
        notify("STOPPING=1")
        await self._close()
        await self._core.stop()
        await self._core.factory.close(CLOSING_SECONDS)
        self._log.info("stopped")

    async def _reload(self) -> None:
        before = self._core.settings.config
        try:
            settings = LiveSettings.read(self._path)
            await self._move(settings.config.socket)
        except (ConfigError, CannotListen) as error:
            self._log.error(
                "reload failed, keeping the old configuration: {error}", error=str(error)
            )
            return
        if settings.config.state != before.state:
            self._log.warn("changing `state.file` needs a restart")
        self._core.reload(settings.config, settings.servers)
        self._log.info("configuration reloaded")

    async def _move(self, config: SocketConfig) -> None:
        """
        Listen on another socket.

        @raise CannotListen: that is not possible; then it listens on the old one again.
        """
        before = self._socket
        if before == config:
            return
        await self._close()
        try:
            self._listen(config)
        except CannotListen:
            if before is not None:
                self._listen(before)
            raise

    def _listen(self, config: SocketConfig) -> None:
        """
        @raise CannotListen: that is not possible.
        """
        if config.path is not None:
            try:
                self._open(config.path, config)
            except Exception as error:  # Twisted raises several classes
                raise CannotListen(explain(f"unix:{config.path}", error)) from error
            self._log.info("listening on {path}", path=config.path)
        self._socket = config

    def _open(self, path: str, config: SocketConfig) -> None:
        os.makedirs(os.path.dirname(path) or ".", 0o755, exist_ok=True)
        self._port = listenUnix(
            self._reactor, path, self._core.factory, BACKLOG, config.permissions
        )
        group = config.groupId()
        if group is not None:
            os.chown(path, -1, group)
        self._core.authorizer.group = os.stat(path).st_gid

    async def _close(self) -> None:
        port, self._port = self._port, None
        self._socket = None
        closing = None if port is None else port.stopListening()
        if closing is not None:
            await closing
