"""Running jobs on machines, several at a time, and reporting their outcomes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from twisted.internet.defer import Deferred, DeferredSemaphore, FirstError, gatherResults

from tests.kernel.cache import Cache
from tests.kernel.machine import CONSOLE, DISK_IMAGE, Boot, Ending, Machine
from tests.kernel.selection import Job
from tests.kernel.verdict import complaintsOf, excerptOf, hasDied
from tests.support.forking import FORKING
from tests.support.timetable import TimeTable
from tests.support.trialcounts import Counts, countsOf

_DISK_BYTES = 4 << 20

_PATH = ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Task:
    """A job and where it runs."""

    machine: Machine
    job: Job

    @property
    def name(self) -> str:
        """For people, and for the files of logs."""
        return f"{self.machine.kind} {self.machine.kernel.series} {self.job.name}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a task.

    @ivar troubles: failures other than failed tests.
    @ivar report: the output to show."""

    counts: Counts
    troubles: tuple[str, ...]
    seconds: float
    report: str = field(repr=False)

    @property
    def isGood(self) -> bool:
        """Have all tests passed, without other failures?"""
        return not self.counts.failed and not self.troubles


class Campaign:
    """Runs tasks, and reports."""

    def __init__(self, cache: Cache, limit: float, isVerbose: bool) -> None:
        """@param limit: seconds for each boot and all its tests.
        @param isVerbose: show the output of tests that passed, too."""
        self._cache = cache
        self._limit = limit
        self._isVerbose = isVerbose
        self._seconds = cache.folder / "seconds.json"

    async def run(self, tasks: Sequence[Task], atOnce: int, table: TimeTable) -> Counts:
        """Run tasks. Those that took longest in the last run begin first, so that none is left over
        at the end.

        @param atOnce: how many machines run at the same time.
        @param table: gets a row for each task.
        @return: the tests, and one more that failed for each task that went wrong otherwise.
        @raise SystemExit: it was interrupted."""
        streams = len(tasks) == 1
        semaphore = DeferredSemaphore(atOnce)
        durations = self._durations()
        ordered = sorted(tasks, key=lambda task: -durations.get(task.name, 1e9))
        running = [semaphore.run(self._begin, task, streams) for task in ordered]
        try:
            outcomes: list[Outcome] = await gatherResults(running, consumeErrors=True)
        except FirstError as error:
            error.subFailure.raiseException()
        total = Counts()
        for task, outcome in zip(ordered, outcomes, strict=True):
            total += outcome.counts + Counts(failed=1 if outcome.troubles else 0)
            if not streams and not outcome.isGood:
                print(f"\n{task.name}\n{'=' * len(task.name)}\n{outcome.report}")
        for name, seconds in sorted(
            (t.name, o.seconds) for t, o in zip(ordered, outcomes, strict=True)
        ):
            table.add(name, seconds)
        return total

    async def shell(self, machine: Machine, command: Sequence[str]) -> None:
        """A shell in a guest."""
        terminal = os.environ.get("TERM", "dumb")
        with self._cache.runFolder() as folder:
            inside = _inGuest(folder, machine.kind, terminal, command)
            # A shell writes to the terminal itself.
            await machine.run(Boot(folder, inside, lambda data: None, None, True))

    def _begin(self, task: Task, streams: bool) -> Deferred[Outcome]:
        return Deferred.fromCoroutine(self._one(task, streams))

    async def _one(self, task: Task, streams: bool) -> Outcome:
        logs = self._cache.folder / "logs"
        logs.mkdir(exist_ok=True)
        log = logs / f"{task.name.replace(' ', '-')}.output"
        kept = log.with_suffix(".console")
        trial = [sys.executable, "-m", "twisted.trial"]
        trial += ["--reporter=timing", "--temp-directory", "/tmp/kernel-trial", *task.job.tests]
        with self._cache.runFolder() as folder, log.open("wb", buffering=0) as written:

            def emit(data: bytes) -> None:
                written.write(data)
                if streams:
                    sys.stdout.buffer.write(data)
                    sys.stdout.buffer.flush()

            command = _inGuest(folder, task.machine.kind, "dumb", trial)
            isFatal = task.job.death is not None
            ending = await task.machine.run(
                Boot(folder, command, emit, self._limit, isFatal=isFatal, options=task.job.options)
            )
            shutil.copy(folder / CONSOLE, kept)
        if ending.interrupted:
            raise SystemExit(130)
        output, console = (path.read_text("utf-8", "replace") for path in (log, kept))
        outcome = _judge(task.job, ending, output, console, kept)
        with self._cache.locked("seconds"):
            durations = self._durations() | {task.name: round(outcome.seconds, 1)}
            new = self._seconds.with_suffix(".new")
            new.write_text(json.dumps(durations))
            new.rename(self._seconds)
        booted = "never" if ending.bootSeconds is None else f"{ending.bootSeconds:.1f} s"
        word = "passed" if outcome.isGood else "FAILED"
        print(
            f"{word}: {task.name}: {outcome.counts}, {outcome.seconds:.1f} s "
            f"(booted after {booted})",
            flush=True,
        )
        if streams:
            print("\n".join(f"FAILED: {trouble}" for trouble in outcome.troubles), flush=True)
        elif self._isVerbose and outcome.isGood:
            print(outcome.report, flush=True)
        return outcome

    def _durations(self) -> dict[str, float]:
        """How long each task took the last time."""
        with contextlib.suppress(OSError, ValueError):
            read: dict[str, float] = json.loads(self._seconds.read_bytes())
            return read
        return {}


def _inGuest(folder: Path, kind: str, terminal: str, command: Sequence[str]) -> list[str]:
    """A command with the environment that it has in the guest.

    @param folder: of the boot: gets the content of the disks."""
    disk = folder / DISK_IMAGE
    disk.write_bytes(random.Random(42).randbytes(_DISK_BYTES))
    environment = {
        **{"HOME": "/run/home", "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1", "TERM": terminal},
        "PATH": f"{Path(sys.executable).parent}{_PATH}",
        "USBIPSHARE_GUEST_DISK": str(disk),
        "USBIPSHARE_GUEST_MACHINE": kind,
        FORKING: "1",
    }
    return ["env", "-i", *(f"{key}={value}" for key, value in environment.items()), *command]


def _judge(job: Job, ending: Ending, output: str, console: str, kept: Path) -> Outcome:
    if job.death is not None and not ending.timedOut and hasDied(console, job.death):
        # The kernel crashed at the test's last step: trial could not report success.
        return Outcome(Counts(passed=1), (), ending.seconds, output)
    counts = countsOf(output)
    troubles = [f"the kernel complained: {line}" for line in complaintsOf(console)]
    if job.death is not None:
        troubles.append(f"the kernel should have died, with {job.death!r} on its console")
    if ending.timedOut:
        troubles.append("the guest had not ended at its deadline")
    elif ending.status is None:
        troubles.append("the guest died before its tests had ended")
    report = output
    if troubles:
        report += f"\nthe console, all of it in {kept}:\n" + "\n".join(excerptOf(console))
    elif counts == Counts():
        troubles.append("no test ran")
    elif ending.status != 0 and not counts.failed:
        troubles.append(f"trial ended with status {ending.status}")
    report += "".join(f"\nFAILED: {trouble}" for trouble in troubles)
    return Outcome(counts, tuple(troubles), ending.seconds, report)
