"""
Whoever asks, and the connection it asks on.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress, ISSLTransport
from twisted.logger import Logger

from usbip_server.model.policy import LOCAL, Principal
from usbip_server.net.certificates import certificateName

UNKNOWN = "unknown"
"""What stands for an address where that is of a kind that we do not know."""

UCRED = struct.Struct("=iII")
"""Process, user and group: C{struct ucred}, unix(7)."""


class Caller:
    """
    One connection, to those who carry its requests out.

    @ivar peer: who is at the other end.
    @ivar principal: the same, with what the request at hand proves; one is carried out at a
        time.
    @ivar lasts: can the connection stay open after an answer?
    @ivar isGone: is it gone?
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
        @param tell: writes a line that answers nothing.
        @param hold: called when something begins that lasts as long as the connection does.
        """
        self.peer = self.principal = principal
        self.lasts = lasts
        self.isGone = False
        self.tell = tell
        self._hold = hold
        self._whenGone: dict[Callable[[], None], None] = {}

    @property
    def isHeld(self) -> bool:
        """Does something last as long as the connection does?"""
        return bool(self._whenGone)

    def whenGone(self, callback: Callable[[], None]) -> None:
        """Call C{callback} when the connection is gone: at once if it is already."""
        if self.isGone:
            callback()
            return
        self._whenGone[callback] = None
        self._hold()

    def forget(self, callback: Callable[[], None]) -> None:
        """Do not call it any more."""
        self._whenGone.pop(callback, None)

    def gone(self) -> None:
        """The connection is gone."""
        self.isGone = True
        callbacks, self._whenGone = self._whenGone, {}
        for callback in callbacks:
            try:
                callback()
            except Exception:
                self._log.failure("a bug at the end of a connection")


def principalAt(address: IAddress | None) -> Principal:
    """
    Who is at an address. A socket for both IPv4 and IPv6 shows the former as
    C{::ffff:192.0.2.7} (RFC 4291, 2.5.5.2).
    """
    if isinstance(address, IPv4Address | IPv6Address):
        return Principal(address.host.removeprefix("::ffff:"))
    return Principal(LOCAL if isinstance(address, UNIXAddress) else UNKNOWN)


def principalOf(transport: Any) -> Principal:
    """
    Who is at the other end of a connection: by TLS only once its handshake is done.

    @param transport: an C{ITransport}.
    """
    principal = principalAt(transport.getPeer())
    if ISSLTransport.providedBy(transport):
        shown: Any = transport.getPeerCertificate()
        name = None
        with contextlib.suppress(ValueError):  # OpenSSL takes what others cannot read
            name = None if shown is None else certificateName(shown.to_cryptography())
        return Principal(principal.address, certificate=name)
    if isinstance(transport.getHost(), UNIXAddress):
        with contextlib.suppress(OSError):
            raw = transport.getHandle().getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size
            )
            return Principal(LOCAL, uid=UCRED.unpack(raw)[1])
    return principal
