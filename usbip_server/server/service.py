"""
The daemon as a Twisted service: it starts, listens and stops.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort, IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure

from usbip_server.net.endpoints import CannotListen, Listener, Purpose, explain
from usbip_server.protocols.exporter import ExporterFactory
from usbip_server.protocols.exporter_tls import SecuredFactory
from usbip_server.protocols.multiplexer import FirstByteFactory
from usbip_server.runtime.service import Rereading, notify
from usbip_server.server.core import Sharing

CLOSING_SECONDS = 2.0
"""For clients to take their last answers when the daemon stops."""


class _Port(NamedTuple):
    place: Listener
    port: IListeningPort


class Daemon(Service):
    """
    Listens, and hands what comes to the factory of its purpose.
    """

    _log = Logger()

    def __init__(
        self,
        sharing: Sharing,
        factory: FirstByteFactory,
        exporters: Mapping[Purpose, ExporterFactory | SecuredFactory],
        places: Sequence[Listener],
        reactor: IReactorFromThreads,
        reload: Callable[[Daemon], Awaitable[None]],
    ) -> None:
        """
        @param factory: for requests.
        @param exporters: for USB/IP.
        @param reload: called on SIGHUP.
        """
        self._sharing = sharing
        self._factory = factory
        self._exporters = exporters
        self._places = places
        self._rereading = Rereading(reactor, lambda: reload(self))
        self._ports: list[_Port] = []

    def privilegedStartService(self) -> None:
        """
        Listen, while the process may still use low ports.

        @raise Deaf: that is not possible.
        """
        places, self._places = self._places, ()
        self._listenAll(places)

    async def listenOn(self, places: Sequence[Listener]) -> None:
        """
        Listen there, and nowhere else; connections stay as they are.

        @raise Deaf: that is not possible; nothing has changed.
        """
        before = tuple(self._ports)
        old, fresh = list(before), []
        for place in places:
            known = next((port for port in old if port.place.name == place.name), None)
            if known is None:
                fresh.append(place)
            else:
                old.remove(known)
        try:
            self._listenAll(fresh)
        except CannotListen:
            if not old:
                raise
            # It may be in its own way: an address and all addresses, on one port.
            await self._close(old)
            try:
                self._listenAll(fresh)
            except CannotListen:
                self._listenAll([port.place for port in old])
                raise
        else:
            await self._close(old)

    def _listenAll(self, places: Sequence[Listener]) -> None:
        """
        @raise Deaf: one of them is not possible; then none was opened.
        """
        before = tuple(self._ports)
        try:
            for place in places:
                self._listen(place)
        except CannotListen:
            opened = [port for port in self._ports if port not in before]
            self._ports = [*before]
            for port in opened:
                port.port.stopListening()
            raise

    async def _close(self, ports: Sequence[_Port]) -> None:
        for port in ports:
            self._ports.remove(port)
            self._log.info(
                "not listening on {description} any more", description=port.place.description
            )
            await _maybe(port.port.stopListening())

    def startService(self) -> None:
        """
        Start the backend; requests that come before it is ready wait for it.
        """
        super().startService()
        self._rereading.start()
        self.privilegedStartService()  # "python -m twisted" does not
        Deferred.fromCoroutine(self._start()).addErrback(
            lambda failure: self._log.failure("the backend does not start", failure)
        )

    def stopService(self) -> Deferred[None]:
        """
        Answer what is in progress, and end.
        """
        super().stopService()
        self._rereading.stop()
        return Deferred.fromCoroutine(self._stop())

    async def _start(self) -> None:
        await self._sharing.start()
        self._log.info("ready")
        notify("READY=1")

    async def _stop(self) -> None:
        notify("STOPPING=1")
        await self._close(tuple(self._ports))
        await self._sharing.stop()
        for exporter in self._exporters.values():
            exporter.close()
        await self._factory.close(CLOSING_SECONDS)
        self._log.info("stopped")

    def _listen(self, place: Listener) -> None:
        failures: list[Failure] = []
        factories = {Purpose.REQUESTS: self._factory, **self._exporters}
        listening: Deferred[IListeningPort] = place.endpoint.listen(factories[place.purpose])
        listening.addCallbacks(self._listens, failures.append, callbackArgs=(place,))
        for failure in failures:
            assert failure.value is not None
            isPlain = place.purpose is Purpose.EXPORT
            raise CannotListen(explain(place.description, failure.value, isPlain))

    def _listens(self, port: IListeningPort, place: Listener) -> None:
        self._ports.append(_Port(place, port))
        address = port.getHost()
        self._log.info(
            "listening on {description}: {address}"
            if place.purpose is Purpose.REQUESTS
            else "exporting on {description}: {address}",
            description=place.description,
            address=str(address),
            port=getattr(address, "port", None),
        )


async def _maybe(result: Deferred[None] | None) -> None:
    if result is not None:
        await result
