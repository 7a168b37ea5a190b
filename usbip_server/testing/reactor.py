"""
A fake reactor, whose clock, threads and descriptors are driven by the test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReadDescriptor, IWriteDescriptor
from twisted.internet.task import Clock


class FakeReactor(Clock):
    """
    A clock. Threads run at once or in L{runThreads}, readers and writers in L{deliver}.

    @ivar threads: the functions held back, if C{hold} is set.
    @ivar hold: whether to hold threads back until L{runThreads}.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hold = False
        self.threads: list[Callable[[], None]] = []
        self.readers: list[IReadDescriptor] = []
        self.writers: list[IWriteDescriptor] = []

    def spawn(self, function: Callable[[], None]) -> None:
        """Run a function as in a thread: now, or in L{runThreads} if C{hold} is set."""
        if self.hold:
            self.threads.append(function)
        else:
            function()

    def runThreads(self) -> None:
        """Run the functions held back, and those that they start."""
        self.hold = False
        while self.threads:
            self.threads.pop(0)()

    def callFromThread(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function now: there is only one thread."""
        function(*args)

    def addReader(self, reader: IReadDescriptor) -> None:
        """Add a reader."""
        self.readers.append(reader)

    def removeReader(self, reader: IReadDescriptor) -> None:
        """Remove it."""
        if reader in self.readers:
            self.readers.remove(reader)

    def addWriter(self, writer: IWriteDescriptor) -> None:
        """Add a writer."""
        self.writers.append(writer)

    def removeWriter(self, writer: IWriteDescriptor) -> None:
        """Remove it."""
        if writer in self.writers:
            self.writers.remove(writer)

    def deliver(self) -> None:
        """Call all readers and writers once."""
        for reader in tuple(self.readers):
            if reader in self.readers:  # another one may have removed it
                reader.doRead()
        for writer in tuple(self.writers):
            if writer in self.writers:
                writer.doWrite()
