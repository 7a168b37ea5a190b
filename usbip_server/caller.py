"""
Whoever asks, and the connection it asks on.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress
from twisted.logger import Logger

from usbip_server.policy import Principal


class Caller:
    """
    One connection, to those who carry its requests out.

    @ivar principal: who is at the other end.
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
        self.principal = principal
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
    return Principal("local")
