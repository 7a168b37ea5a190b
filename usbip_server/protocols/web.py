"""
The same commands over HTTP::

    client -> server   POST / with a JSON request as body, of whatever content type
    client <- server   200, 400, 403, 404, 409 or 502, with the JSON reply as body

    client -> server   GET /events, optionally with criteria in the query string
    client <- server   200, text/event-stream: the devices, and then the events

A connection is closed when its first request is answered, so that a client that does not read
its replies does not fill the memory with them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, BinaryIO, cast

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, HTTPFactory, Request
from zope.interface import implementer

from usbip_server import PRODUCT
from usbip_server.model.errors import BackendUnavailable, InvalidRequest, NotAllowed
from usbip_server.model.policy import Principal
from usbip_server.model.replies import Status
from usbip_server.model.requests import WatchDevices
from usbip_server.net.caller import Caller
from usbip_server.net.halfclose import LINGER, closeOurSide
from usbip_server.net.liveness import watchOver
from usbip_server.protocols import sse
from usbip_server.protocols.framing import BYTE_ORDER_MARK
from usbip_server.protocols.interfaces import (
    IMonitor,
    IResponder,
    RequestSettings,
    Response,
    refusal,
)
from usbip_server.protocols.origins import Admission
from usbip_server.protocols.watcher import EventFormat, Watcher
from usbip_server.runtime import exposition
from usbip_server.runtime.eventlog import Subscription

HINT = b"""\
usbipshare shares the USB devices of this machine. Send a command with POST:

    curl -X POST http://HOST:5055 -d '{"command":"list"}'
    curl -N http://HOST:5055/events

