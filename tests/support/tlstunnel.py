"""
TLS for clients that cannot do it.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from types import TracebackType

CHUNK = 256 * 1024
SECONDS = 60.0


def carry(plain: socket.socket, secured: ssl.SSLSocket) -> None:
    """
    Carry what is said on either side to the other, until one of them is closed; then both are.
    """
    poll = select.poll()
    for end in (plain, secured):
        end.setblocking(True)
        poll.register(end, select.POLLIN)
    with contextlib.suppress(OSError, ValueError), plain, secured:
        while True:
            for descriptor, _ in poll.poll():
                isPlain = descriptor == plain.fileno()
                data = (plain if isPlain else secured).recv(CHUNK)
                if not data:
                    return
                (secured if isPlain else plain).sendall(data)
                while not isPlain and secured.pending():
                    plain.sendall(secured.recv(CHUNK))


class TlsTunnel:
    """
    Listens without TLS, and goes on with it, for as long as a C{with} lasts.

    @ivar port: where it listens, on 127.0.0.1.
    """

    def __init__(self, target: int, context: ssl.SSLContext) -> None:
        """
        @param target: the port, on 127.0.0.1, that it goes on to.
        """
        self._target = target
        self._context = context

    def __enter__(self) -> TlsTunnel:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with plain, contextlib.suppress(OSError):
            below = socket.create_connection(("127.0.0.1", self._target), SECONDS)
            for end in (plain, below):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with below:
                carry(plain, self._context.wrap_socket(below, server_hostname="localhost"))
