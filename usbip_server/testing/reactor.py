"""
A reactor that waits for the test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReadDescriptor, IWriteDescriptor
from twisted.internet.task import Clock


class FakeReactor(Clock):
    """
    A clock, threads that run when they are told to, and readers and writers that do so when
    told to.

    @ivar threads: functions that were to run in a thread, if C{hold} is set.
    @ivar hold: keep threads back until L{runThreads}.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hold = False
        self.threads: list[Callable[[], None]] = []
        self.readers: list[IReadDescriptor] = []
        self.writers: list[IWriteDescriptor] = []

    def spawn(self, function: Callable[[], None]) -> None:
        """For L{usbip_server.runtime.threads.BlockingCalls}: run now, or hold back."""
        if self.hold:
            self.threads.append(function)
        else:
            function()

    def runThreads(self) -> None:
        """Run what was held back, and what that starts."""
        self.hold = False
        while self.threads:
            self.threads.pop(0)()

    def callFromThread(self, function: Callable[..., Any], *args: Any) -> None:
        """Call it now: all is one thread here."""
        function(*args)

    def addReader(self, reader: IReadDescriptor) -> None:
        """Note a reader."""
        self.readers.append(reader)

    def removeReader(self, reader: IReadDescriptor) -> None:
        """Forget it."""
        if reader in self.readers:
            self.readers.remove(reader)

    def addWriter(self, writer: IWriteDescriptor) -> None:
        """Note a writer."""
        self.writers.append(writer)

    def removeWriter(self, writer: IWriteDescriptor) -> None:
        """Forget it."""
        if writer in self.writers:
            self.writers.remove(writer)

    def deliver(self) -> None:
        """Let the readers read what there is, and the writers write what they can."""
        for reader in tuple(self.readers):
            if reader in self.readers:  # another one may have ended it
                reader.doRead()
        for writer in tuple(self.writers):
            if writer in self.writers:
                writer.doWrite()
