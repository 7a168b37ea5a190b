"""
Endpoints to listen on: Twisted's endpoint descriptions, with two additions.

C{tcp:5055} without an interface listens on all interfaces, with IPv4 and IPv6 on one socket.
C{tls:5056} is the same with TLS.
"""

from __future__ import annotations

import enum
import errno
import ipaddress
import os
import re
import socket
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IListeningPort,
    IOpenSSLServerConnectionCreator,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from zope.interface import implementer

from usbip_server import DOCUMENTS
from usbip_server.model.options import nearest
from usbip_server.net.sharedtls import SharedTlsFactory
from usbip_server.net.unixsocket import SocketInUse, listenUnix

_CONFIGURATION = f"{DOCUMENTS}/reference/configuration.md"

BACKLOG = 1024
"""Connections that may wait to be accepted; the kernel limits this to its somaxconn."""

OWN_KINDS = ("tcp", "tcp6", "ssl", "unix")
"""Twisted's own kinds of endpoints, whose arguments are checked."""

UNIX_PATH = 107
"""Bytes in the path of a unix socket (unix(7), C{sun_path}, less the NUL)."""


def serverEndpoint(
    reactor: Any, description: str, certificates: IOpenSSLServerConnectionCreator | None = None
) -> IStreamServerEndpoint:
    """
    Make an endpoint.

    @param certificates: for C{tls:}; C{None}: the configuration has no C{tls} block.
    @raise ValueError: the description is not valid.
    """
    kind, colon, rest = description.partition(":")
    if kind != "tls":
        return _endpoint(reactor, description, description)
    if certificates is None:
        raise ValueError(f'"{description}" needs a certificate: see `tls` in {_CONFIGURATION}')
    return OverTls(reactor, _endpoint(reactor, f"tcp{colon}{rest}", description), certificates)


def _endpoint(reactor: Any, description: str, shown: str) -> IStreamServerEndpoint:
    """
    @param shown: the description, for messages.
    """
    kind, *arguments = description.split(":")
    plain = [argument for argument in arguments if "=" not in argument]
    named = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if kind == "tcp" and len(plain) < 2 and "interface" not in named:
        given = {"port": plain[0], **named} if plain else named
        return _everyInterface(reactor, shown, given)
    try:
        made = UnixReactor(reactor) if kind == "unix" else reactor
        endpoint: IStreamServerEndpoint = serverFromString(made, _withBacklog(description))
        if kind in OWN_KINDS:
            _check(serverFromString(Examiner(mayOmit=kind == "ssl"), description))
    except Exception as error:  # a parser may raise anything
        reason = f"{shown!r} is not an endpoint description: {error}{_hint(description, error)}"
        raise ValueError(reason) from None
    return endpoint


def _hint(description: str, error: Exception) -> str:
    """
    The end of a message about a wrong description: what may have been meant.
    """
    kind, _, rest = description.partition(":")
    if isinstance(error, TypeError) and "::" in description:
        return r" (the colons of an IPv6 address need backslashes: interface=\:\:1)"
    if description.isdecimal():
        return f". Did you mean 'tcp:{description}'?"
    if rest.isdecimal() and re.fullmatch(r"[\d.]+", kind):
        return f". Did you mean 'tcp:{rest}:interface={kind}'?"
    return "" if kind in OWN_KINDS else nearest(kind, (*OWN_KINDS, "tls", "systemd"))


def _check(endpoint: IStreamServerEndpoint) -> None:
    """
    Check the arguments of an endpoint.

    @param endpoint: one that was made with an L{Examiner} as the reactor.
    @raise ValueError: it can never listen.
    """
    failures: list[Failure] = []
    endpoint.listen(Factory()).addErrback(failures.append)
    for failure in failures:
        failure.raiseException()


