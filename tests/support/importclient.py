"""
What stands between a client and a backend in the daemon, in little.
"""

from __future__ import annotations

import contextlib
import select
import socket
from functools import partial
from typing import Any, cast

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import blockingCallFromThread

from usbip_server.interfaces import IUsbBackend
from usbip_server.model.device import Holder, UsbDevice
from usbip_server.model.errors import OperationFailed
from usbip_server.model.usbip import (
    LONGEST_REQUEST,
    ImportRequest,
    NotUsbIp,
    OpStatus,
    decode,
    encodeImport,
    encodeRefusal,
)
from usbip_server.runtime.threads import startThread

DEADLINE = 60.0
"""Seconds for a backend to take a connection."""

SINCE = 1722470400.5
"""When all holders began, in seconds since the epoch."""


class Door:
    """
    Lets clients import a backend's devices: takes connections, hears what is wanted, gives
    the connection to the device and answers. Each has a thread; the backend is called in the
    reactor's.

    @ivar port: where it listens.
    """

    def __init__(self, backend: IUsbBackend) -> None:
        self._backend = backend
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        startThread(self._accept)

    def close(self) -> None:
        """Listen no more; sessions go on."""
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, address = self._listener.accept()
                startThread(partial(self._serve, connection, address[0]))

    def _serve(self, connection: socket.socket, address: str) -> None:
        with contextlib.suppress(OSError, NotUsbIp), connection:
            busId = requested(connection)
            connection.setblocking(False)  # as Twisted's are
            try:
                device: UsbDevice = blockingCallFromThread(
                    cast(Any, reactor), self._export, busId, connection, address
                )
            except OperationFailed:
                connection.sendall(encodeRefusal(OpStatus.ERROR))
            else:
                connection.sendall(encodeImport(device))
                untilShutDown(connection)

    def _export(self, busId: str, connection: socket.socket, address: str) -> Any:
        device = self._backend.inventory.get(busId)
        assert device is not None
        holder = Holder(address=address, since=SINCE)
        return Deferred.fromCoroutine(self._backend.export(device, connection, holder, DEADLINE))


def requested(connection: socket.socket) -> str:
    """
    The bus id of the device that a client wants. Blocks.

    @raise NotUsbIp: it wants none.
    """
    received = b""
    while not (request := decode(received)):
        more = connection.recv(LONGEST_REQUEST)
        if not more:
            raise NotUsbIp("it is gone")
        received += more
    if not isinstance(request, ImportRequest):
        raise NotUsbIp("it only asks")
    return request.busId


def untilShutDown(connection: socket.socket, seconds: float | None = None) -> bool:
    """
    Wait until a connection has been shut down, by whomever. Blocks, and reads nothing.

    @return: has it, within so many seconds?
    """
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(None if seconds is None else 1000 * seconds))
