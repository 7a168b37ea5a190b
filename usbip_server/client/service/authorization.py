"""
Identifies the peer of a unix socket (SO_PEERCRED, SO_PEERGROUPS), and checks whether it may use the
client service.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import Any

from usbip_server.client.service.config import LiveSettings
from usbip_server.model.errors import NotAllowed
from usbip_server.model.policy import LOCAL, Principal
from usbip_server.net.caller import UCRED

SO_PEERGROUPS = 59
"""C{include/uapi/asm-generic/socket.h}; the C{socket} module does not define it."""

GROUP_SIZE = 4

MOST_GROUPS = 256
"""The most that C{getsockopt} of Python can return. Of a process with more supplementary groups
only the first group is known."""


class Peer(Principal, frozen=True):
    """
    A process on this machine, perhaps in a container.

    @ivar gids: its groups.
    """

    gids: tuple[int, ...] = ()


def peerOf(transport: Any) -> Peer:
    """
    Identify the peer of a connection.

    @param transport: an C{ITransport} over a unix socket.
    """
    with contextlib.suppress(OSError, AttributeError):
        connection: socket.socket = transport.getHandle()
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
        _, uid, gid = UCRED.unpack(raw)
        return Peer(LOCAL, uid=uid, gids=(gid, *_supplementaryGroups(connection)))
    return Peer(LOCAL)


def _supplementaryGroups(connection: socket.socket) -> tuple[int, ...]:
    with contextlib.suppress(OSError):  # before Linux 4.13; or more than MOST_GROUPS
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, GROUP_SIZE * MOST_GROUPS)
        return struct.unpack(f"={len(raw) // GROUP_SIZE}I", raw)
    return ()


class SocketAuthorizer:
    """
    Allows root, the user of the service, members of the socket's group, and the users and groups
    in the configuration.

    @ivar group: the socket's group; C{None} until it exists.
    """

    def __init__(self, settings: LiveSettings) -> None:
        self.group: int | None = None
        self._settings = settings

    def check(self, peer: Principal) -> None:
        """
        @raise NotAllowed: the peer may not use the socket.
        """
        config = self._settings.config.socket
        groups = peer.gids if isinstance(peer, Peer) else ()
        if peer.uid in (0, os.geteuid(), *config.allowUids):
            return
        if not {self.group, *config.allowGids}.isdisjoint(groups):
            return
        raise NotAllowed(
            f"user {peer.uid} may not use this socket: it takes root, the socket's group, or "
            "`socket: {allow_uids: [...], allow_gids: [...]}` in the service's configuration"
        )
