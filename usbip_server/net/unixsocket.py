"""
Listening on a unix socket that an earlier process may have left behind. Twisted's own lock file has
the number of the process that made it, which after a crash in a container is also the number of the
next process; this one is locked with flock(2), which ends with its process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory
from zope.interface import implementer


class SocketInUse(OSError):
    """
    Another process listens on a unix socket, or is about to.
    """

    def __init__(self) -> None:
        super().__init__(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def listenUnix(
    reactor: Any, path: str, factory: IProtocolFactory, backlog: int, mode: int
) -> IListeningPort:
    """
    Listen on a unix socket, in place of one on which no process listens any more.

    @param reactor: provides C{IReactorUNIX}.
    @param mode: the permissions of the file.
    @raise CannotListenError: that is not possible; its cause is an C{OSError}.
    """
    if path.startswith("\0"):  # the kernel removes such a socket itself
        return _listen(reactor, path, factory, backlog, mode)
    try:
        lock = _SocketLock(path)
    except OSError as error:
        raise CannotListenError(None, path, error) from error
    try:
        if isUnused(path):
            os.unlink(path)
        return _LockedPort(_listen(reactor, path, factory, backlog, mode), lock)
    except OSError as error:
        lock.release()
        raise CannotListenError(None, path, error) from error
    except BaseException:
        lock.release()
        raise


def isUnused(path: str) -> bool:
    """
    Is there a socket on which no process listens?

    @raise SocketInUse: a process listens on it.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
        number = client.connect_ex(path)
    if number in (0, errno.EAGAIN):  # EAGAIN: its backlog is full
        raise SocketInUse
    return number == errno.ECONNREFUSED


def _listen(
    reactor: Any, path: str, factory: IProtocolFactory, backlog: int, mode: int
) -> IListeningPort:
    port: IListeningPort = reactor.listenUNIX(path, factory, backlog, mode, wantPID=False)
    return port


class _SocketLock:
    """
    A locked file beside a socket.
    """

    def __init__(self, path: str) -> None:
        """
        @raise SocketInUse: another process has the lock.
        @raise OSError: the file cannot be opened.
        """
        self._path = f"{path}.lock"
        while True:
            self._descriptor = self._open(path)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._isThere():
                    return
            except BlockingIOError:
                os.close(self._descriptor)
                raise SocketInUse from None
            os.close(self._descriptor)  # the process that had the lock has removed the file

    def release(self) -> None:
        """Remove the file, and unlock it."""
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        os.close(self._descriptor)

    def _open(self, path: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            return os.open(self._path, flags, 0o600)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
        isUnused(path)  # it is a lock of Twisted's, which is a symlink
        os.unlink(self._path)
        return os.open(self._path, flags, 0o600)

    def _isThere(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False


@implementer(IListeningPort)
class _LockedPort:
    """
    A port that holds a lock until it is closed.
    """

    def __init__(self, port: IListeningPort, lock: _SocketLock) -> None:
        self._port = port
        self._lock: _SocketLock | None = lock

    def startListening(self) -> None:
        """It does already."""

    def stopListening(self) -> Deferred[None]:
        """
        Close the socket, and remove it.
        """
        return maybeDeferred(self._port.stopListening).addBoth(self._release)

    def getHost(self) -> IAddress:
        """
        The address.
        """
        return self._port.getHost()

    def _release(self, result: Any) -> Any:
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        return result
