"""
Who asks.
"""

from __future__ import annotations

import msgspec


class Principal(msgspec.Struct, frozen=True):
    """
    Whoever is at the other end of a connection.

    @ivar address: the host's address, C{"192.0.2.7"}, or C{"local"} for a unix socket.
    """

    address: str

    def __str__(self) -> str:
        return self.address
