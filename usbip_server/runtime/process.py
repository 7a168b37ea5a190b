"""
Runs programs: without a shell, with a minimal environment, bounded output and a deadline.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from twisted.internet.error import ConnectionDone, ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from usbip_server.runtime.latch import Latch

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""C{PATH}: where programs are found, and that of the programs themselves."""

OUTPUT = 16 * 1024
"""Bytes of a program's output that are kept; the rest is discarded."""

GRACE = 1.0
"""Seconds between C{SIGTERM} and C{SIGKILL}."""

LINGER = 0.2
"""Seconds after the end of a program during which its output is read. Other processes may keep its
pipes open for longer."""

_NOT_EXECUTED = "Upon execvpe "
"""What the output begins with when C{exec} fails in the child (twisted.internet.process,
C{_BaseProcess._fork})."""


class CannotStart(Exception):
    """
    A program cannot be started.

    @ivar program: its name, as it was given.
    @ivar reason: the reason.
    """

    def __init__(self, program: str, reason: str) -> None:
        super().__init__(program, reason)
        self.program = program
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.program!r} cannot be started: {self.reason}"


class Finished(msgspec.Struct, frozen=True):
    """
    The result of a program.

    @ivar status: the exit status; C{None}: a signal has ended it, or it could not be ended.
    @ivar output: its standard output and error, up to L{OUTPUT} bytes.
    @ivar answer: its standard output, up to L{OUTPUT} bytes.
    @ivar signal: the number of the signal that has ended it.
    @ivar timedOut: whether it was ended because of the deadline.
    """

    status: int | None
    output: str
    signal: int | None = None
    timedOut: bool = False
    answer: str = ""


class ChildProcess(ProcessProtocol):
    """
    A running program.
    """

    def __init__(self, reactor: Any, ended: Callable[[Finished], None], data: bytes = b"") -> None:
        """
        @param reactor: provides C{IReactorProcess} and C{IReactorTime}.
        @param ended: called once, when it has ended.
        @param data: its standard input.
        """
        self._reactor = reactor
        self._ended = ended
        self._data = data
        self._output = b""
        self._answer = b""
        self._reason: BaseException | None = None
        self._linger: IDelayedCall | None = None

    def start(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """
        Start it.

        @param command: the program, with an absolute path, and its arguments.
        @param environment: variables besides C{PATH} and C{LC_ALL}.
        @raise CannotStart: the system cannot start it.
        """
        whole = {"PATH": PATH, "LC_ALL": "C", **(environment or {})}
        try:
            self._reactor.spawnProcess(self, command[0], list(command), whole, "/")
        except (OSError, TypeError, ValueError) as error:  # TypeError and ValueError: a zero byte
            raise CannotStart(command[0], str(error)) from error

    @property
    def isRunning(self) -> bool:
        """Whether its end has not been reported yet."""
        return self._reason is None

    def finished(self, timedOut: bool = False) -> Finished:
        """The result so far."""
        return Finished(
            getattr(self._reason, "exitCode", None),
            self._output.decode("utf-8", "replace").strip(),
            getattr(self._reason, "signal", None),
            timedOut,
            self._answer.decode("utf-8", "replace").strip(),
        )

    def signal(self, name: str) -> None:
        """Send a signal; does nothing if that is not permitted, as for a program run with sudo."""
        with contextlib.suppress(ProcessExitedAlready, OSError):
            self.transport.signalProcess(name)  # type: ignore[union-attr]

    def kill(self) -> None:
        """Send SIGKILL and close the pipes; the program may be root's, or stuck in the kernel."""
        self.signal("KILL")
        self._closePipes()

    def connectionMade(self) -> None:
        self.transport.write(self._data)  # type: ignore[union-attr]
        self.transport.closeStdin()  # type: ignore[union-attr]

    def outReceived(self, data: bytes) -> None:
        if len(self._answer) < OUTPUT:
            self._answer = (self._answer + data)[:OUTPUT]
        self.errReceived(data)

    def errReceived(self, data: bytes) -> None:
        if len(self._output) < OUTPUT:
            self._output = (self._output + data)[:OUTPUT]

    def processExited(self, reason: Failure) -> None:
        self._reason = reason.value
        self._linger = self._reactor.callLater(LINGER, self._closePipes)

    def processEnded(self, reason: Failure) -> None:
        self._reason = reason.value
        if self._linger is not None and self._linger.active():
            self._linger.cancel()
        self._ended(self.finished())

    def _closePipes(self) -> None:
        # The transport's loseConnection would wait until all of the input is written.
        pipes = self.transport.pipes  # type: ignore[union-attr]
        for pipe in tuple(pipes.values()):
            pipe.connectionLost(Failure(ConnectionDone()))


async def run(
    reactor: Any,
    command: Sequence[str],
    data: bytes = b"",
    environment: Mapping[str, str] | None = None,
    *,
    seconds: float,
) -> Finished:
    """
    Run a program in the root directory, and wait for its end.

    At the deadline it gets C{SIGTERM}, and L{GRACE} seconds later C{SIGKILL}. Cancelling this kills
    it at once.

    @param reactor: provides C{IReactorProcess} and C{IReactorTime}.
    @param command: the program and its arguments; see L{find}.
    @param data: its standard input, which it need not read.
    @param environment: variables besides C{PATH} and C{LC_ALL}.
    @param seconds: the deadline.
    @raise CannotStart: there is no such program, or it may not be executed.
    """
    over = Latch(reactor)
    child = ChildProcess(reactor, lambda finished: over.fire(), data)
    child.start([find(command[0]), *command[1:]], environment)
    timedOut = False
    try:
        if not await over.within(seconds):
            timedOut = child.isRunning
            if timedOut:
                child.signal("TERM")
                await over.within(GRACE)
            child.kill()
            await over.within(LINGER)
    except BaseException:
        child.kill()
        raise
    finished = child.finished(timedOut)
    if finished.status == 1 and finished.output.startswith(_NOT_EXECUTED):
        raise CannotStart(command[0], finished.output.splitlines()[-1])
    return finished


def find(program: str) -> str:
    """
    Find a program.

    @param program: its absolute path, or a name in L{PATH}.
    @return: its absolute path.
    @raise CannotStart: there is no such program, or it may not be executed.
    """
    path = shutil.which(program, path=PATH)
    if not os.path.isabs(program):
        if os.path.dirname(program):
            raise CannotStart(program, "give its whole path, or nothing but its name")
        if path is None:
            raise CannotStart(program, f"there is no such program in {PATH}")
    elif path is None:
        if os.path.exists(program):
            raise CannotStart(program, "it may not be executed")
        raise CannotStart(program, "there is no such program")
    return path
