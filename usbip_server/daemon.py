"""
The daemon as a Twisted service: it starts, listens and stops.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from usbip_server.listening import explain
from usbip_server.notify import notify
from usbip_server.protocols.firstbyte import FirstByteFactory
from usbip_server.sharing import Sharing

CLOSING_SECONDS = 2.0
"""For clients to take their last answers when the daemon stops."""


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
        endpoints: Sequence[tuple[str, IStreamServerEndpoint]],
    ) -> None:
        """
        @param endpoints: where to listen, each with its description for messages.
        """
        self._sharing = sharing
        self._factory = factory
        self._endpoints = endpoints
        self._ports: list[IListeningPort] = []

    def privilegedStartService(self) -> None:
        """
        Listen, while the process may still use low ports.

        @raise Deaf: that is not possible.
        """
        endpoints, self._endpoints = self._endpoints, ()
        for description, endpoint in endpoints:
            failures: list[Failure] = []
            listening: Deferred[IListeningPort] = endpoint.listen(self._factory)
            listening.addCallbacks(self._listens, failures.append, callbackArgs=(description,))
            for failure in failures:
                assert failure.value is not None
                raise Deaf(explain(description, failure.value))

    def startService(self) -> None:
        """
        Start the backend; requests that come before it is ready wait for it.
        """
        super().startService()
        self.privilegedStartService()  # "python -m twisted" does not
        Deferred.fromCoroutine(self._start()).addErrback(
            lambda failure: self._log.failure("the backend does not start", failure)
        )

    def stopService(self) -> Deferred[None]:
        """
        Answer what is in progress, and end.
        """
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _start(self) -> None:
        await self._sharing.start()
        self._log.info("ready")
        notify("READY=1")

    async def _stop(self) -> None:
        notify("STOPPING=1")
        ports, self._ports = self._ports, []
        for port in ports:
            await _maybe(port.stopListening())
        await self._sharing.stop()
        await self._factory.close(CLOSING_SECONDS)
        self._log.info("stopped")

    def _listens(self, port: IListeningPort, description: str) -> None:
        self._ports.append(port)
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
