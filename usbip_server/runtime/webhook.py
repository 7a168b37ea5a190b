"""
Sending something to a web server that others have written, with a deadline, and reading
what it answers up to a bound.
"""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, succeed
from twisted.internet.interfaces import IConsumer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

CONNECT = 5.0
"""Seconds until an address that does not take a connection is given up."""

ANSWER = 16 * 1024
"""Bytes of an answer's body that are read."""


class NoAnswer(Exception):
    """
    Nobody has answered, or not in time; the message says why.
    """


class Answer(msgspec.Struct, frozen=True):
    """
    What a server has said.

    @ivar status: the status code.
    @ivar text: the body, up to L{ANSWER} bytes of it.
    """

    status: int
    text: str


class HttpPost:
    """
    Sends JSON. Each time there is a new connection, and redirects are not followed.
    """

    _headers = Headers({"Content-Type": ["application/json"], "User-Agent": ["usbipshare"]})

    def __init__(self, reactor: Any) -> None:
        """
        @param reactor: provides C{IReactorTime} and what connections need.
        """
        self._reactor = reactor
        pool = HTTPConnectionPool(reactor, persistent=False)
        self._agent = Agent(reactor, connectTimeout=CONNECT, pool=pool)

    async def send(self, url: str, data: bytes, seconds: float) -> Answer:
        """
        Send something. Who cancels this cuts the connection.

        @param seconds: how long all of it may take.
        @raise NoAnswer: there is no answer.
        """
        exchange = Deferred.fromCoroutine(self._exchange(url.encode(), data))
        try:
            return await exchange.addTimeout(max(0.0, seconds), self._reactor, _tooLate)
        except CancelledError:
            raise
        except TimeoutError:
            raise NoAnswer(f"no answer within {round(seconds, 1):g} s") from None
        except Exception as error:  # of TLS, of name resolution, of HTTP: there is no family
            raise NoAnswer(explain(error)) from error

    async def _exchange(self, url: bytes, data: bytes) -> Answer:
        response = await self._agent.request(b"POST", url, self._headers, Body(data))
        beginning = Beginning()
        response.deliverBody(beginning)
        return Answer(response.code, (await beginning.data).decode("utf-8", "replace"))


@implementer(IBodyProducer)
class Body:
    """
    What is sent: a few bytes, all at once.
    """

    def __init__(self, data: bytes) -> None:
        self.length = len(data)
        self._data = data

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._data)
        return succeed(None)

    def pauseProducing(self) -> None:
        """It is all out."""

    def resumeProducing(self) -> None:
        """It is all out."""

    def stopProducing(self) -> None:
        """It is all out."""


class Beginning(Protocol):
    """
    Reads a body until it ends, in whatever way, or has L{ANSWER} bytes.

    @ivar data: fires with them.
    """

    def __init__(self) -> None:
        self.data: Deferred[bytes] = Deferred(lambda data: self._leave())
        self._read = b""

    def dataReceived(self, data: bytes) -> None:
        self._read = (self._read + data)[:ANSWER]
        if len(self._read) == ANSWER and not self.data.called:
            self._leave()
            self.data.callback(self._read)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.data.called:
            self.data.callback(self._read)

    def _leave(self) -> None:
        self.transport.loseConnection()  # type: ignore[union-attr]


def explain(error: Exception) -> str:
    """
    What is the matter; the client's own errors only say that it is in their reasons.
    """
    reasons = getattr(error, "reasons", None) or [Failure(error)]
    return ", ".join(reason.getErrorMessage() or reason.type.__name__ for reason in reasons)


def _tooLate(result: object, seconds: float) -> Failure:
    # Not every cancelled request fails with CancelledError.
    return Failure(TimeoutError(seconds))
