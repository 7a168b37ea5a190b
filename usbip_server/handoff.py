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

from usbip_server.device import Encryption, Holder, Traffic, UsbDevice
from usbip_server.errors import InvalidRequest
from usbip_server.hangups import Hangups

TRAFFIC_AT = 120
"""Where C{tcpi_bytes_acked} and C{tcpi_bytes_received} are (C{struct tcp_info},
C{include/uapi/linux/tcp.h})."""

Stay = tuple[str, int]
"""Bus id and device number."""


class NotEncrypted(Exception):
    """
    A connection is not encrypted as it has to be. The text says why, and what to do.
    """


class Carrier(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """
    What USB traffic goes over.

    @ivar given: what the device gets.
    @ivar connection: the client's, whose end is the end of the session: the same, unless
        somebody carries between the two.
    @ivar begin: called when the device has it and the client was answered.
    @ivar drop: called when it does not come to that.
    """

    given: socket.socket
    connection: socket.socket
    encryption: Encryption = Encryption.NONE
    begin: Callable[[], None] = lambda: None
    drop: Callable[[], None] = lambda: None


class Handoff(msgspec.Struct, frozen=True, eq=False):
    """
    One session.

    @ivar connection: a duplicate of our own: the client's is closed when its protocol likes.
    @ivar ended: called when it has ended.
    """

    device: UsbDevice
    connection: socket.socket
    holder: Holder
    ended: Callable[[], None]

    @property
    def stay(self) -> Stay:
        """Of the device."""
        return self.device.busId, self.device.deviceNumber

    def traffic(self) -> Traffic | None:
        """What it has moved so far."""
        with contextlib.suppress(OSError, struct.error):
            info = self.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            acked, received = struct.unpack_from("=QQ", info, TRAFFIC_AT)
            return Traffic(bytesIn=received, bytesOut=acked)
        return None


class Handoffs(Hangups):
    """
    Those there are.
    """

    def __init__(self, reactor: Any) -> None:
        """
        @param reactor: provides C{IReactorFDSet}.
        """
        super().__init__(reactor)
        self._open: dict[int, Handoff] = {}
        self._past: dict[Stay, tuple[Holder, Traffic | None]] = {}

    def begin(self, handoff: Handoff) -> None:
        """A session is about to begin: C{add} it then, or C{drop} it."""
        self._open[handoff.connection.fileno()] = handoff

    def drop(self, handoff: Handoff) -> None:
        """It does not come to that; its connection is closed."""
        self._open.pop(handoff.connection.fileno(), None)
        handoff.connection.close()

    def add(self, handoff: Handoff) -> None:
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
        stay = device.busId, device.deviceNumber
        for handoff in self._open.values():
            if handoff.stay == stay and handoff.holder == device.holder:
                return handoff.traffic()
        holder, traffic = self._past.get(stay, (None, None))
        return traffic if holder == device.holder else None

    def isOpen(self, device: UsbDevice) -> bool:
        """Has a client of ours the device?"""
        stay = device.busId, device.deviceNumber
        return any(handoff.stay == stay for handoff in self._open.values())

    def forget(self, device: UsbDevice) -> None:
        """The device is gone."""
        self._past.pop((device.busId, device.deviceNumber), None)

    def _over(self, handoff: Handoff) -> None:
        del self._open[handoff.connection.fileno()]
        self._past[handoff.stay] = handoff.holder, handoff.traffic()
        handoff.connection.close()
        handoff.ended()


def requireSilence(connection: socket.socket) -> None:
    """
    A client says nothing more until it is answered: what it said would be taken for USB
    traffic.

    @raise InvalidRequest: it has, or it is gone.
    """
    try:
        more = connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return
    except OSError as error:
        raise InvalidRequest(f"the connection is gone: {error}") from error
    raise InvalidRequest(
        "there is something behind the request" if more else "it leaves before it is answered"
    )
