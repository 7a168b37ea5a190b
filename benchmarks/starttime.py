"""How long C{usbipshare} takes to start, as a multiple of C{python -c pass}: C{python -m
benchmarks.starttime}.

All commands run once in each of several rounds, so other work on the machine slows all of them."""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.children import runDaemon

SCRIPT = str(Path(sys.executable).parent / "usbipshare")

WORDS = {"_USBIPSHARE_COMPLETE": "bash_complete", "COMP_WORDS": "usbipshare at", "COMP_CWORD": "1"}
"""The environment in which the script completes a word for bash."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A command to measure.

    @ivar target: the longest that it may take, as a multiple of C{python -c pass}."""

    name: str
    arguments: Sequence[str]
    target: float | None = None
    environment: dict[str, str] = {}


class Duration(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that a command took: elapsed, and of processor time."""

    elapsed: float
    cpu: float


def run(case: Case) -> Duration:
    """Run a command once, with its output to a pipe.

    @raise subprocess.CalledProcessError: it fails."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, **case.environment}
    subprocess.run(case.arguments, env=environment, stdout=subprocess.PIPE, check=True)
    elapsed, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Duration(elapsed=elapsed, cpu=cpu)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Compare start times with that of Python.")
    parser.add_argument("--rounds", type=int, default=20, help="rounds (default: 20)")
    parser.add_argument("--quick", action="store_true", help="two rounds, to see whether it works")
    options = parser.parse_args()
    backend = {"type": "virtual"}
    with tempfile.TemporaryDirectory() as folder, runDaemon(Path(folder), backend) as daemon:
        host = ("--host", f"127.0.0.1:{daemon.port}")
        cases = (
            Case(name="python -c pass", arguments=(sys.executable, "-c", "pass")),
            Case(name="--help", arguments=(SCRIPT, "--help"), target=6),
            Case(name="completion", arguments=(SCRIPT,), environment=WORDS, target=6),
            Case(name="attach --help", arguments=(SCRIPT, "attach", "--help"), target=6),
            Case(name="list", arguments=(SCRIPT, "list", *host), target=10),
            Case(name="list --json", arguments=(SCRIPT, "list", "--json", *host), target=10),
        )
        rounds = [
            [run(case) for case in cases] for _ in range(2 if options.quick else options.rounds)
        ]
    least = [
        Duration(elapsed=min(each.elapsed for each in column), cpu=min(each.cpu for each in column))
        for column in zip(*rounds, strict=True)
    ]
    base = least[0]
    print(f"{'':16}{'target':>8}{'ratio':>8}{'elapsed':>10}{'ratio':>8}{'CPU time':>10}")
    for case, took in zip(cases, least, strict=True):
        print(
            f"{case.name:16}{case.target or '':>8}"
            f"{took.elapsed / base.elapsed:8.1f}{1000 * took.elapsed:7.0f} ms"
            f"{took.cpu / base.cpu:8.1f}{1000 * took.cpu:7.0f} ms"
        )


if __name__ == "__main__":
    main()
