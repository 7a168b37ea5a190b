"""
The same requests over HTTP: C{POST /} with the JSON as body, whatever its content type.

A web page in somebody's browser can send a POST to any address it likes, so a request
that bears a foreign C{Origin}, or a C{Host} that is not a name of this machine (a name
that an attacker made resolve to it), is refused.

A connection is closed when its first request is answered: a client that does not read
its answers cannot have many of them wait in our memory.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from typing import Any, BinaryIO, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IReactorTime
from twisted.logger import Logger
from twisted.web.http import HTTPChannel, HTTPFactory, Request
from zope.interface import implementer

from usbip_server.answers import Answer, Answers, refusal
from usbip_server.errors import InvalidRequest, NotAllowed
from usbip_server.limits import Limits, Timeouts
from usbip_server.policy import Principal
from usbip_server.protocols.halfclose import LINGER, closeOurSide
from usbip_server.replies import Status

CODE_OF = {
    Status.SUCCESS: 200,
    Status.ERROR: 400,
    Status.NOT_FOUND: 404,
    Status.MULTIPLE_MATCHES: 409,
    Status.FAILURE: 502,
}

HINT = b"""\
usbipshare shares the USB devices of this machine. Ask it with a POST:

    curl -X POST http://HOST:5055 -d '{"command":"list"}'

Commands: list, find, attach, detach. The last three say which device with "id", "bus",
"serial" or "desc".
"""


class WebRequest(Request):
    """
    One request.
    """

    channel: WebChannel
    content: BinaryIO
    _log = Logger()
    _received = 0

    @property
    def _factory(self) -> WebFactory:
        return self.channel.factory

    def gotLength(self, length: int | None) -> None:
        # To Twisted, a form is something to take apart; to us the body is JSON.
        self.requestHeaders.removeHeader(b"content-type")
        super().gotLength(min(length or 0, self._factory.limits.requestBytes))

    def handleContentChunk(self, data: bytes) -> None:
        self._received += len(data)
        if self._received <= self._factory.limits.requestBytes:
            super().handleContentChunk(data)

    def process(self) -> None:
        """
        Answer. Called when the whole request is there.
        """
        self.channel.paused = True
        Deferred.fromCoroutine(self._process()).addErrback(
            lambda failure: self._log.failure("a bug in answering over HTTP", failure)
        )

    async def _process(self) -> None:
        gone = self.notifyFinish()
        gone.addErrback(lambda _: None)
        try:
            self._admit()
        except NotAllowed as error:
            self._send(403, refusal(str(error)))
            return
        except InvalidRequest as error:
            self._send(400, refusal(str(error)))
            return
        if self.path != b"/":
            self._send(404, refusal("there is nothing here: the one path is /"))
        elif self.method in (b"GET", b"HEAD"):
            self._sendBytes(200, b"text/plain; charset=utf-8", HINT)
        elif self.method != b"POST":
            self.setHeader(b"allow", b"GET, HEAD, POST")
            self._send(405, refusal("send the request with POST"))
        else:
            answer = await self._factory.answers.to(self.content.read(), self.channel.principal)
            if not gone.called:
                self._send(500 if answer.broken else CODE_OF[answer.status], answer)

    def _admit(self) -> None:
        """
        @raise NotAllowed: a web page of somebody else's may be behind it.
        @raise InvalidRequest: it is too long.
        """
        if self._received > self._factory.limits.requestBytes:
            raise InvalidRequest(
                f"the request is longer than {self._factory.limits.requestBytes} bytes"
            )
        host = self.getHeader(b"host")
        if host is not None and not self._factory.isOurName(_hostName(host)):
            raise NotAllowed(
                f"{_shown(host)} is not a name of this machine: "
                "use its address, or add the name to `http: {hosts: [...]}`"
            )
        origin = self.getHeader(b"origin")
        if origin is not None and (host is None or origin.partition(b"://")[2] != host):
            raise NotAllowed(f"a page of {_shown(origin)} may not use this daemon")

    def _send(self, code: int, answer: Answer) -> None:
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

    @ivar paused: the request is whole, or will never be: what comes behind is dropped.
        (C{twisted.protocols.basic.LineReceiver} looks at it.)
    """

    requestFactory = WebRequest
    principal: Principal
    factory: WebFactory
    transport: Any
    _closing = False  # our side is closed
    _halfClosed = False  # the client's side is closed

    def dataReceived(self, data: bytes) -> None:
        if not self.paused:
            super().dataReceived(data)
        if self.paused:
            self.clearLineBuffer()

    def resetTimeout(self) -> None:
        """
        A request has to be whole in time, however busily its bytes drip in: the time that
        was set when the connection was made is left alone.
        """

    def timeoutConnection(self) -> None:
        if self._closing:
            self.transport.abortConnection()
        else:
            self.loseConnection()

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        """No second request follows on a connection, and the answer says so."""
        request.setHeader(b"connection", b"close")
        return False

    def loseConnection(self) -> None:
        """Close our side; what is written goes out."""
        if self._closing:
            return
        self._closing = self.paused = True
        self.setTimeout(self.factory.timeOut)  # until what is written has gone
        self.transport.unregisterProducer()
        closeOurSide(self.transport, self._halfClosed)

    def writeConnectionLost(self) -> None:
        """All we had to say is with the kernel: now the client has its turn to close."""
        self.setTimeout(LINGER)

    def readConnectionLost(self) -> None:
        """The client has said all it wants to say; it may well wait for the answer."""
        self._halfClosed = True
        if self._closing:
            self.transport.loseConnection()
        else:
            self.close()

    def close(self) -> None:
        """
        Close when what has arrived is answered: the daemon stops.
        """
        if not self.paused:
            self.loseConnection()


class WebFactory(HTTPFactory):
    """
    Makes the HTTP side of connections.
    """

    protocol: Any = WebChannel

    def __init__(
        self,
        answers: Answers,
        hosts: Collection[str],
        limits: Limits,
        timeouts: Timeouts,
        reactor: IReactorTime,
    ) -> None:
        """
        @param hosts: names of this machine besides those it has itself.
        """
        super().__init__(timeout=timeouts.request, reactor=reactor)
        self.answers = answers
        self.limits = limits
        own = socket.gethostname().lower()
        self._names = {"localhost", own, own.partition(".")[0], f"{own.partition('.')[0]}.local"}
        self._names |= {name.lower().rstrip(".") for name in hosts}

    def makeChannel(self, principal: Principal) -> WebChannel:
        """
        The HTTP side of a connection that somebody has made.
        """
        channel = cast(WebChannel, self.buildProtocol(None))
        channel.principal = principal
        return channel

    def isOurName(self, name: str) -> bool:
        """
        Is it an address, or a name of this machine? An address cannot be a name that
        somebody else has made to resolve to us.
        """
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return True


def _hostName(host: bytes) -> str:
    """
    The name in a C{Host} header (RFC 9110, 7.2), without port and brackets.
    """
    text = host.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0].partition("%")[0]
    return text.partition(":")[0].rstrip(".")


def _shown(header: bytes) -> str:
    return repr(header[:100].decode("latin-1"))
