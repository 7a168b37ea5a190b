"""Running programs and waiting for conditions, with deadlines."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from tests.support.forking import ForkedChild, spawn

# Generous: the guest may be emulated, and the machine below it busy.
DEADLINE = 180.0

_PAUSE = 0.05

T = TypeVar("T")


class DeadlineMissed(AssertionError):
    """A condition did not become true in time."""


def waitUntil(
    condition: Callable[[], T], what: str | Callable[[], str], seconds: float = DEADLINE
) -> T:
    """Poll a condition.

    @param condition: returns something true in the end.
    @param what: the condition in words, for the message of the error; called if it is a function.
    @return: the first true value."""
    end = time.monotonic() + seconds
    while True:
        late = time.monotonic() > end
        found = condition()
        if found:
            return found
        if late:
            text = what if isinstance(what, str) else what()
            raise DeadlineMissed(f"not within {seconds:.0f} s: {text}")
        time.sleep(_PAUSE)


_DYING = 2.0


class CommandResult(NamedTuple):
    """How a program ended.

    @ivar rc: its exit status, or minus the number of a signal
    @ivar out: its standard output
    @ivar err: its standard error"""

    rc: int
    out: str
    err: str


def run(
    *argv: str,
    seconds: float = DEADLINE,
    stdin: str = "",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> CommandResult:
    """Run a program to its end.

    Its output goes to files, not pipes, so that a daemon that it leaves behind does not delay the
    return.

    @param env: its whole environment, if not that of this process.
    @param cwd: where it runs, if not in trial's folder.
    @raise DeadlineMissed: it did not end, and was killed. One that hangs in the kernel is
        not waited for."""
    with (
        tempfile.TemporaryFile() as source,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        source.write(stdin.encode("utf-8"))
        source.seek(0)
        child = spawn(argv, stdin=source, stdout=out, stderr=err, env=env, cwd=cwd)
        try:
            status = child.wait(seconds)
        except subprocess.TimeoutExpired:
            stop(child, _DYING)
            late = True
        else:
            late = False
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
        if late:
            raise DeadlineMissed(f"{argv} ran for more than {seconds:.0f} s: {texts}")
        return CommandResult(status, *texts)


def check(*argv: str, seconds: float = DEADLINE, stdin: str = "") -> str:
    """Run a program that must succeed.

    @return: its output."""
    result = run(*argv, seconds=seconds, stdin=stdin)
    if result.rc != 0:
        raise AssertionError(f"{argv} failed: {result}")
    return result.out


def stop(child: subprocess.Popen[bytes] | ForkedChild, seconds: float = DEADLINE) -> None:
    """Kill a child, and wait for its end unless it hangs in the kernel."""
    child.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(seconds)
