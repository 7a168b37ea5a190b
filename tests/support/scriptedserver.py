"""
A server that says what it is told to, in threads of its own.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType

from tests.support.fixtures import UNO
from usbip_server.client.servers import Server
from usbip_server.model.usbip import encodeImport

SECONDS = 60.0

REQUEST, LIST_REQUEST = 40, 8
"""Bytes that a client says."""

GIVEN = encodeImport(UNO)

Play = Callable[[socket.socket], None]
"""What it does with a connection, which is closed then."""


class ScriptedServer:
    """
    Listens as long as a C{with} lasts, and its connections as well.

    @ivar heard: what came over each of them, as far as C{play} has not read it.
    """

    def __init__(self, play: Play, address: str = "127.0.0.1") -> None:
        self._play = play
        self._address = address
        self.heard: list[bytes] = []

    def __enter__(self) -> ScriptedServer:
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        self._listening = socket.create_server((self._address, 0), family=family)
        self._threads: list[threading.Thread] = []
        self._start(self._serve)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(SECONDS)
        self._listening.close()

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._listening.getsockname()[1]
        return port

    @property
    def server(self) -> Server:
        """As a client knows it, for USB/IP and for requests."""
        return Server(name="raspi", host=self._address, port=self.port, exportPort=self.port)

    def _start(self, function: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=function, daemon=True))
        self._threads[-1].start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                connection.settimeout(SECONDS)
                self._start(partial(self._serveOne, connection))

    def _serveOne(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self._play(connection)
            self.heard.append(_rest(connection))


def says(*segments: bytes, size: int = REQUEST) -> Play:
    """Answers with these."""

    def play(connection: socket.socket) -> None:
        received(connection, size)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for segment in segments:
            connection.sendall(segment)

    return play


def connections() -> set[str]:
    """The sockets that this process has open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{name}"))
    return {target for target in found if target.startswith("socket:")}


def received(end: socket.socket, size: int) -> bytes:
    """What comes, up to a size."""
    data = bytearray()
    while len(data) < size:
        more = end.recv(min(65536, size - len(data)))
        if not more:
            break
        data += more
    return bytes(data)


def _rest(connection: socket.socket) -> bytes:
    """What still comes, until the other end is closed."""
    connection.shutdown(socket.SHUT_WR)
    rest = b""
    while more := connection.recv(65536):
        rest += more
    return rest
