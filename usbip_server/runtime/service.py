"""
What a Twisted daemon needs from its host: SIGHUP, systemd's notifications, and the limit on open
files.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn

from twisted.internet.defer import Deferred
from twisted.logger import Logger

SPARE_FILES = 96
"""Descriptors for anything but connections: listening sockets, sysfs, the log, child processes
(hooks have three pipes each), and connections that are being refused."""

WRONG_CONFIGURATION = os.EX_CONFIG
"""The exit status of a daemon whose configuration is wrong: the packaged units have it in
C{RestartPreventExitStatus=}, as a restart would not help."""

_log = Logger()


def exitWrongConfiguration(reason: object) -> NoReturn:
    """
    Write what is wrong with the configuration to standard error, and end the process with
    C{WRONG_CONFIGURATION}.
    """
    print(reason, file=sys.stderr)
    sys.exit(WRONG_CONFIGURATION)


class ReloadOnHangup:
    """
    Calls a coroutine function after C{SIGHUP}. Signals that arrive before it begins are one, and
    those that arrive while it runs are one more call after it.
    """

    _log = Logger()

    def __init__(self, reactor: Any, reload: Callable[[], Awaitable[None]]) -> None:
        """
        @param reactor: provides C{IReactorFromThreads}.
        @param reload: logs its own errors; an exception is a bug.
        """
        self._reactor = reactor
        self._reload = reload
        self._isRequested = False
        self._isReloading = False
        self._handlerBefore: Any = None

    def start(self) -> None:
        """Install the signal handler. Does nothing outside the main thread."""
        with contextlib.suppress(ValueError):
            self._handlerBefore = signal.signal(signal.SIGHUP, self._signalled)

    def stop(self) -> None:
        """Restore the handler that there was before."""
        if self._handlerBefore is not None:
            signal.signal(signal.SIGHUP, self._handlerBefore)
            self._handlerBefore = None

    def _signalled(self, number: int, frame: object) -> None:
        if not self._isRequested:
            self._isRequested = True
            self._reactor.callFromThread(self._begin)

    def _begin(self) -> None:
        if not self._isReloading:
            Deferred.fromCoroutine(self._reloadWhileRequested())

    async def _reloadWhileRequested(self) -> None:
        self._isReloading = True
        while self._isRequested:
            self._isRequested = False
            try:
                await self._reload()
            except Exception:
                self._log.failure("a bug in reloading the configuration")
        self._isReloading = False


def notify(state: str) -> None:
    """
    Send a notification to systemd (sd_notify(3)). Does nothing if the daemon was not started by it.

    @param state: lines such as C{"READY=1"}, C{"STOPPING=1"}, C{"STATUS=..."}.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # in the abstract namespace
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
        contextlib.suppress(OSError),  # nothing receives it
    ):
        sender.sendto(state.encode(), socket.MSG_DONTWAIT, address)


def removeStalePidFile(twistd: Any) -> None:
    """
    Remove a pid file that an earlier C{twistd} has left, if its number is now that of this process,
    as in a container, or that of another program. Otherwise C{twistd} takes that process for a
    running daemon, and does not start.

    @param twistd: the options of C{twistd}; C{None}, or without C{pidfile}: there is no pid file.
    """
    path = twistd and twistd.get("pidfile")
    if not path:
        return
    with contextlib.suppress(OSError, ValueError):  # twistd reports them
        pid = int(Path(path).read_text())
        if pid == os.getpid() or b"twistd" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.unlink(path)
            _log.warn("removed {path}, which an earlier daemon has left", path=path)


def allowConnections(wanted: int, files: int = 1) -> int:
    """
    Raise the limit on open files (C{RLIMIT_NOFILE}) for a number of connections, and log a warning
    if it cannot be raised far enough.

    @param files: descriptors for each connection.
    @return: the number of connections that the limit allows, at most C{wanted}.
    """
    allowed = max(1, _raiseLimit(files * wanted) // files)
    if allowed < wanted:
        _log.warn(
            "room for {room} connections only, not {wanted}: the limit on open files is too "
            "low (LimitNOFILE= in the systemd unit, or ulimit -n)",
            room=allowed,
            wanted=wanted,
        )
    return allowed


def _raiseLimit(files: int) -> int:
    """
    @return: how many of the descriptors wanted the limit allows.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = files + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return files
    return max(1, min(files, soft - SPARE_FILES))
