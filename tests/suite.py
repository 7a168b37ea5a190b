"""
C{python -m tests.suite PART ...}: run the checks and tests of C{make test} side by side.

C{unit} stands for the unit and integration tests. They are run by several trial processes, one
after the other or beside each other, each with some of the modules: C{trial -j} would keep its
own reactor running in the processes that run tests, and some tests need to start and stop it. Any
other part is a target of the Makefile.

The output of a process is printed when it has ended; that of failed ones comes last. A table of
durations follows, and in the last line the numbers of tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tests.support.timetable import TimeTable
from tests.support.trialcounts import Counts, countsOf

PROJECT = Path(__file__).parents[1]

UNIT = "unit"

MODULES_AT_ONCE = 4
"""Of the unit and integration tests, in one process: enough for the start of Python not to
matter, and few enough for all cores to be busy until the end."""


@dataclass(frozen=True, slots=True)
class Task:
    """
    A process to be run.

    @ivar part: of the command line.
    @ivar name: for the heading of its output.
    """

    part: str
    name: str
    command: Sequence[str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    The outcome of a task.

    @ivar output: its standard output and standard error.
    @ivar begin: when it was started, by the monotonic clock.
    @ivar end: when it had ended.
    """

    task: Task
    status: int
    output: str
    begin: float
    end: float

    @property
    def counts(self) -> Counts:
        """The tests that it ran. A task that failed in another way counts as a failed test."""
        counts = countsOf(self.output)
        return counts + Counts(failed=1) if self.status and not counts.failed else counts

    def __str__(self) -> str:
        ending = "passed" if self.status == 0 else f"FAILED with exit status {self.status}"
        heading = f"{self.task.name}: {ending}"
        return f"{heading}\n{'=' * len(heading)}\n{self.output.rstrip()}\n"


def modules() -> list[str]:
    """All modules with tests, but for those of C{make test-packages}."""
    packages = PROJECT / "tests" / "packages"
    found = sorted({*(PROJECT / "tests").rglob("test_*.py")} - {*packages.glob("*.py")})
    return [".".join(path.relative_to(PROJECT).with_suffix("").parts) for path in found]


def trialTasks(names: Sequence[str]) -> Iterator[Task]:
    """Spread modules evenly over trial processes: neighbours are often alike, and as slow."""
    count = -(-len(names) // MODULES_AT_ONCE)
    for number in range(count):
        some = names[number::count]
        folder = f"--temp-directory=_trial_temp-{number + 1}"
        command = (sys.executable, "-m", "twisted.trial", folder, *some)
        yield Task(UNIT, f"{UNIT} {number + 1} of {count}", command)


def tasksOf(part: str) -> list[Task]:
    """What is to be run for a part."""
    if part == UNIT:
        return [*trialTasks(modules())]
    return [Task(part, part, (os.environ.get("MAKE", "make"), "--no-print-directory", part))]


def run(task: Task) -> Outcome:
    """Run a process to its end."""
    begin = time.monotonic()
    done = subprocess.run(
        task.command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
        check=False,
    )
    return Outcome(task, done.returncode, done.stdout, begin, time.monotonic())


def runAll(tasks: Sequence[Task], atOnce: int, write: Callable[[str], object]) -> int:
    """
    Run processes side by side and report.

    @param tasks: in the order in which they are to be started.
    @param atOnce: how many run at the same time.
    @param write: is called with pieces of the report.
    @return: the exit status, 1 if one of them failed.
    """
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(atOnce) as pool:
        for each in as_completed([pool.submit(run, task) for task in tasks]):
            outcome = each.result()
            outcomes.append(outcome)
            if outcome.status:
                write(f"{outcome.task.name}: FAILED, its output follows below\n")
            else:
                write(str(outcome))
    failed = [outcome for outcome in outcomes if outcome.status]
    for outcome in failed:
        write(str(outcome))
    write(str(timesOf(outcomes)))
    write(str(sum((outcome.counts for outcome in outcomes), Counts())))
    return 1 if failed else 0


def timesOf(outcomes: Sequence[Outcome]) -> TimeTable:
    """How long each part took, from its first beginning to its last end."""
    table = TimeTable()
    for part in dict.fromkeys(outcome.task.part for outcome in outcomes):
        table.add(part, _seconds([each for each in outcomes if each.task.part == part]))
    table.add("in all", _seconds(outcomes))
    return table


def _seconds(outcomes: Sequence[Outcome]) -> float:
    return max(each.end for each in outcomes) - min(each.begin for each in outcomes)


def main() -> None:
    """Entry point."""
    tasks = [task for part in sys.argv[1:] for task in tasksOf(part)]
    # One more than there are cores, as many tests wait for something now and then.
    atOnce = len(os.sched_getaffinity(0)) + 1
    sys.exit(runAll(tasks, atOnce, lambda text: print(text, flush=True)))


if __name__ == "__main__":
    main()
