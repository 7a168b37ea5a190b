"""
Reports the end of sockets that this process does not read (C{EPOLLRDHUP}).
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
    An epoll set of its own, which the reactor polls: the reactor's interface cannot wait for the
    end of a connection only, and would be woken by all data that arrives.

    @ivar isStopped: whether C{stop} was called.
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
        Wait for the end of a connection, until L{leave}.

        @param over: called once, at the end.
        """
        if self._epoll is None:
            self._epoll = select.epoll()
            self._reactor.addReader(self)
        self._whenOver[connection.fileno()] = over
        # Not EPOLLIN: the data is for another reader.
        self._epoll.register(connection.fileno(), select.EPOLLRDHUP)

    def leave(self, connection: socket.socket) -> None:
        """Wait no longer for the end of a connection. To be called before it is closed."""
        if self._whenOver.pop(connection.fileno(), None) is not None and self._epoll is not None:
            self._epoll.unregister(connection.fileno())

    def stop(self) -> None:
        """Wait no longer for any. The connections are not touched."""
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
                continue  # leave or stop was called by the callback of another connection
            self._epoll.unregister(descriptor)
            try:
                over()
            except Exception:
                self._log.failure("a bug at the end of a session")

    def connectionLost(self, reason: Failure) -> None:
        """The reactor has stopped. The sessions go on."""
