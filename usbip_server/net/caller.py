"""
The caller of a request: the connection that it came from, and its principal.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv6Network
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress, ISSLTransport
from twisted.logger import Logger

from usbip_server.model.policy import LOCAL, Principal
from usbip_server.net.certificates import certificateName

UNKNOWN = "unknown"
"""The address of a principal whose transport has an address of an unknown kind."""

UCRED = struct.Struct("=iII")
"""C{struct ucred}: process, user and group (unix(7))."""


class Caller:
    """
    The connection of a client, as the application needs it.

    @ivar peer: the client, as authenticated by the connection.
    @ivar principal: the same, with the token of the request that is being carried out; there is
        one at a time.
    @ivar lasts: whether the connection can stay open after a reply.
    @ivar isGone: whether the connection has ended.
    """

    _log = Logger()

    def __init__(
        self,
        principal: Principal,
        tell: Callable[[bytes], None] = lambda line: None,
        lasts: bool = False,
        hold: Callable[[], None] = lambda: None,
    ) -> None:
        """
        @param tell: writes a line that is not a reply.
        @param hold: called when something begins that lasts as long as the connection, such as a
            lease.
        """
        self.peer = self.principal = principal
        self.lasts = lasts
        self.isGone = False
        self.tell = tell
        self._hold = hold
        self._whenGone: dict[Callable[[], None], None] = {}

    @property
    def isHeld(self) -> bool:
        """Whether there is something that lasts as long as the connection."""
        return bool(self._whenGone)

    def whenGone(self, callback: Callable[[], None]) -> None:
        """Call C{callback} when the connection ends; at once if it has ended."""
        if self.isGone:
            callback()
            return
        self._whenGone[callback] = None
        self._hold()

    def forget(self, callback: Callable[[], None]) -> None:
        """Cancel C{whenGone}."""
        self._whenGone.pop(callback, None)

    def gone(self) -> None:
        """Called when the connection has ended."""
        self.isGone = True
        callbacks, self._whenGone = self._whenGone, {}
        for callback in callbacks:
            try:
                callback()
            except Exception:
                self._log.failure("a bug at the end of a connection")


def principalAt(address: IAddress | None) -> Principal:
    """
    The principal at an address. A socket for both IPv4 and IPv6 has IPv4 addresses such as
    C{::ffff:192.0.2.7} (RFC 4291, 2.5.5.2), which become plain ones.
    """
    if isinstance(address, IPv4Address | IPv6Address):
        return Principal(address.host.removeprefix("::ffff:"))
    return Principal(LOCAL if isinstance(address, UNIXAddress) else UNKNOWN)


@lru_cache(1024)
def networkOf(principal: Principal) -> str:
    """
    Whom a principal shares its part of the daemon's resources with: the clients of its address, or
    of its IPv6 network (/64), in which one machine can have any number of addresses; on a unix
    socket those of its user.
    """
    if principal.uid is not None:
        return f"uid {principal.uid}"
    if ":" not in principal.address:
        return principal.address
    return str(IPv6Network((principal.address.partition("%")[0], 64), strict=False))


def principalOf(transport: Any) -> Principal:
    """
    The principal at the other end of a connection; with TLS, after the handshake.

    @param transport: an C{ITransport}.
    """
    address = transport.getPeer()
    principal = principalAt(address)
    if ISSLTransport.providedBy(transport):
        shown: Any = transport.getPeerCertificate()
        name = None
        with contextlib.suppress(ValueError):  # OpenSSL accepts some that cryptography cannot parse
            name = None if shown is None else certificateName(shown.to_cryptography())
        return Principal(principal.address, certificate=name)
    if isinstance(address, UNIXAddress):
        with contextlib.suppress(OSError):
            raw = transport.getHandle().getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size
            )
            return Principal(LOCAL, uid=UCRED.unpack(raw)[1])
    return principal
