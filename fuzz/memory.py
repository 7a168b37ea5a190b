"""
A daemon in memory, for inputs that are a whole connection.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher

from tests.support.fixtures import (
    ALICE,
    DEVICES,
    EVERYBODY,
    MemoryTransport,
    PromptBackend,
    Wire,
    asked,
    changed,
)
from usbip_server.model.device import DeviceState
from usbip_server.model.options import Limits, Timeouts
from usbip_server.server.config import LiveSettings, Settings
from usbip_server.server.core import Core
from usbip_server.testing.reactor import FakeReactor

BOUND = changed(DEVICES[0], state=DeviceState.BOUND)
FOR_EVER = 40 * 86400.0
"""Seconds: whatever is to end at some time has ended then."""


class SocketTransport(MemoryTransport):
    """
    With a socket, which an exporter hands over.
    """

    def __init__(self) -> None:
        super().__init__()
        self.client, self._server = socket.socketpair()
        self._server.setblocking(False)

    def getHandle(self) -> socket.socket:
        """See C{twisted.internet.interfaces.ISystemHandle}."""
        return self._server

    def close(self) -> None:
        """Leave nothing."""
        self.client.close()
        self._server.close()


class Memory:
    """
    Devices, of which one is bound, and what shares them with everybody.

    @ivar logged: what is worth a look.
    """

    limits = Limits(requestBytes=1024)
    timeouts = Timeouts()

    def __init__(self) -> None:
        self.reactor = FakeReactor()
        self.backend = PromptBackend((BOUND, *DEVICES[1:]))
        self.settings = LiveSettings(
            Settings(access=EVERYBODY, limits=self.limits, timeouts=self.timeouts)
        )
        self.core = Core(self.backend, self.reactor, self.settings, now=self.reactor.seconds)
        self.logged: list[LogEvent] = []
        asked(self.core.start())

    def warnings(self) -> list[str]:
        """What it has logged, as text; nothing of that is a bug."""
        assert not [event for event in self.logged if event["log_level"] is LogLevel.critical]
        return [formatEvent(event) for event in self.logged]

    def end(self) -> None:
        """Nothing is left when it has ended."""
        stopped = asked(self.core.stop())
        self.reactor.advance(FOR_EVER)
        assert stopped.called
        assert self.reactor.getDelayedCalls() == []

    def note(self, event: LogEvent) -> None:
        """An observer of the log."""
        if event["log_level"] >= LogLevel.warn:
            self.logged.append(event)


@contextmanager
def daemon() -> Iterator[Memory]:
    """
    One that ends with the C{with}, without a trace.
    """
    memory = Memory()
    observer = cast(ILogObserver, memory.note)
    globalLogPublisher.addObserver(observer)
    try:
        yield memory
        memory.end()
        memory.warnings()
    finally:
        globalLogPublisher.removeObserver(observer)


__all__ = ["ALICE", "BOUND", "Memory", "SocketTransport", "Wire", "daemon"]
