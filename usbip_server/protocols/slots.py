"""
Shares the places for connections between clients: no address can keep all others out.

Of C{limits.connections} places,

  - an address whose clients have no rights gets an eighth, on a unix socket a thirty-second, and
    all clients without rights together half of them;
  - any other address, IPv6 network or user of a unix socket gets half;
  - an eighth is for clients of this machine, and half of that for unix sockets.
"""

from __future__ import annotations

from collections.abc import Callable

from usbip_server.model.policy import LOCAL, Principal, isHere
from usbip_server.net.caller import networkOf

STRANGER = 8
"""The part of an address without rights: one in so many."""

UNIX_STRANGER = 32
"""The same on a unix socket."""

ALLOWED = 2
"""The part of any other address, and of all clients without rights together."""

REMOTE = 8
"""One in so many places is kept for clients of this machine."""

LOOPBACK = 16
"""One in so many places is kept for unix sockets."""


class NoPlace(Exception):
    """
    There is no place for another connection now.
    """


class Slot:
    """
    The place of one connection.
    """

    __slots__ = ("_isStranger", "_network", "_slots")

    def __init__(self, slots: Slots, network: str, isStranger: bool) -> None:
        self._slots = slots
        self._network = network
        self._isStranger = isStranger

    def allow(self) -> None:
        """Called when the client has turned out to have rights, by its certificate or token."""
        if self._isStranger:
            self._isStranger = False
            self._slots.strangers -= 1

    def free(self) -> None:
        """Called when the connection has ended."""
        self.allow()
        self._slots.free(self._network)


class Slots:
    """
    The places of one kind of connection.

    @ivar strangers: the number of connections of clients without rights.
    """

    def __init__(self, most: Callable[[], int], hasRights: Callable[[Principal], bool]) -> None:
        """
        @param most: returns the number of places.
        @param hasRights: returns whether a client has any rights without a token.
        """
        self.strangers = 0
        self._most = most
        self._hasRights = hasRights
        self._taken = 0
        self._byNetwork: dict[str, int] = {}

    def take(self, principal: Principal) -> Slot:
        """
        @raise NoPlace: there is no place for this client.
        """
        most, network = self._most(), networkOf(principal)
        isStranger = not self._hasRights(principal)
        part = ALLOWED
        if isStranger:
            part = UNIX_STRANGER if principal.address == LOCAL else STRANGER
        places = _rounded(most, part)
        taken = self._byNetwork.get(network, 0)
        if taken >= places:
            raise NoPlace(
                f"the limit of {places} connections of one client is reached (`limits.connections` "
                f"is {most}): try later"
            )
        kept = 0 if principal.address == LOCAL else most // LOOPBACK
        if not isHere(principal.address):
            kept = most // REMOTE
        if self._taken >= most - kept or (isStranger and self.strangers >= _rounded(most, ALLOWED)):
            raise NoPlace(f"the limit of {most} connections is reached: try later")
        self._taken += 1
        self._byNetwork[network] = taken + 1
        self.strangers += isStranger
        return Slot(self, network, isStranger)

    def free(self, network: str) -> None:
        """Called when a connection has ended."""
        self._taken -= 1
        left = self._byNetwork[network] - 1
        if left:
            self._byNetwork[network] = left
        else:
            del self._byNetwork[network]


def _rounded(most: int, part: int) -> int:
    """One in so many places, at least one."""
    return -(-most // part)
