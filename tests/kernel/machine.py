"""
What the kinds of machines have in common.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import (
    IReactorCore,
    IReactorProcess,
    IReactorSocket,
    IReactorTime,
)
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from tests.kernel.needs import Need

CONSOLE = "console.log"
"""The console's output, in the folder that a machine runs in."""

DISK_IMAGE = "disk.img"
"""What is on the disks, in the same folder."""


class IMachineReactor(IReactorCore, IReactorProcess, IReactorSocket, IReactorTime):
    """What is wanted of a reactor here."""


@dataclass(frozen=True, slots=True)
class Ending:
    """
    How a guest ended.

    @ivar status: trial's exit status, or none if the guest never got so far.
    @ivar bootSeconds: until the guest began with its tests, or none if it never did.
    @ivar seconds: in all.
    @ivar timedOut: it was still running at its deadline.
    @ivar interrupted: the harness is shutting down.
    """

    status: int | None
    bootSeconds: float | None
    seconds: float
    timedOut: bool
    interrupted: bool


@dataclass(frozen=True, slots=True)
class Boot:
    """
    What a machine is to do.

    @ivar folder: where it runs: has L{DISK_IMAGE} and gets L{CONSOLE}.
    @ivar command: what the guest runs.
    @ivar emit: called with what that prints.
    @ivar limit: seconds until all must be over; none for no limit.
    @ivar isInteractive: the command is a shell at the terminal of the harness.
    @ivar isFatal: the command ends with what kills a kernel.
    """

    folder: Path
    command: Sequence[str]
    emit: Callable[[bytes], None]
    limit: float | None
    isInteractive: bool = False
    isFatal: bool = False


class IKernel(Protocol):
    """
    A kernel that can be booted.

    @ivar series: C{6.1}
    @ivar release: what C{uname -r} says in the guest.
    @ivar modules: the folder of its modules.
    """

    @property
    def series(self) -> str: ...

    @property
    def release(self) -> str: ...

    @property
    def modules(self) -> Path: ...


class IMachine(Protocol):
    """
    A kind of machine, with a kernel for it.

    @ivar kind: C{uml} or C{qemu}.
    @ivar kernel: what it boots.
    @ivar offers: what a scenario may need of it.
    @ivar isQuick: boots in seconds, so that each module of scenarios gets a boot of its own.
    """

    @property
    def kind(self) -> str: ...

    @property
    def kernel(self) -> IKernel: ...

    @property
    def offers(self) -> frozenset[Need]: ...

    @property
    def isQuick(self) -> bool: ...

    async def run(self, boot: Boot) -> Ending:
        """
        Boot, and wait for the end. Nothing runs any more when this returns, whatever has
        happened. May be called many times, also while another call lasts.

        @raise HarnessError: the kernel cannot be booted on this computer.
        """


class GuestProcess(ProcessProtocol):
    """
    The program that is the machine, seen from outside.

    @ivar ended: fires when it is gone and all that it has written was heard.
    """

    def __init__(self, hear: Mapping[int, Callable[[bytes], object]]) -> None:
        """
        @param hear: for a file descriptor of the program, what to do with what it writes there.
        """
        self.ended: Deferred[None] = Deferred()
        self._gone: list[Deferred[None]] = []
        self._hear = hear

    def gone(self) -> Deferred[None]:
        """A new Deferred that fires when it is gone."""
        waiting: Deferred[None] = Deferred()
        self._gone.append(waiting)
        return waiting

    def kill(self) -> None:
        """End it, if it has not ended."""
        with contextlib.suppress(ProcessExitedAlready):
            if self.transport is not None:
                self.transport.signalProcess("KILL")

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """It has written something."""
        self._hear[childFD](data)

    def processEnded(self, reason: Failure) -> None:
        """It is gone."""
        for waiting in (self.ended, *self._gone):
            waiting.callback(None)
