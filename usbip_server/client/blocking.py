"""
Requests to a server without a reactor, over plain TCP or TLS. All functions block, up to the
time that they are given.

There is a second JSON client, L{usbip_server.client.conversation}, for programs that run
Twisted: to load Twisted takes longer than all else that a short command does.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from usbip_server.client.devices import RemoteDevice, foundIn
from usbip_server.client.jsonclient import (
    ALERT,
    SPEAKS_TLS,
    TOO_LONG,
    closed,
    encoded,
    late,
    refused,
    shareOf,
    timeFor,
    unreachable,
    withDetail,
)
from usbip_server.client.servers import Server
from usbip_server.model.replies import (
    LONGEST_LINE,
    ReceivedNotice,
    ReceivedReply,
    Status,
    decodeReply,
)
from usbip_server.net.addresses import AddressInfo, lookUp
from usbip_server.net.keepalive import KeepAlive
from usbip_server.net.tlserrors import reasonOf

CHUNK = 65536
"""Bytes that are read at once."""

DEFAULT = KeepAlive()


class HandshakeTimeout(TimeoutError):
    """
    The TCP connection was made, but the TLS handshake took too long.
    """


def connected(
    server: Server, port: int, connectBy: float, handshakeBy: float, isExport: bool = False
) -> socket.socket:
    """
    Connect to a server. C{ssl} is loaded only for a server with TLS.

    @param connectBy: deadline of the TCP connection, by the monotonic clock.
    @param handshakeBy: deadline of the TLS handshake, by the monotonic clock.
    @param isExport: for USB/IP, not for requests: with a version and ciphers of TLS that the
        kernel can take over.
    @raise TimeoutError: it takes longer.
    @raise OSError: the connection fails; C{ssl.SSLError} is one of these.
    @raise ValueError: the server's name is not valid, or a file for TLS is wrong.
    """
    connection = _first(server.host, port, connectBy)
    if server.tls is None:
        return connection
    from usbip_server.client import tls

    try:
        secured = tls.contextFor(server.tls, isExport)
        connection.settimeout(left(handshakeBy))
        return secured.wrap_socket(connection, server_hostname=tls.nameOf(server.host, server.tls))
    except TimeoutError as error:
        connection.close()
        raise HandshakeTimeout from error
    except ConnectionError as error:
        connection.close()
        raise ConnectionError(reasonOf(error, isClient=True)) from None
    except BaseException:
        connection.close()
        raise


def received(connection: socket.socket, size: int, until: float) -> bytes:
    """
    The next bytes from a connection; empty at its end.

    @param size: of them at most.
    @param until: deadline, by the monotonic clock.
    @raise TimeoutError: nothing has arrived.
    @raise ValueError: the server expects TLS on this connection without TLS.
    """
    connection.settimeout(left(until))
    data = connection.recv(size)
    if data.startswith(ALERT) and type(connection) is socket.socket:
        raise ValueError(SPEAKS_TLS)
    return data


def left(until: float) -> float:
    """
    The seconds that are left.

    @raise TimeoutError: none are.
    """
    seconds = until - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def why(error: Exception) -> str:
    """
    The reason why a connection failed, in words for users.
    """
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return "there is no machine of this name"
    if isTlsError(error):
        return reasonOf(error, isClient=True)
    if isinstance(error, UnicodeError):
        return "this is not a valid host name"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error)


def isTlsError(error: BaseException | None) -> bool:
    """
    Is this a C{ssl.SSLError}? Does not load C{ssl}: where that is not loaded, nothing has raised
    its errors.
    """
    return "ssl" in sys.modules and isinstance(error, sys.modules["ssl"].SSLError)


def ask(
    server: Server,
    request: dict[str, Any],
    seconds: float,
    onNotice: Callable[[ReceivedNotice], None] = lambda notice: None,
) -> ReceivedReply:
    """
    Send one request on a connection of its own, and wait for the reply.

    @param seconds: how long that may take, of which connecting has its share (L{shareOf}); the
        request's C{wait} comes on top.
    @param onNotice: called with each line that is an event and not the reply.
    @raise Unreachable: there is no reply, or it is not understood.
    """
    longest = timeFor(request, seconds)
    until = time.monotonic() + longest
    with talking(server, seconds, longest) as connection:
        connection.sendall(encoded(server, request) + b"\n")
        for reply in map(decodeReply, _lines(server, connection, until)):
            if isinstance(reply, ReceivedReply):
                return reply
            onNotice(reply)
    raise AssertionError("_lines ends only by an error")


def askToTheEnd(
    server: Server,
    request: dict[str, Any],
    seconds: float,
    onNotice: Callable[[ReceivedNotice], None] = lambda notice: None,
    onPending: Callable[[ReceivedReply], None] = lambda reply: None,
) -> ReceivedReply:
    """
    The same, and repeat the request for as long as the server replies that the operation is still
    in progress. The server has a deadline for the operation. The request is sent with C{detail}.

    @param seconds: for each reply; the request's C{wait} is for all of them together.
    @param onPending: called with each of these replies.
    """
    for each in withDetail(request, time.monotonic):
        reply = ask(server, each, seconds, onNotice)
        if not reply.isPending:
            break
        onPending(reply)
    return reply


def devicesOf(server: Server, seconds: float, away: bool = False) -> tuple[RemoteDevice, ...]:
    """
    All devices of a server that this client may see. Parameters and errors as of L{ask}.

    @param away: those instead that are attached and not plugged in.
    @raise Refused: the server refuses the request.
    """
    request = {"command": "list", "detail": True, **({"away": True} if away else {})}
    reply = ask(server, request, seconds)
    if reply.status is not Status.SUCCESS:
        raise refused(server, reply)
    return foundIn(server, reply.data)


@contextlib.contextmanager
def talking(server: Server, seconds: float, longest: float) -> Iterator[socket.socket]:
    """
    A connection to a server's port for requests. Errors of the connection in the body of the
    C{with} statement become L{Unreachable}.

    @param seconds: how long a reply may take, of which connecting has its share.
    @param longest: the seconds that the message of a timeout names.
    @raise Unreachable: the connection fails.
    """
    begin = time.monotonic()
    share = shareOf(seconds)
    reason = f"no connection within {share:g} s"
    try:
        connection = connected(server, server.port, begin + share, begin + seconds)
        reason = late(longest)
        with connection:
            DEFAULT.apply(connection)
            yield connection
    except HandshakeTimeout as error:
        raise unreachable(server, f"no answer within {seconds:g} s") from error
    except TimeoutError as error:
        raise unreachable(server, reason) from error
    except (OSError, ValueError) as error:
        raise unreachable(server, why(error)) from error


def _first(host: str, port: int, until: float) -> socket.socket:
    """
    Connect to a host: to the first of its addresses that accepts. Each address has an equal part
    of the time that is left. If none accepts and one refuses, the error is that of the refusal.
    """
    addresses = _addresses(host, port, until)
    trouble: OSError = ConnectionError("the name has no address")
    for index, (family, kind, protocol, _, address) in enumerate(addresses):
        made = None
        try:
            made = socket.socket(family, kind, protocol)
            # Without this a TLS handshake waits for delayed acknowledgements, of 40 ms each.
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


def _addresses(host: str, port: int, until: float) -> list[AddressInfo]:
    """
    Resolve a name. The thread that does is left alone at the deadline.
    """
    found: queue.SimpleQueue[list[AddressInfo] | Exception] = queue.SimpleQueue()
    lookUp(host, port, found.put)
    try:
        addresses = found.get(timeout=left(until))
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(addresses, Exception):
        raise addresses
    return addresses


def _lines(server: Server, connection: socket.socket, until: float) -> Iterator[bytes]:
    """
    The lines that a server sends.

    @raise ConnectionError: the server has closed the connection.
    @raise ValueError: a line is longer than any reply.
    """
    data = bytearray()
    hasSpoken = False
    while True:
        more = received(connection, CHUNK, until)
        if not more:
            raise ConnectionError(closed(server, hasSpoken))
        data += more
        while (end := data.find(b"\n", max(0, len(data) - len(more)))) >= 0:
            hasSpoken = True
            yield bytes(data[:end])
            del data[: end + 1]
            more = bytes(data)
        if len(data) > LONGEST_LINE:
            raise ValueError(TOO_LONG)
