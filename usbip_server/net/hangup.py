"""
Connections that others read and write: all that we want to know is when they end.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer


@implementer(IReadDescriptor)
class HangupWatcher:
    """
    An epoll set within the reactor's: that has no way to ask for the end of a connection only,
    and would be woken by everything that is to be read.

    @ivar isStopped: is nothing listened for any more?
    """

    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        """
        @param reactor: provides C{IReactorFDSet}.
        """
        self.isStopped = False
        self._reactor = reactor
        self._epoll: select.epoll | None = None
        self._whenOver: dict[int, Callable[[], None]] = {}

    def listen(self, connection: socket.socket, over: Callable[[], None]) -> None:
        """
        Listen for the end of a connection, until L{leave}.

        @param over: called with the end, once.
        """
        if self._epoll is None:
            self._epoll = select.epoll()
            self._reactor.addReader(self)
        self._whenOver[connection.fileno()] = over
        # Not EPOLLIN: what there is to be read is not for us.
        self._epoll.register(connection.fileno(), select.EPOLLRDHUP)

    def leave(self, connection: socket.socket) -> None:
        """Listen no more for that of one; it is not closed yet."""
        if self._whenOver.pop(connection.fileno(), None) is not None and self._epoll is not None:
            self._epoll.unregister(connection.fileno())

    def stop(self) -> None:
        """Listen no more; the connections go on."""
        self.isStopped = True
        if self._epoll is not None:
            self._reactor.removeReader(self)
            self._epoll.close()
            self._epoll = None

    def fileno(self) -> int:
        return -1 if self._epoll is None else self._epoll.fileno()

    def logPrefix(self) -> str:
        return "sessions"

    def doRead(self) -> None:
        if self._epoll is None:
            return
        for descriptor, _ in self._epoll.poll(0):
            over = self._whenOver.pop(descriptor, None)
            if over is None or self._epoll is None:
                continue  # somebody has left, or stopped all, when another one's end was told
            self._epoll.unregister(descriptor)
            try:
                over()
            except Exception:
                self._log.failure("a bug at the end of a session")

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops: the sessions do not."""
