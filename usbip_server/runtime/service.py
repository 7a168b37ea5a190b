"""
Reading the configuration anew, when somebody says so with C{SIGHUP}.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger


class Rereading:
    """
    Has it done once for each signal, one after the other, however quickly they come.
    """

    _log = Logger()

    def __init__(self, reactor: IReactorFromThreads, reread: Callable[[], Awaitable[None]]) -> None:
        self._reactor = reactor
        self._reread = reread
        self._last: Deferred[None] = succeed(None)
        self._handlerBefore: Any = None

    def start(self) -> None:
        """Heed the signal from now on."""
        with contextlib.suppress(ValueError):  # not in the main thread
            self._handlerBefore = signal.signal(signal.SIGHUP, self._signalled)

    def stop(self) -> None:
        """Leave it to whoever had it before."""
        if self._handlerBefore is not None:
            signal.signal(signal.SIGHUP, self._handlerBefore)
            self._handlerBefore = None

    def _signalled(self, number: int, frame: object) -> None:
        self._reactor.callFromThread(self._next)

    def _next(self) -> None:
        self._last.addCallback(lambda _: Deferred.fromCoroutine(self._once()))

    async def _once(self) -> None:
        try:
            await self._reread()
        except Exception:
            self._log.failure("a bug in reading the configuration anew")


def notify(state: str) -> None:
    """
    Tell whoever has started us, if it wants to know.

    @param state: C{"READY=1"}, C{"STOPPING=1"}, C{"STATUS=..."}, several on a line each.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # in the abstract namespace
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto(state.encode(), socket.MSG_DONTWAIT, address)
        except OSError:
            return  # nobody there to hear it


SPARE = 96
"""Those that are not connections: listening sockets, sysfs, the log, child processes
(hooks have three pipes each), and those who are just being turned away."""


_log = Logger()


def affordable(wanted: int, files: int = 1) -> int:
    """
    Make room for connections, as far as the system lets us, and warn if that is not enough.

    @param files: how many each one takes.
    @return: for how many of those wanted there is room.
    """
    room = max(1, _room(files * wanted) // files)
    if room < wanted:
        _log.warn(
            "room for {room} connections only, not {wanted}: the limit on open files is too "
            "low (LimitNOFILE= in the systemd unit, or ulimit -n)",
            room=room,
            wanted=wanted,
        )
    return room


def _room(connections: int) -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + SPARE
    if soft != resource.RLIM_INFINITY and soft < needed:
        wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return connections
    return max(1, min(connections, soft - SPARE))