class Examiner:
    """
    A reactor that checks the arguments of an endpoint and does not listen.
    """

    def __init__(self, mayOmit: bool) -> None:
        """
        @param mayOmit: whether the interface may be empty.
        """
        self._mayOmit = mayOmit

    def listenTCP(self, port: int, factory: object, backlog: int, interface: str) -> None:
        """See C{twisted.internet.interfaces.IReactorTCP}."""
        _port(str(port))
        if interface or not self._mayOmit:
            try:
                ipaddress.ip_address(interface)
            except ValueError:
                raise ValueError(f"{interface!r} is not an IP address") from None

    def listenSSL(
        self, port: int, factory: object, contextFactory: object, backlog: int, interface: str
    ) -> None:
        """See C{twisted.internet.interfaces.IReactorSSL}."""
        self.listenTCP(port, factory, backlog, interface)

    def listenUNIX(
        self, address: str, factory: object, backlog: int, mode: int, wantPID: bool
    ) -> None:
        """See C{twisted.internet.interfaces.IReactorUNIX}."""
        if not 0 < len(os.fsencode(address)) <= UNIX_PATH:
            raise ValueError(f"{address!r} is not a path of 1 to {UNIX_PATH} bytes")


class UnixReactor:
    """
    A reactor for Twisted's endpoints of unix sockets, which listens with L{listenUnix}.
    """

    def __init__(self, reactor: Any) -> None:
        """
        @param reactor: provides C{IReactorUNIX}.
        """
        self._reactor = reactor

    def listenUNIX(
        self, address: str, factory: IProtocolFactory, backlog: int, mode: int, wantPID: bool
    ) -> IListeningPort:
        """See C{twisted.internet.interfaces.IReactorUNIX}."""
        if wantPID:
            return listenUnix(self._reactor, address, factory, backlog, mode)
        port: IListeningPort = self._reactor.listenUNIX(address, factory, backlog, mode, wantPID)
        return port


def _withBacklog(description: str) -> str:
    """
    Add a larger backlog than Twisted's default of 50: a client that finds the backlog full tries
    again after a second, and old clients give up after two.
    """
    if description.partition(":")[0] in OWN_KINDS and "backlog=" not in description:
        return f"{description}:backlog={BACKLOG}"
    return description


