"""
Connections that were given away: USB traffic goes over them now, and we only listen for
their end.

Whoever has a connection, the kernel mostly, reads and writes it without us. We keep it open
for three things: that it is shut down says that the session has ended, and nothing else
announces that; it counts bytes; and it knows who is at the other end.
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
"""Where C{tcpi_bytes_acked} and C{tcpi_bytes_received} are (C{struct tcp_info},
C{include/uapi/linux/tcp.h})."""


class Session(msgspec.Struct, frozen=True, eq=False):
    """
    One session.

    @ivar connection: a duplicate of our own: the client's is closed when its protocol likes.
    @ivar ended: called when it has ended.
    """

    device: UsbDevice
    connection: socket.socket
    holder: Holder
    ended: Callable[[], None]

    def traffic(self) -> Traffic | None:
        """What it has moved so far."""
        with contextlib.suppress(OSError, struct.error):
            info = self.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            acked, received = struct.unpack_from("=QQ", info, TRAFFIC_AT)
            return Traffic(bytesIn=received, bytesOut=acked)
        return None


class SessionTable(HangupWatcher):
    """
    Those there are.
    """

    def __init__(self, reactor: Any) -> None:
        """
        @param reactor: provides C{IReactorFDSet}.
        """
        super().__init__(reactor)
        self._open: dict[int, Session] = {}
        self._past: dict[PlugId, tuple[Holder, Traffic | None]] = {}

    def begin(self, handoff: Session) -> None:
        """A session is about to begin: C{add} it then, or C{drop} it."""
        self._open[handoff.connection.fileno()] = handoff

    def drop(self, handoff: Session) -> None:
        """It does not come to that; its connection is closed."""
        self._open.pop(handoff.connection.fileno(), None)
        handoff.connection.close()

    def add(self, handoff: Session) -> None:
        """
        Listen for the end of a session, and close its connection then.
        """
        if self.isStopped:
            self.drop(handoff)
            return
        self._open[handoff.connection.fileno()] = handoff
        self.listen(handoff.connection, partial(self._over, handoff))

    def traffic(self, device: UsbDevice) -> Traffic | None:
        """
        What a device's holder has moved, also when that was the last one and is gone.
        """
        for handoff in self._open.values():
            if handoff.device.plugId == device.plugId and handoff.holder == device.holder:
                return handoff.traffic()
        holder, traffic = self._past.get(device.plugId, (None, None))
        return traffic if holder == device.holder else None

    def isOpen(self, device: UsbDevice) -> bool:
        """Has a client of ours the device?"""
        return any(handoff.device.plugId == device.plugId for handoff in self._open.values())

    def forget(self, device: UsbDevice) -> None:
        """The device is gone."""
        self._past.pop(device.plugId, None)

    def _over(self, handoff: Session) -> None:
        del self._open[handoff.connection.fileno()]
        self._past[handoff.device.plugId] = handoff.holder, handoff.traffic()
        handoff.connection.close()
        handoff.ended()