Commands: list, find, attach, detach, kick, renew. All but the first select a device with
"id", "bus", "serial", "desc" or "path". /events is a stream of what happens to devices.
"""


ABSOLUTE = re.compile(rb"https?://([^/]*)(/.*)?", re.IGNORECASE | re.DOTALL)
"""A request target in absolute form, as to a proxy (RFC 9112, 3.2.2): its host is used instead of
that in the header."""


class WebRequest(Request):
    """
    One HTTP request.
    """

    channel: WebChannel
    content: BinaryIO
    _log = Logger()
    _received = 0
    _host: bytes | None = None

    @property
    def _factory(self) -> WebFactory:
        return self.channel.factory

    def gotLength(self, length: int | None) -> None:
        # Twisted would parse the body of a form; here every body is JSON.
        self.requestHeaders.removeHeader(b"content-type")
        super().gotLength(min(length or 0, self._factory.settings.limits.requestBytes))

    def handleContentChunk(self, data: bytes) -> None:
        self._received += len(data)
        if self._received <= self._factory.settings.limits.requestBytes:
            super().handleContentChunk(data)

    def process(self) -> None:
        """
        Answer the request. Called when all of it has arrived.
        """
        self.channel.paused = True
        self._host = self.getHeader(b"host")
        absolute = ABSOLUTE.fullmatch(self.path)
        if absolute is not None:
            self._host, self.path = absolute[1], absolute[2] or b"/"
        self.setHeader(b"server", PRODUCT.encode())
        Deferred.fromCoroutine(self._process()).addErrback(
            lambda failure: self._log.failure("a bug in answering over HTTP", failure)
        )

    async def _process(self) -> None:
        gone = self.notifyFinish()
        gone.addErrback(lambda _: None)
        try:
            self._admit()
        except NotAllowed as error:
            self._send(403, self._factory.responder.refuse(error, self.channel.caller))
            return
        except InvalidRequest as error:
            self._send(400, refusal(str(error)))
            return
        if self.path == b"/events" and self.method == b"GET":
            await self._events(gone)
        elif self.path == b"/events":
            self.setHeader(b"allow", b"GET")
            self._send(405, refusal("events are read with GET"))
        elif self.path in (b"/metrics", b"/health") and self._factory.monitor is not None:
            await self._monitor(self._factory.monitor)
        elif self.path != b"/":
            self._send(404, refusal(f"no such path: the paths are {self._factory.paths}"))
        elif self.method in (b"GET", b"HEAD"):
            self._sendBytes(200, b"text/plain; charset=utf-8", self._factory.hint)
        elif self.method != b"POST":
            self.setHeader(b"allow", b"GET, HEAD, POST")
            self._send(405, refusal("send the request with POST"))
        else:
            body = self.content.read().removeprefix(BYTE_ORDER_MARK)
            token = self._token()
            answer = await self._factory.responder.to(body, self.channel.caller, token)
            if answer.stream is not None:
                answer = refusal("over HTTP, watch with GET /events")
            if not gone.called:
                self._send(codeOf(answer), answer)

    async def _monitor(self, monitor: IMonitor) -> None:
        """
        Answer C{GET /metrics} and C{GET /health}.
        """
        if self.method not in (b"GET", b"HEAD"):
            self.setHeader(b"allow", b"GET, HEAD")
            self._send(405, refusal("read this with GET"))
            return
        try:
            if self.path == b"/metrics":
                page = await monitor.metrics(self.channel.caller, self._token())
                self._sendBytes(200, exposition.CONTENT_TYPE, page)
            else:
                monitor.health(self.channel.caller, self._token())
                self._sendBytes(200, b"application/json", b'{"status":"success"}\n')
        except NotAllowed as error:
            self._send(403, refusal(str(error)))
        except BackendUnavailable as error:
            self._send(503, refusal(str(error)))

    async def _events(self, gone: Deferred[None]) -> None:
        """
        Send events until the client disconnects.
        """
        try:
            lastSeen = self.getHeader(b"last-event-id")
            command = sse.asked(self.args or {}, lastSeen, self._factory.watches)
        except InvalidRequest as error:
            self._send(400, refusal(str(error)))
            return
        command = msgspec.structs.replace(command, token=self._token())
        answer = await self._factory.responder.watch(command, self.channel.caller)
        if gone.called:
            return
        if answer.stream is None:
            self._send(codeOf(answer), answer)
            return
        self.setHeader(b"content-type", b"text/event-stream; charset=utf-8")
        self.setHeader(b"cache-control", b"no-cache")
        self.setHeader(b"x-content-type-options", b"nosniff")
        self.write(sse.RECONNECT)
        if not answer.stream.goesOn:
            self.write(sse.snapshot(answer.encoded, answer.stream.seq))
        self.channel.watch(self, answer.stream)

    def _admit(self) -> None:
        """
        @raise NotAllowed: a foreign web page may have sent the request.
        @raise InvalidRequest: the request is too long.
        """
        if self._received > self._factory.settings.limits.requestBytes:
            raise InvalidRequest(
                f"the request is longer than {self._factory.settings.limits.requestBytes} bytes"
            )
        self._factory.admission.check(self._host, self.getHeader(b"origin"))

    def _token(self) -> str | None:
        return bearerToken(self.getHeader(b"authorization"))

    def _send(self, code: int, answer: Response) -> None:
        self._sendBytes(code, b"application/json", answer.encoded)

    def _sendBytes(self, code: int, kind: bytes, body: bytes) -> None:
        self.setResponseCode(code)
        self.setHeader(b"content-type", kind)
        self.setHeader(b"content-length", b"%d" % len(body))
        self.setHeader(b"x-content-type-options", b"nosniff")
        self.write(body)
        self.finish()


@implementer(IHalfCloseableProtocol)
class WebChannel(HTTPChannel):
    """
    One connection, for one request.

    @ivar paused: what comes is dropped, because the request is complete or refused. (The
        attribute is C{twisted.protocols.basic.LineReceiver}'s.)
    """

    requestFactory = WebRequest
    factory: WebFactory
    transport: Any
    caller: Caller
    whenAllowed: Callable[[], None]
    _watcher: Watcher | None = None
    _watched: WebRequest | None = None
    _closing = False  # our side is closed
    _halfClosed = False  # the client's side is closed

    @property
    def isDeaf(self) -> bool:
        """Is what comes dropped?"""
        return bool(self.paused)

    def watch(self, request: WebRequest, stream: Subscription[Any]) -> None:
        """
        Send events until the client disconnects.
        """
        self.whenAllowed()
        self._watched = request
        self._watcher = Watcher(
            request,
            self.transport.abortConnection,
            stream,
            EventFormat(sse.frame, sse.beat),
            self.caller.principal,
            self.factory.settings.limits.watchBytes,
        )
        self._watcher.begin(self.factory.clock, self.factory.settings.timeouts.heartbeat)
        self.hold()

    def hold(self) -> None:
        """Something lasts as long as the connection does, which may therefore be idle."""
        watchOver(self.transport, self.factory.settings.timeouts.heartbeat)
        if self._halfClosed:
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._watcher is not None:
            self._watcher.end()
        super().connectionLost(reason)
        self.caller.gone()

    def dataReceived(self, data: bytes) -> None:
        if not self.paused:
            super().dataReceived(data)
        if self.paused:
            self.clearLineBuffer()

    def resetTimeout(self) -> None:
        """
        Does nothing: the time for a complete request begins with the connection, and bytes that
        arrive one by one do not extend it.
        """

    def timeoutConnection(self) -> None:
        if self._closing:
            self.transport.abortConnection()
        else:
            self.loseConnection()

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        """No second request follows on a connection, and the reply says so in a header."""
        request.setHeader(b"connection", b"close")
        return False

    def loseConnection(self) -> None:
        """Close our side once everything is sent."""
        if self._closing:
            return
        self._closing = self.paused = True
        self.setTimeout(self.factory.timeOut)  # until what is written has gone
        self.transport.unregisterProducer()
        closeOurSide(self.transport, self._halfClosed)

    def writeConnectionLost(self) -> None:
        """Everything is sent: give the client time to close its side."""
        self.setTimeout(None)  # to reset it to an earlier time, the reactor searches all timers
        self.setTimeout(LINGER)

    def readConnectionLost(self) -> None:
        """The client has closed its side; it may still wait for the reply."""
        self._halfClosed = True
        if self._closing:
            self.transport.loseConnection()
        elif self._watcher is not None or self.caller.isHeld:
            self.transport.abortConnection()  # nothing can be sent to it later
        elif not self.paused:
            self.loseConnection()

    def close(self) -> None:
        """Close our side once the request is answered: the daemon stops."""
        if self._watcher is not None and self._watched is not None and not self._closing:
            self._watcher.end()
            self._watched.finish()
        elif not self.paused:
            self.loseConnection()


class WebFactory(HTTPFactory):
    """
    Makes the connections for HTTP.
    """

    protocol: Any = WebChannel

    def __init__(
        self,
        responder: IResponder,
        settings: RequestSettings,
        reactor: IReactorTime,
        hint: bytes = HINT,
        watches: type[WatchDevices] = WatchDevices,
        monitor: IMonitor | None = None,
    ) -> None:
        """
        @param hint: the reply to C{GET /}.
        @param watches: the command that C{GET /events} stands for.
        @param monitor: answers C{GET /metrics} and C{GET /health}; C{None}: there are no such.
        """
        super().__init__(timeout=settings.timeouts.request, reactor=reactor)
        self.responder = responder
        self.settings = settings
        self.hint = hint
        self.watches = watches
        self.monitor = monitor
        self.paths = "/ and /events" if monitor is None else "/, /events, /metrics and /health"
        self.clock = reactor
        self.admission = Admission(lambda: settings.hosts)

    def buildProtocol(self, addr: IAddress | None) -> Any:
        self.timeOut = self.settings.timeouts.request
        return super().buildProtocol(addr)

    def makeChannel(
        self, principal: Principal, whenAllowed: Callable[[], None] = lambda: None
    ) -> WebChannel:
        """
        Make the protocol for a client that is known already.

        @param whenAllowed: called when a request to watch was not refused.
        """
        channel = cast(WebChannel, self.buildProtocol(None))
        channel.whenAllowed = whenAllowed
        channel.caller = Caller(principal, hold=channel.hold)
        return channel


CODE_OF = {
    Status.SUCCESS: 200,
    Status.ERROR: 400,
    Status.NOT_FOUND: 404,
    Status.MULTIPLE_MATCHES: 409,
    Status.FAILURE: 502,
}


def codeOf(answer: Response) -> int:
    """
    The HTTP status (RFC 9110, 15) that goes with an answer.
    """
    if answer.broken:
        return 500
    return 403 if answer.forbidden else CODE_OF[answer.status]


def bearerToken(authorization: bytes | None) -> str | None:
    """
    The token in an C{Authorization} header (RFC 6750, 2.1); C{None} if there is none.
    """
    kind, _, token = (authorization or b"").strip().partition(b" ")
    return token.strip().decode("latin-1") if kind.lower() == b"bearer" else None
