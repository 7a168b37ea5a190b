"""
A background process that relays the USB traffic of a TLS connection that the kernel cannot
encrypt itself. It outlives the command, and ends with the session.

The keys of the connection are in the memory of this process, so the other one is made by C{fork},
which needs a process with one thread only.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

STANDARD = 3
"""The number of standard descriptors: input, output, error."""


class RelayProcess:
    """
    Starts the process.

    @ivar pid: of the process; C{None} until it is started.
    """

    def __init__(self) -> None:
        self.pid: int | None = None

    def start(self, secured: ssl.SSLSocket, ours: socket.socket) -> None:
        """
        Start a process that relays between the two. Closes both in this process.

        @raise OSError: no further process can be started.
        """
        from usbip_server.client.blockingrelay import relay

        pid = os.fork()
        if pid == 0:
            try:
                _leave(secured.fileno(), ours.fileno())
                relay(secured, ours)
            finally:
                os._exit(0)
        self.pid = pid
        secured.close()  # sends no close_notify
        ours.close()


def _leave(*needed: int) -> None:
    """
    Detach from the terminal, the working directory and the open files of the parent process.
    """
    os.setsid()
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(STANDARD):
        os.dup2(nothing, descriptor)
    for name in os.listdir("/proc/self/fd"):
        if int(name) >= STANDARD and int(name) not in needed:
            with contextlib.suppress(OSError):
                os.close(int(name))
