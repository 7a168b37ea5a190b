"""
Noticing that the other end of a connection has vanished without a word.
"""

from __future__ import annotations

import socket
from typing import Annotated

import msgspec


class KeepAlive(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={"userTimeout": "user_timeout"},
):
    """
    How it is noticed that a client has vanished without a word (tcp(7)).

    @ivar idle: seconds of silence, after which it is asked whether it is still there.
    @ivar interval: seconds between asking again.
    @ivar count: how often it may leave that unanswered.
    @ivar userTimeout: seconds that what was sent may stay unacknowledged: while something
        is, nothing is asked.
    """

    idle: Annotated[int, msgspec.Meta(ge=1, le=32767)] = 5
    interval: Annotated[int, msgspec.Meta(ge=1, le=32767)] = 2
    count: Annotated[int, msgspec.Meta(ge=1, le=127)] = 3
    userTimeout: Annotated[int, msgspec.Meta(ge=1, le=86400)] = 10

    def apply(self, connection: socket.socket) -> None:
        """
        Set a connection up; does nothing to one that is not TCP.

        @raise OSError: it is gone.
        """
        if connection.family == socket.AF_UNIX:
            return
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (socket.TCP_NODELAY, 1),
            (socket.TCP_KEEPIDLE, self.idle),
            (socket.TCP_KEEPINTVL, self.interval),
            (socket.TCP_KEEPCNT, self.count),
            (socket.TCP_USER_TIMEOUT, 1000 * self.userTimeout),
        ):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
