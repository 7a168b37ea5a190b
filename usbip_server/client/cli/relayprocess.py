"""
Carrying USB traffic for a TLS connection that the kernel cannot encrypt, when the program that
has made it ends: in a process of its own, which ends with the session.

A connection's keys are in this process's memory, so the other one has to be made of this:
C{fork}, which is to be called while there is one thread only.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl

from usbip_server.client.blockingrelay import relay

STANDARD = 3
"""Descriptors: input, output, error."""


class RelayProcess:
    """
    Begins it.

    @ivar pid: of the process; C{None} as long as there is none.
    """

    def __init__(self) -> None:
        self.pid: int | None = None

    def carry(self, secured: ssl.SSLSocket, ours: socket.socket) -> None:
        """
        Have it carry between the two, which it closes in the end; they are closed here.

        @raise OSError: there can be no more processes.
        """
        pid = os.fork()
        if pid == 0:
            try:
                _leave(secured.fileno(), ours.fileno())
                relay(secured, ours)
            finally:
                os._exit(0)
        self.pid = pid
        secured.close()  # without a word to the other end
        ours.close()


def _leave(*needed: int) -> None:
    """
    Keep nothing of what the other process has: not its terminal, its folder, nor its files.
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
