"""
Where to listen: Twisted's endpoint descriptions, with one addition.

C{tcp:5055} without an interface listens on every interface, IPv4 and IPv6 both, on one
socket.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from zope.interface import implementer

BACKLOG = 1024
"""Connections that wait to be accepted; the kernel takes no more than its somaxconn."""


def serverEndpoint(reactor: Any, description: str) -> IStreamServerEndpoint:
    """
    Make an endpoint.

    @raise ValueError: the description is not one.
    """
    kind, *arguments = description.split(":")
    plain = [argument for argument in arguments if "=" not in argument]
    named = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if kind == "tcp" and len(plain) < 2 and "interface" not in named:
        given = {"port": plain[0], **named} if plain else named
        return _everyInterface(reactor, description, given)
    try:
        endpoint: IStreamServerEndpoint = serverFromString(reactor, _withBacklog(description))
    except Exception as error:  # a parser may raise what it likes
        raise ValueError(f"{description!r} is not an endpoint description: {error}") from None
    return endpoint


def _withBacklog(description: str) -> str:
    """
    Twisted's own 50 are few when everybody comes at once: those that find no room try
    again after a second, and old clients give up after two.
    """
    takesOne = description.startswith(("tcp:", "tcp6:", "ssl:", "unix:"))
    if takesOne and "backlog=" not in description:
        return f"{description}:backlog={BACKLOG}"
    return description


def _everyInterface(reactor: Any, description: str, given: dict[str, str]) -> EveryInterface:
    if not {"port"} <= given.keys() <= {"port", "backlog"}:
        raise ValueError(
            f"{description!r} is not an endpoint description, such as tcp:5055 or "
            "tcp:5055:interface=127.0.0.1"
        )
    backlog = given.get("backlog", str(BACKLOG))
    if not (backlog.isascii() and backlog.isdigit()):
        raise ValueError(f"{backlog!r} is not a backlog: a number")
    return EveryInterface(reactor, _port(given["port"]), int(backlog))


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise ValueError(f"{text!r} is not a port: a number from 0 to 65535")
    return int(text)


@implementer(IStreamServerEndpoint)
class EveryInterface:
    """
    A TCP port on every interface.
    """

    def __init__(self, reactor: Any, port: int, backlog: int = BACKLOG) -> None:
        self._reactor = reactor
        self._port = port
        self._backlog = backlog

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """
        Listen; without IPv6 where the kernel has none.
        """
        try:
            try:
                made = _listener(socket.AF_INET6, self._port, self._backlog)
            except OSError as error:
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
                made = _listener(socket.AF_INET, self._port, self._backlog)
        except OSError as error:
            return fail(CannotListenError("", self._port, error))
        with made:
            return succeed(self._reactor.adoptStreamPort(made.fileno(), made.family, factory))


def _listener(family: socket.AddressFamily, port: int, backlog: int) -> socket.socket:
    dual = family == socket.AF_INET6
    made = socket.create_server(("", port), family=family, backlog=backlog, dualstack_ipv6=dual)
    made.setblocking(False)
    return made


def explain(description: str, error: BaseException) -> str:
    """
    Why listening failed, and what to do.
    """
    cause = getattr(error, "socketError", error)
    number = getattr(cause, "errno", None)
    text = os.strerror(number) if isinstance(number, int) else str(cause)
    advice = {
        errno.EADDRINUSE: "Something else listens there: another usbipshare or a usb-remote "
        "server? See it with: ss -ltnp",
        errno.EACCES: "Ports below 1024 need root or CAP_NET_BIND_SERVICE",
        errno.EADDRNOTAVAIL: "This machine does not have that address",
    }.get(number or 0, "")
    return f"cannot listen on {description}: {text}. {advice}".rstrip(". ") + "."
