"""
TCP keepalive: has the kernel end a connection whose other end has vanished.

This module does not import Twisted, so that a command can use it and start quickly;
L{usbip_server.net.liveness} is for Twisted's connections.
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
    When the kernel ends a connection whose other end does not answer (tcp(7)).

    @ivar idle: seconds without data before the first probe.
    @ivar interval: seconds between probes.
    @ivar count: the number of probes without an answer after which the connection is ended.
    @ivar userTimeout: seconds that sent data may remain unacknowledged; meanwhile no probes are
        sent.
    """

    idle: Annotated[int, msgspec.Meta(ge=1, le=32767)] = 5
    interval: Annotated[int, msgspec.Meta(ge=1, le=32767)] = 2
    count: Annotated[int, msgspec.Meta(ge=1, le=127)] = 3
    userTimeout: Annotated[int, msgspec.Meta(ge=1, le=86400)] = 10

    def apply(self, connection: socket.socket) -> None:
        """
        Set the options of a socket, and C{TCP_NODELAY}. Does nothing to a unix socket.

        @raise OSError: the socket is closed.
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
