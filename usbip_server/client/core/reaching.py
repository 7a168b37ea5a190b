"""
Reaching a server's port, with TLS or without. Everything here blocks, for as long as it is told
to.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

from usbip_server.client.core.servers import ClientTls, Server
from usbip_server.client.core.trust import ALERT, LEAVES, SPEAKS_TLS, nameOf, reasonOf
from usbip_server.errors import Unreachable

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
