"""
Asking one server, for a program that has nothing else to do meanwhile: without a reactor, which
takes several times as long to load as all else that a command needs.
"""

from __future__ import annotations

import contextlib
import functools
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from usbip_server.client.core.answers import (
    LONGEST_LINE,
    MAYBE_TLS,
    NO_ANSWER,
    Answer,
    Notice,
    Refused,
    understood,
)
from usbip_server.client.core.devices import Found, foundIn
from usbip_server.client.core.reaching import (
    HandshakeTimeout,
    connected,
    received,
    shareOf,
    unreachable,
    why,
)
from usbip_server.client.core.servers import ClientTls, Server
from usbip_server.client.core.trust import controlContext
from usbip_server.keepalive import KeepAlive
from usbip_server.replies import Status

AT_ONCE = 65536

DEFAULT = KeepAlive()

_MAKING = threading.Lock()


def ask(
    server: Server,
    request: dict[str, Any],
    seconds: float,
    told: Callable[[Notice], None] = lambda notice: None,
) -> Answer:
    """
    Ask a server one thing.

    @param seconds: how long that may take, of which a connection has its share (L{shareOf}); what
        the request says to C{wait} comes on top.
    @param told: called with lines that answer nothing.
    @raise Unreachable: there is no answer, or none that is understood.
    """
    longest = seconds + float(request.get("wait") or 0)
    line = request if server.token is None else {**request, "token": server.token}
    until = time.monotonic() + longest
    with talking(server, seconds, longest) as connection:
        connection.sendall(msgspec.json.encode({**line, "keep_alive": True}) + b"\n")
        silent = NO_ANSWER + MAYBE_TLS if server.tls is None else NO_ANSWER
        for answer in map(understood, _lines(connection, until, silent)):
            if isinstance(answer, Answer):
                return answer
            told(answer)
    raise AssertionError("there are lines until there is an answer")


@contextlib.contextmanager
def talking(server: Server, seconds: float, longest: float) -> Iterator[socket.socket]:
    """
    A connection to a server's port for requests. What goes wrong with it meanwhile is told.

    @param seconds: how long an answer may take, of which a connection has its share.
    @param longest: the same, as far as it is told.
    @raise Unreachable: so it is.
    """
    begin = time.monotonic()
    share = shareOf(seconds)
    late = f"no connection within {share:g} s"
    try:
        connection = connected(server, server.port, _context, begin + share, begin + seconds)
        late = f"no answer within {math.ceil(10 * longest) / 10:g} s"
        with connection:
            DEFAULT.apply(connection)
            yield connection
    except HandshakeTimeout as error:
        raise unreachable(server, f"no answer within {seconds:g} s") from error
    except TimeoutError as error:
        raise unreachable(server, late) from error
    except (OSError, ValueError) as error:
        raise unreachable(server, why(error)) from error


def askToTheEnd(
    server: Server,
    request: dict[str, Any],
    seconds: float,
    told: Callable[[Notice], None] = lambda notice: None,
    pending: Callable[[Answer], None] = lambda answer: None,
) -> Answer:
    """
    The same, and again for as long as the server is at it: it gives up at some time.

    @param seconds: for each answer; what the request says to C{wait} is for all of them.
    @param pending: called with each answer that only says so.
    """
    until = time.monotonic() + float(request.get("wait") or 0)
    while True:
        wait = {"wait": max(0.0, until - time.monotonic())} if "wait" in request else {}
        answer = ask(server, {**request, **wait}, seconds, told)
        if not answer.isPending:
            return answer
        pending(answer)


def devicesOf(server: Server, seconds: float) -> tuple[Found, ...]:
    """
    All devices of a server that we may see. Parameters and errors are those of L{ask}.

    @raise Refused: it does not let us.
    """
    answer = ask(server, {"command": "list", "detail": True}, seconds)
    if answer.status is not Status.SUCCESS:
        raise Refused(answer.status, f"{server.called(server.address)}: {answer.message}")
    return foundIn(server, answer.data)


@functools.lru_cache
def _made(tls: ClientTls) -> ssl.SSLContext:
    return controlContext(tls)


def _context(tls: ClientTls) -> ssl.SSLContext:
    """
    What is needed for TLS: the same for all servers that are spoken to alike.
    """
    with _MAKING:
        return _made(tls)


def _lines(connection: socket.socket, until: float, silent: str) -> Iterator[bytes]:
    """
    What a server says.

    @param silent: what there is to say of one that says nothing.
    @raise ConnectionError: it does not say anything more.
    @raise ValueError: it says more than there is to be said.
    """
    data = bytearray()
    hasSpoken = False
    while True:
        more = received(connection, AT_ONCE, until)
        if not more:
            raise ConnectionError(NO_ANSWER if hasSpoken else silent)
        data += more
        while (end := data.find(b"\n", max(0, len(data) - len(more)))) >= 0:
            hasSpoken = True
            yield bytes(data[:end])
            del data[: end + 1]
            more = bytes(data)
        if len(data) > LONGEST_LINE:
            raise ValueError("its answer is longer than anything that it could have to say")
