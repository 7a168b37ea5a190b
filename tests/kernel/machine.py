"""What both kinds of machines have in common: kernels, boots, and the process that runs a guest."""

from __future__ import annotations

import contextlib
import os
import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IReactorCore, IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from tests.kernel.cache import PROJECT
from tests.kernel.needs import Need

CONSOLE = "console.log"
"""The console's output, in the folder that a machine runs in."""

DISK_IMAGE = "disk.img"
"""The content of the disks, in the same folder."""

_GUEST_SCRIPT = Path(__file__).with_name("guest.sh")


class IMachineReactor(IReactorCore, IReactorProcess, IReactorTime):
    """The interfaces of a reactor that machines use."""


@dataclass(slots=True)
class Ending:
    """How a guest ended.

    @ivar status: trial's exit status; C{None} if the tests did not end.
    @ivar bootSeconds: until the tests began; C{None} if they did not.
    @ivar seconds: until the end.
    @ivar timedOut: it was still running at its deadline.
    @ivar interrupted: the harness is shutting down."""

    status: int | None = None
    bootSeconds: float | None = None
    seconds: float = 0.0
    timedOut: bool = False
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class Boot:
    """A request to boot a machine.

    @ivar folder: where it runs: has L{DISK_IMAGE} and gets L{CONSOLE}.
    @ivar command: what the guest runs.
    @ivar emit: called with the output of the command.
    @ivar limit: seconds until the guest is ended; C{None} for no limit.
    @ivar isInteractive: the command is a shell at the terminal of the harness.
    @ivar isFatal: the command ends with a write sequence that crashes the kernel.
    @ivar options: further options of the kernel."""

    folder: Path
    command: Sequence[str]
    emit: Callable[[bytes], None]
    limit: float | None
    isInteractive: bool = False
    isFatal: bool = False
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel that can be booted.

    @ivar series: C{6.1}
    @ivar release: the output of C{uname -r} in the guest.
    @ivar folder: contains C{lib/modules} and the image.
    @ivar image: what QEMU boots; of user-mode Linux the program."""

    series: str
    release: str
    folder: Path
    image: Path

    @property
    def modules(self) -> Path:
        """The folder of its modules."""
        return self.folder / "lib" / "modules" / self.release


class Machine(ABC):
    """A kind of machine, with a kernel for it.

    @cvar kind: C{uml} or C{qemu}.
    @cvar offers: what scenarios can need of it.
    @cvar isQuick: boots in seconds, so that each test case gets a boot of its own."""

    kind: str
    offers: frozenset[Need]
    isQuick: bool

    def __init__(self, reactor: IMachineReactor, kernel: Kernel) -> None:
        self.kernel = kernel
        self._reactor = reactor

    @abstractmethod
    async def run(self, boot: Boot) -> Ending:
        """Boot, and wait for the end. All processes have ended when this returns or raises. Calls
        may overlap.

        @raise HarnessError: the kernel cannot be booted on this computer."""


def settingsScript(kernel: Kernel, boot: Boot, terminal: str, notes: str) -> str:
    """Shell code that sets the variables of C{guest.sh}, and the positional parameters to the
    command that it runs.

    @param terminal: the device that the command writes to; empty to look for QEMU's.
    @param notes: the device for the notes of L{GuestRun}; empty to look for QEMU's."""
    settings: dict[str, str | Path] = {
        **{"MODULES": kernel.modules, "RELEASE": kernel.release, "PROJECT": PROJECT},
        **{"GUEST_SCRIPT": _GUEST_SCRIPT, "TERMINAL": terminal, "NOTES": notes},
    }
    lines = [f"{name}={shlex.quote(str(value))}" for name, value in settings.items()]
    return "\n".join([*lines, f"set -- {shlex.join(boot.command)}", ""])


class GuestRun(ProcessProtocol):
    """One boot: the process that is the machine. C{guest.sh} writes notes to a pipe, a line each:
    C{booted} when it begins with the tests, and C{finished}, with trial's exit status, when they
    have ended."""

    def __init__(
        self,
        reactor: IMachineReactor,
        boot: Boot,
        notes: int,
        readers: Mapping[int, Callable[[bytes], object]],
    ) -> None:
        """@param notes: the descriptor of the process for notes.
        @param readers: what is called with the output to further descriptors of the process."""
        self._reactor = reactor
        self._boot = boot
        self._readers = {notes: self._readNotes, **readers}
        self._started = reactor.seconds()
        self._ended: list[Deferred[None]] = []
        self._ending = Ending()
        self._notes = b""

    async def result(
        self,
        command: Sequence[str],
        descriptors: dict[int, int | str],
        environment: Mapping[str, str] = os.environ,
        bootLimit: float | None = None,
    ) -> Ending:
        """Run the process to its end.

        @param descriptors: C{childFDs} of C{spawnProcess}.
        @param bootLimit: seconds within which the tests have to begin."""
        ended = self._onEnd()
        env, path = {**environment}, str(self._boot.folder)
        self._reactor.spawnProcess(
            self, command[0], command, env=env, path=path, childFDs=descriptors
        )
        shutdown = self._reactor.addSystemEventTrigger("before", "shutdown", self._interrupt)
        timers = [
            self._reactor.callLater(seconds, expire)
            for seconds, expire in (
                (bootLimit, self._expireUnlessBooted),
                (self._boot.limit, self._expire),
            )
            if seconds is not None
        ]
        try:
            await ended
        finally:
            for timer in timers:
                if timer.active():
                    timer.cancel()
            if not self._ending.interrupted:
                self._reactor.removeSystemEventTrigger(shutdown)
        self._ending.seconds = self._reactor.seconds() - self._started
        return self._ending

    def onTimeout(self) -> None:
        """End a guest that still runs at its deadline."""
        self.kill()

    def kill(self) -> None:
        """Kill the process, unless it has ended."""
        with contextlib.suppress(ProcessExitedAlready):
            if self.transport is not None:
                self.transport.signalProcess("KILL")

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Called by Twisted with output."""
        self._readers[childFD](data)

    def processEnded(self, reason: Failure) -> None:
        """Called by Twisted when the process has ended and all its output was read."""
        for ended in self._ended:
            ended.callback(None)

    def _onEnd(self) -> Deferred[None]:
        ended: Deferred[None] = Deferred()
        self._ended.append(ended)
        return ended

    def _readNotes(self, data: bytes) -> None:
        *lines, self._notes = (self._notes + data).split(b"\n")
        for line in map(bytes.strip, lines):
            if line.startswith(b"finished "):
                self._ending.status = int(line.split()[1])
                # Nothing in the guest is kept, so there is nothing to shut down; a shutdown would
                # wait for devices that hang.
                self.kill()
            elif line == b"booted":
                self._ending.bootSeconds = self._reactor.seconds() - self._started

    def _expire(self) -> None:
        self._ending.timedOut = True
        self.onTimeout()

    def _expireUnlessBooted(self) -> None:
        if self._ending.bootSeconds is None:
            self._ending.timedOut = True
            self.kill()

    def _interrupt(self) -> Deferred[None]:
        self._ending.interrupted = True
        ended = self._onEnd()
        self.kill()
        return ended
