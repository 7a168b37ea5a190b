"""
Posts JSON to a URL, with a deadline and a bounded answer.
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
"""The time limit for a connection, in seconds."""

ANSWER = 16 * 1024
"""Bytes of the body of a response that are read."""


class NoAnswer(Exception):
    """
    There was no response before the deadline; the message states why.
    """


class Answer(msgspec.Struct, frozen=True):
    """
    A response.

    @ivar status: the status code.
    @ivar text: the body, up to L{ANSWER} bytes.
    """

    status: int
    text: str


class HttpPost:
    """
    Posts JSON, each time on a new connection. Redirects are not followed.
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
        Post JSON. Cancelling this closes the connection.

        @param seconds: the deadline.
        @raise NoAnswer: there was no response.
        """
        exchange = Deferred.fromCoroutine(self._exchange(url.encode(), data))
        try:
            return await exchange.addTimeout(max(0.0, seconds), self._reactor, _tooLate)
        except CancelledError:
            raise
        except TimeoutError:
            raise NoAnswer(f"no answer within {round(seconds, 1):g} s") from None
        except Exception as error:  # TLS, name resolution and HTTP have no common base class
            raise NoAnswer(explain(error)) from error

    async def _exchange(self, url: bytes, data: bytes) -> Answer:
        response = await self._agent.request(b"POST", url, self._headers, Body(data))
        beginning = Beginning()
        response.deliverBody(beginning)
        return Answer(response.code, (await beginning.data).decode("utf-8", "replace"))


@implementer(IBodyProducer)
class Body:
    """
    The body of a request, written at once.
    """

    def __init__(self, data: bytes) -> None:
        self.length = len(data)
        self._data = data

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._data)
        return succeed(None)

    def pauseProducing(self) -> None:
        """Everything has been written."""

    def resumeProducing(self) -> None:
        """Everything has been written."""

    def stopProducing(self) -> None:
        """Everything has been written."""


class Beginning(Protocol):
    """
    Reads a body until it ends, or has L{ANSWER} bytes.

    @ivar data: fires with the bytes.
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
    The message of an error; that of an error of Twisted's client is in its C{reasons}.
    """
    reasons = getattr(error, "reasons", None) or [Failure(error)]
    return ", ".join(reason.getErrorMessage() or reason.type.__name__ for reason in reasons)


def _tooLate(result: object, seconds: float) -> Failure:
    # Not every cancelled request fails with CancelledError.
    return Failure(TimeoutError(seconds))
