"""
USB/IP sessions: connections that were handed to devices.

The kernel (or another part of this process) reads and writes such a connection. A duplicate of
the socket stays here for three purposes: its hang-up is the only sign that the session has
ended, it counts the bytes transferred, and it identifies the client.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from usbip_server.model.device import Holder, PlugId, Traffic, UsbDevice
from usbip_server.net.hangup import HangupWatcher

TRAFFIC_AT = 120
"""Offset of C{tcpi_bytes_acked} and C{tcpi_bytes_received} in C{struct tcp_info}
(C{include/uapi/linux/tcp.h})."""

REMEMBERED = 256
"""Ended sessions whose traffic is still known."""


class Session(msgspec.Struct, frozen=True, eq=False):
    """
    One client's use of one device.

    @ivar connection: a duplicate of the client's socket, which its protocol may close.
    @ivar ended: called when the session has ended.
    """

    device: UsbDevice
    connection: socket.socket
    holder: Holder
    ended: Callable[[], None]

    def traffic(self) -> Traffic | None:
        """The bytes transferred so far; C{None} if the kernel does not say."""
        with contextlib.suppress(OSError, struct.error):
            info = self.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            acked, received = struct.unpack_from("=QQ", info, TRAFFIC_AT)
            return Traffic(bytesIn=received, bytesOut=acked)
        return None


class SessionTable(HangupWatcher):
    """
    The sessions in progress, and the traffic of those that have ended.
    """

    def __init__(self, reactor: Any) -> None:
        """
        @param reactor: provides C{IReactorFDSet}.
        """
        super().__init__(reactor)
        self._open: dict[int, Session] = {}
        self._past: dict[PlugId, tuple[Holder, Traffic | None]] = {}

    def begin(self, session: Session) -> None:
        """Register a session that is about to begin: C{add} or C{drop} follows."""
        self._open[session.connection.fileno()] = session

    def drop(self, session: Session) -> None:
        """Remove a session that did not begin, and close its connection."""
        self._open.pop(session.connection.fileno(), None)
        session.connection.close()

    def add(self, session: Session) -> None:
        """Watch for the end of a session; its connection is closed then."""
        if self.isStopped:
            self.drop(session)
            return
        self._open[session.connection.fileno()] = session
        self.listen(session.connection, partial(self._over, session))

    def traffic(self, device: UsbDevice) -> Traffic | None:
        """
        The bytes that a device's holder has transferred, in this session or in one that has
        ended.
        """
        for session in self._open.values():
            if session.device.plugId == device.plugId and session.holder == device.holder:
                return session.traffic()
        holder, traffic = self._past.get(device.plugId, (None, None))
        return traffic if holder == device.holder else None

    def isOpen(self, device: UsbDevice) -> bool:
        """Is there a session of this device?"""
        return any(session.device.plugId == device.plugId for session in self._open.values())

    def _over(self, session: Session) -> None:
        del self._open[session.connection.fileno()]
        self._past.pop(session.device.plugId, None)
        self._past[session.device.plugId] = session.holder, session.traffic()
        if len(self._past) > REMEMBERED:
            del self._past[next(iter(self._past))]
        session.connection.close()
        session.ended()
