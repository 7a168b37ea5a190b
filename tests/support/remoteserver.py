"""
A daemon in this process that listens on loopback: another server, to a gateway.
"""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.interfaces import IDelayedCall, IListeningPort

from usbip_server.backends.remote.config import Host
from usbip_server.client.servers import Server
from usbip_server.interfaces import IUsbBackend
from usbip_server.model.options import Limits
from usbip_server.protocols.exporter import ExporterFactory
from usbip_server.protocols.lines import CommandFactory
from usbip_server.protocols.multiplexer import FirstByteFactory
from usbip_server.protocols.web import WebFactory
from usbip_server.server.config import LiveSettings, Settings
from usbip_server.server.core import Core
from usbip_server.server.responder import Responder

MOST = 100
"""Connections at a time."""


class Lent:
    """
    The reactor, to somebody who leaves calls behind that nobody needs any more.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._calls: list[IDelayedCall] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def callLater(self, seconds: float, *call: Any, **more: Any) -> IDelayedCall:
        """As of the reactor."""
        made: IDelayedCall = self._reactor.callLater(seconds, *call, **more)
        self._calls = [each for each in self._calls if each.active()] + [made]
        return made

    def takeBack(self) -> None:
        """Cancel the calls."""
        for call in self._calls:
            if call.active():
                call.cancel()


class FarServer:
    """
    Serves a backend, over JSON and USB/IP, on ports that are free.

    @ivar port: for requests.
    @ivar exportPort: for USB/IP.
    """

    def __init__(self, backend: IUsbBackend, reactor: Any, settings: Settings) -> None:
        self._reactor = reactor = Lent(reactor)
        live = LiveSettings(msgspec.structs.replace(settings, limits=Limits(connections=MOST)))
        self._core = Core(backend, reactor, live)
        responder = Responder(self._core.dispatcher, self._core.requests)
        self._factory = FirstByteFactory(
            CommandFactory(responder, live, reactor),
            WebFactory(responder, live, reactor),
            live,
            reactor,
        )
        self._exporter = ExporterFactory(self._core.dispatcher, live, reactor)
        self._ports: list[IListeningPort] = []
        self._isOver = False

    async def start(self, port: int = 0) -> None:
        """
        Listen.

        @param port: for requests: one that another server has had; 0: one that is free.
        """
        for factory, number in ((self._factory, port), (self._exporter, 0)):
            self._ports.append(self._reactor.listenTCP(number, factory, interface="127.0.0.1"))
        addresses: list[Any] = [listening.getHost() for listening in self._ports]
        self.port, self.exportPort = (address.port for address in addresses)
        await self._core.start()

    async def cutOff(self) -> None:
        """Listen no more, and cut all connections off; what it does goes on."""
        ports, self._ports = self._ports, []
        for port in ports:
            await port.stopListening()  # type: ignore[misc]
        for connection in tuple(self._factory.connections):
            connection.transport.abortConnection()

    async def stop(self) -> None:
        """The end. May be called again."""
        if self._isOver:
            return
        self._isOver = True
        await self.cutOff()
        await self._core.stop()
        self._exporter.close()
        await self._factory.close(0)
        self._reactor.takeBack()

    def host(self, bus: int = 100, name: str = "far") -> Host:
        """What a gateway knows of it."""
        server = Server(name=name, host="127.0.0.1", port=self.port, exportPort=self.exportPort)
        return Host(server=server, bus=bus)