def _everyInterface(reactor: Any, shown: str, given: dict[str, str]) -> EveryInterface:
    if not {"port"} <= given.keys() <= {"port", "backlog"}:
        kind = shown.partition(":")[0]
        raise ValueError(
            f"{shown!r} is not an endpoint description, such as {kind}:5055 or "
            f"{kind}:5055:interface=127.0.0.1"
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
    A TCP port on all interfaces.
    """

    def __init__(self, reactor: Any, port: int, backlog: int = BACKLOG) -> None:
        self._reactor = reactor
        self._port = port
        self._backlog = backlog

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """
        Listen; with IPv4 only if the kernel has no IPv6.
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


@implementer(IStreamServerEndpoint)
class OverTls:
    """
    TLS over another endpoint.

    @ivar below: the endpoint without TLS, for USB/IP, whose TLS is not Twisted's.
    """

    def __init__(
        self,
        reactor: Any,
        below: IStreamServerEndpoint,
        certificates: IOpenSSLServerConnectionCreator,
    ) -> None:
        self._reactor = reactor
        self.below = below
        self._certificates = certificates

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """
        Listen.
        """
        return self.below.listen(SharedTlsFactory(self._certificates, factory, self._reactor))


def _listener(family: socket.AddressFamily, port: int, backlog: int) -> socket.socket:
    # Not socket.create_server(), which raises ValueError instead of OSError without IPv6.
    made = socket.socket(family)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind(("", port))
        made.listen(backlog)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made


class CannotListen(SystemExit, Exception):
    """
    The daemon cannot listen on an endpoint, and ends.

    As a C{SystemExit} it ends the process with the message and without a traceback. As an
    C{Exception} it is passed by C{twistd} to the process that waits until the daemon has started,
    and that would otherwise wait without limit.
    """


_TAKEN = (
    "Something else listens there: another usbipshare or a usb-remote server? See it with: ss -ltnp"
)

_TAKEN_EXPORT = (
    "Something else listens there, most likely a stock usbipd, which is not needed any more: "
    "systemctl disable --now usbipd (or: pkill usbipd). To keep it set `export: off`. Another "
    "usbipshare? See it with: ss -ltnp"
)

_ON_UNIX = {
    errno.EADDRINUSE: "There is a file of this name that is not an unused socket: remove it",
    errno.EACCES: "Who runs it has to be allowed to write in that folder",
    errno.ENOENT: "That folder is not there, and cannot be made",
}

_LISTENING = "Another daemon listens there"


def explain(description: str, error: BaseException, isExport: bool = False) -> str:
    """
    The message for a failure to listen, with what to do.

    @param isExport: whether the endpoint is for USB/IP without TLS.
    """
    cause = getattr(error, "socketError", error)
    number = getattr(cause, "errno", None)
    text = os.strerror(number) if isinstance(number, int) else str(cause)
    advices = {
        errno.EADDRINUSE: _TAKEN_EXPORT if isExport else _TAKEN,
        errno.EACCES: "Ports below 1024 need root or CAP_NET_BIND_SERVICE",
        errno.EADDRNOTAVAIL: "This machine does not have that address",
    }
    if description.startswith("unix:"):
        advices = _ON_UNIX
    advice = _LISTENING if isinstance(cause, SocketInUse) else advices.get(number or 0, "")
    return f"cannot listen on {description}: {text}. {advice}".rstrip(". ") + "."


class Purpose(enum.Enum):
    """
    What an endpoint is for. Requests with and without TLS have the same purpose, as Twisted
    decrypts them.
    """

    REQUESTS = "requests"
    EXPORT = "USB/IP"
    SECURED_EXPORT = "USB/IP over TLS"


class Listener(NamedTuple):
    """
    An endpoint to listen on.

    @ivar description: its description, for messages.
    @ivar purpose: what it is for.
    """

    description: str
    endpoint: IStreamServerEndpoint
    purpose: Purpose

    @property
    def name(self) -> tuple[str, Purpose]:
        """Identifies the listener."""
        return self.description, self.purpose


def descriptorsPerConnection(listeners: Sequence[Listener]) -> int:
    """
    The file descriptors needed for each connection that the limit allows: one for a client with
    requests, and one for a client of USB/IP, or two over TLS (C{ssl}'s and Twisted's).
    """
    purposes = {listener.purpose for listener in listeners}
    return 1 + (purposes > {Purpose.REQUESTS}) + (Purpose.SECURED_EXPORT in purposes)


Wrong = Callable[[int, str], Exception]
"""Makes the error for a wrong description, from its index and the reason."""


class Listeners:
    """
    Makes listeners from descriptions.
    """

    def __init__(self, reactor: Any, certificates: IOpenSSLServerConnectionCreator | None) -> None:
        """
        @param certificates: for C{tls:}; C{None}: the configuration has no C{tls} block.
        """
        self._reactor = reactor
        self._certificates = certificates

    def requests(self, descriptions: Sequence[str], wrong: Wrong) -> list[Listener]:
        """
        The listeners for requests.

        @raise Exception: the one that C{wrong} makes.
        """
        return self._made(self._forRequests, descriptions, wrong)

    def export(self, descriptions: Sequence[str], wrong: Wrong) -> list[Listener]:
        """
        The listeners for USB/IP.

        @raise Exception: the one that C{wrong} makes.
        """
        return self._made(self._forExport, descriptions, wrong)

    def _made(
        self, make: Callable[[str], Listener], descriptions: Sequence[str], wrong: Wrong
    ) -> list[Listener]:
        made = []
        for index, description in enumerate(descriptions):
            try:
                made.append(make(description))
            except ValueError as error:
                raise wrong(index, str(error)) from None
        return made

    def _forRequests(self, description: str) -> Listener:
        return Listener(description, self._endpoint(description), Purpose.REQUESTS)

    def _forExport(self, description: str) -> Listener:
        """
        With C{tls:} the TLS is that of the standard library: with Twisted's, the kernel could not
        take over the connection.
        """
        if description.partition(":")[0] == "ssl":
            raise ValueError(
                "USB/IP cannot be served with `ssl:`, for the kernel would send it in plain: "
                f"use `tls:`, as in tls:3241, with the `tls` block of {_CONFIGURATION}"
            )
        endpoint = self._endpoint(description)
        if isinstance(endpoint, OverTls):
            return Listener(description, endpoint.below, Purpose.SECURED_EXPORT)
        return Listener(description, endpoint, Purpose.EXPORT)

    def _endpoint(self, description: str) -> IStreamServerEndpoint:
        return serverEndpoint(self._reactor, description, self._certificates)
