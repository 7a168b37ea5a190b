"""
Who is at the other end of the client service's socket, and who may be.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

from usbip_server.model.errors import NotAllowed
from usbip_server.model.policy import LOCAL, Principal
from usbip_server.net.caller import UCRED

SO_PEERGROUPS = 59
"""C{include/uapi/asm-generic/socket.h}; the C{socket} module has no name for it."""

GROUP_SIZE = 4

MOST_GROUPS = 256
"""As many as C{getsockopt} of Python takes. Whoever is in more has none here but the first."""


class Peer(Principal, frozen=True):
    """
    Somebody of this machine, be it from within a container.

    @ivar gids: the groups it is in.
    """

    gids: tuple[int, ...] = ()


def peerOf(transport: Any) -> Peer:
    """
    Who is at the other end of a unix socket.

    @param transport: an C{ITransport}.
    """
    with contextlib.suppress(OSError, AttributeError):
        handle = transport.getHandle()
        raw = handle.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
        _, uid, gid = UCRED.unpack(raw)
        return Peer(LOCAL, uid=uid, gids=(gid, *_others(handle)))
    return Peer(LOCAL)


class SocketAuthorizer:
    """
    Knows who may ask: root, whoever the service itself is, the members of the socket's group,
    and those that the configuration names.
    """

    def __init__(self, uids: Sequence[int] = (), gids: Sequence[int] = ()) -> None:
        """
        @param uids: users that may.
        @param gids: groups whose members may.
        """
        self.become(uids, gids)

    def become(self, uids: Sequence[int], gids: Sequence[int]) -> None:
        """Let these from now on."""
        self._uids = {0, os.geteuid(), *uids}
        self._gids = {*gids}

    def check(self, peer: Principal) -> None:
        """
        @raise NotAllowed: they may not.
        """
        groups = peer.gids if isinstance(peer, Peer) else ()
        if peer.uid in self._uids or not self._gids.isdisjoint(groups):
            return
        raise NotAllowed(
            f"user {peer.uid} may not use this socket: it takes root, the socket's group, or "
            "`socket: {allow_uids: [...], allow_gids: [...]}` in the service's configuration"
        )


def _others(handle: socket.socket) -> tuple[int, ...]:
    """
    The other groups that whoever has connected is in.
    """
    with contextlib.suppress(OSError):  # before Linux 4.13; or too many
        raw = handle.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, GROUP_SIZE * MOST_GROUPS)
        return struct.unpack(f"={len(raw) // GROUP_SIZE}I", raw)
    return ()
