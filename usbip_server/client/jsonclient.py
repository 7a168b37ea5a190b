"""
What the two JSON clients, L{usbip_server.client.blocking} and L{usbip_server.client.conversation},
have in common: the form of requests, their time limits, and the messages of errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from usbip_server.client.servers import Server
from usbip_server.model.errors import Unreachable
from usbip_server.model.replies import MAYBE_TLS, NO_ANSWER, ReceivedReply, Refused

AT_LEAST = 1.0
"""Seconds after which the kernel repeats the first packet of a connection, as that may have been
lost (RFC 6298, 2.1)."""

ALERT = b"\x15\x03"
"""The first bytes of TLS's reply to a client that does not speak TLS (RFC 5246, 6.2.1)."""

SPEAKS_TLS = "the server expects TLS: configure `tls` for this server in client.yaml"

TOO_LONG = "the reply is longer than any valid reply"


def encoded(server: Server, request: dict[str, Any]) -> bytes:
    """
    A request without its line feed: with the server's token, and with C{keep_alive}.
    """
    token = {} if server.token is None else {"token": server.token}
    return msgspec.json.encode({**request, **token, "keep_alive": True})


def withDetail(request: dict[str, Any], now: Callable[[], float]) -> Iterator[dict[str, Any]]:
    """
    The requests to send until the reply is no longer that the operation is in progress: with
    C{detail}, and with what is left of C{wait}. There is no end of them.

    @param now: a monotonic clock.
    """
    until = now() + float(request.get("wait") or 0)
    request = {**request, "detail": True}
    while True:
        yield request
        if "wait" in request:
            request = {**request, "wait": max(0.0, until - now())}


def timeFor(request: dict[str, Any], seconds: float) -> float:
    """
    The seconds that a reply may take: the request's C{wait} comes on top of those for each reply.
    """
    return seconds + float(request.get("wait") or 0)


def shareOf(seconds: float) -> float:
    """
    The part of the time for a reply that connecting may take: half of it, so that a machine that
    is off is given up before the slowest server has replied.
    """
    return min(seconds, max(AT_LEAST, seconds / 2))


def late(seconds: float) -> str:
    """
    The reason of an error: no reply has arrived within this time.
    """
    return f"no answer within {math.ceil(10 * seconds) / 10:g} s"


def closed(server: Server, hasSpoken: bool) -> str:
    """
    The reason of an error: the server has closed the connection.

    @param hasSpoken: has it sent a line before? A server that requires TLS has not.
    """
    return NO_ANSWER + ("" if hasSpoken or server.tls is not None else MAYBE_TLS)


def unreachable(server: Server, why: str) -> Unreachable:
    """
    The error of a server that cannot be reached.
    """
    return Unreachable(f"{server.called(server.address)}: {why}")


def refused(server: Server, reply: ReceivedReply) -> Refused:
    """
    The error of a server that refuses a request.
    """
    message = f"{server.called(server.address)}: {reply.message}"
    return Refused(reply.status, message, reply.code)
