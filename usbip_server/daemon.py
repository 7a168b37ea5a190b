"""
The daemon as a Twisted service: it starts, listens and stops.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IListeningPort,
    IReactorFromThreads,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure

from usbip_server.listening import explain
from usbip_server.notify import notify
from usbip_server.protocols.firstbyte import FirstByteFactory
from usbip_server.sharing import Sharing

CLOSING_SECONDS = 2.0
"""For clients to take their last answers when the daemon stops."""


Endpoints = Sequence[tuple[str, IStreamServerEndpoint]]
"""Where to listen, each with its description for messages."""


class Deaf(SystemExit, Exception):
    """
    The daemon cannot listen, is of no use, and has to say so to whoever starts it.

    C{SystemExit} ends the process with the message and without a traceback; an
    C{Exception} is what C{twistd} hands to the process that waits for it to become a
    daemon, and that would otherwise wait for ever.
    """


class Daemon(Service):
    """
    Listens, and hands what comes to a factory.
    """

    _log = Logger()

    def __init__(
        self,
        sharing: Sharing,
        factory: FirstByteFactory,
        endpoints: Endpoints,
        reactor: IReactorFromThreads,
        reload: Callable[[Daemon], None],
    ) -> None:
        """
        @param reload: called on SIGHUP.
        """
        self._sharing = sharing
        self._factory = factory
        self._endpoints = endpoints
        self._reactor = reactor
        self._reload = reload
        self._ports: list[tuple[str, IListeningPort]] = []
        self._oldHandler: Any = None

    def privilegedStartService(self) -> None:
        """
        Listen, while the process may still use low ports.

        @raise Deaf: that is not possible.
        """
        endpoints, self._endpoints = self._endpoints, ()
        for description, endpoint in endpoints:
            self._listen(description, endpoint)

    def listenOn(self, endpoints: Endpoints) -> None:
        """
        Listen there, and nowhere else; connections stay as they are.

        @raise Deaf: that is not possible; nothing has changed.
        """
        before = tuple(self._ports)
        left = list(before)
        try:
            for description, endpoint in endpoints:
                known = [one for one in left if one[0] == description]
                if known:
                    left.remove(known[0])
                else:
                    self._listen(description, endpoint)
        except Deaf:
            left = [one for one in self._ports if one not in before]
            raise
        finally:
            for one in left:
                self._ports.remove(one)
                one[1].stopListening()
                self._log.info("not listening on {description} any more", description=one[0])

    def startService(self) -> None:
        """
        Start the backend; requests that come before it is ready wait for it.
        """
        super().startService()
        with contextlib.suppress(ValueError):  # not in the main thread
            self._oldHandler = signal.signal(signal.SIGHUP, self._onHangup)
        self.privilegedStartService()  # "python -m twisted" does not
        Deferred.fromCoroutine(self._start()).addErrback(
            lambda failure: self._log.failure("the backend does not start", failure)
        )

    def stopService(self) -> Deferred[None]:
        """
        Answer what is in progress, and end.
        """
        super().stopService()
        if self._oldHandler is not None:
            signal.signal(signal.SIGHUP, self._oldHandler)
            self._oldHandler = None
        return Deferred.fromCoroutine(self._stop())

    async def _start(self) -> None:
        await self._sharing.start()
        self._log.info("ready")
        notify("READY=1")

    async def _stop(self) -> None:
        notify("STOPPING=1")
        ports, self._ports = self._ports, []
        for _, port in ports:
            await _maybe(port.stopListening())
        await self._sharing.stop()
        await self._factory.close(CLOSING_SECONDS)
        self._log.info("stopped")

    def _onHangup(self, number: int, frame: object) -> None:
        self._reactor.callFromThread(self._reload, self)

    def _listen(self, description: str, endpoint: IStreamServerEndpoint) -> None:
        failures: list[Failure] = []
        listening: Deferred[IListeningPort] = endpoint.listen(self._factory)
        listening.addCallbacks(self._listens, failures.append, callbackArgs=(description,))
        for failure in failures:
            assert failure.value is not None
            raise Deaf(explain(description, failure.value))

    def _listens(self, port: IListeningPort, description: str) -> None:
        self._ports.append((description, port))
        address = port.getHost()
        self._log.info(
            "listening on {description}: {address}",
            description=description,
            address=str(address),
            port=getattr(address, "port", None),
        )


async def _maybe(result: Deferred[None] | None) -> None:
    if result is not None:
        await result
