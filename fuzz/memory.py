"""A daemon in memory, for inputs that are all that a client sends."""

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
"""Seconds after which all timeouts have expired."""


class SocketTransport(MemoryTransport):
    """A transport with a socket, which an exporter hands over."""

    def __init__(self) -> None:
        super().__init__()
        self.client, self._server = socket.socketpair()
        self._server.setblocking(False)

    def getHandle(self) -> socket.socket:
        """See C{twisted.internet.interfaces.ISystemHandle}."""
        return self._server

    def close(self) -> None:
        """Close both ends."""
        self.client.close()
        self._server.close()


class Memory:
    """A daemon with devices of which one is bound, and which all clients may use.

    @ivar logged: its warnings and errors."""

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
        """The warnings, as text. Asserts that no bug is among them."""
        assert not [event for event in self.logged if event["log_level"] is LogLevel.critical]
        return [formatEvent(event) for event in self.logged]

    def end(self) -> None:
        """Stop the daemon, and assert that it has no timers left."""
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
    """Run a daemon until the C{with} ends, and assert that it has logged no bug."""
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
