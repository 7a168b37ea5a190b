"""
Reaching a server's port, with TLS or without. Everything here blocks, for as long as it is told
to.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from usbip_server.client.devices import RemoteDevice, foundIn
from usbip_server.client.servers import ClientTls, Server
from usbip_server.client.tls import ALERT, LEAVES, SPEAKS_TLS, controlContext, nameOf, reasonOf
from usbip_server.model.errors import Unreachable
from usbip_server.model.replies import (
    LONGEST_LINE,
    MAYBE_TLS,
    NO_ANSWER,
    ReceivedNotice,
    ReceivedReply,
    Refused,
    Status,
    decodeReply,
)
from usbip_server.net.keepalive import KeepAlive

AT_LEAST = 1.0
"""Seconds, after which the kernel says for a second time that it wants to connect: the first
may have been lost (RFC 6298, 2.1)."""


def shareOf(seconds: float) -> float:
    """
    How much of the time for an answer there is to get a connection: half of it. A machine that
    is there takes far less, however slow its server; one that is not is given up before the
    slowest has answered.
    """
    return min(seconds, max(AT_LEAST, seconds / 2))


def unreachable(server: Server, why: str) -> Unreachable:
    """
    That a server is not to be had.
    """
    return Unreachable(f"{server.called(server.address)}: {why}")


def connected(
    server: Server,
    port: int,
    context: Callable[[ClientTls], ssl.SSLContext],
    there: float,
    until: float,
) -> socket.socket:
    """
    A connection.

    @param context: makes what is needed for TLS, when there is a connection: that takes a while.
    @param there: until when there has to be one, by the monotonic clock.
    @param until: until when the handshake of TLS has to be done.
    @raise TimeoutError: it takes longer.
    @raise OSError: it cannot be had; also C{ssl.SSLError}.
    @raise ValueError: the server's name is none, or a file for TLS makes no sense.
    """
    connection = _first(server.host, port, there)
    if server.tls is None:
        return connection
    try:
        secured = context(server.tls)
        connection.settimeout(left(until))
        return secured.wrap_socket(connection, server_hostname=nameOf(server.host, server.tls))
    except TimeoutError as error:
        connection.close()
        raise HandshakeTimeout from error
    except ConnectionError:
        connection.close()
        raise ConnectionError(LEAVES) from None
    except BaseException:
        connection.close()
        raise


class HandshakeTimeout(TimeoutError):
    """
    There was a connection, but TLS took too long.
    """


def received(connection: socket.socket, size: int, until: float) -> bytes:
    """
    What comes next; nothing if that was all.

    @raise TimeoutError: nothing has come.
    @raise ValueError: it is TLS, and we do not speak that.
    """
    connection.settimeout(left(until))
    data = connection.recv(size)
    if data.startswith(ALERT) and not isinstance(connection, ssl.SSLSocket):
        raise ValueError(SPEAKS_TLS)
    return data


def left(until: float) -> float:
    """
    How many seconds there still are.

    @raise TimeoutError: none.
    """
    seconds = until - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def why(error: Exception) -> str:
    """
    What has gone wrong with a connection, less what is for programmers.
    """
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return "there is no machine of this name"
    if isinstance(error, ssl.SSLError):
        return reasonOf(error)
    if isinstance(error, UnicodeError):
        return "that is no name of a machine"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error)


def _first(host: str, port: int, until: float) -> socket.socket:
    """
    A connection to the first of a host's addresses that answers. None takes the time of those
    behind it. If none answers, but the machine does, that is told.
    """
    addresses = _addresses(host, port, until)
    trouble: OSError = ConnectionError("it has no address")
    for index, (family, kind, protocol, _, address) in enumerate(addresses):
        made = None
        try:
            made = socket.socket(family, kind, protocol)
            # A TLS handshake would wait for delayed acknowledgements, of 40 ms each.
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.settimeout(left(until) / (len(addresses) - index))
            made.connect(address)
            return made
        except BaseException as error:
            if made is not None:
                made.close()
            if not isinstance(error, OSError):
                raise
            if not isinstance(trouble, ConnectionRefusedError):
                trouble = error
    raise trouble


def _addresses(host: str, port: int, until: float) -> list[Any]:
    """
    Looking a name up can take a quarter of a minute, and nothing can interrupt it: so it is done
    in a thread that nobody waits for in the end.
    """
    with contextlib.suppress(socket.gaierror):
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def look() -> None:
        try:
            found.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:
            found.put(error)

    threading.Thread(target=look, daemon=True).start()
    try:
        addresses = found.get(timeout=left(until))
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(addresses, Exception):
        raise addresses
    assert isinstance(addresses, list)
    return addresses


AT_ONCE = 65536

DEFAULT = KeepAlive()

_MAKING = threading.Lock()


def ask(
    server: Server,
    request: dict[str, Any],
    seconds: float,
    told: Callable[[ReceivedNotice], None] = lambda notice: None,
) -> ReceivedReply:
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
        for answer in map(decodeReply, _lines(connection, until, silent)):
            if isinstance(answer, ReceivedReply):
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
    told: Callable[[ReceivedNotice], None] = lambda notice: None,
    pending: Callable[[ReceivedReply], None] = lambda answer: None,
) -> ReceivedReply:
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


def devicesOf(server: Server, seconds: float) -> tuple[RemoteDevice, ...]:
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
