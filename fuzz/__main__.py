"""C{python -m fuzz}: run all targets, one after the other."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

PROJECT = Path(__file__).parents[1]
KEPT = PROJECT / ".cache" / "fuzz"
"""Inputs that the next run begins with, and those that make a target fail."""

TARGETS = (
    *("opcodec", "server", "commands", "replies", "query", "framing", "exporter", "lines"),
    "traffic",
)

LONGEST_INPUT = 1024
"""Bytes."""

SLOW = 10
"""The most seconds that an input may take."""

PATIENCE = 60
"""Seconds for the start and the end of a target, besides the time that it is given."""

_LAST = re.compile(r"^#\d+\s+DONE\s+cov: (\d+) ft: (\d+) corp: (\d+)", re.MULTILINE)
_EXECUTED = re.compile(r"^stat::number_of_executed_units:\s*(\d+)", re.MULTILINE)
_TAIL = 60


class Outcome(msgspec.Struct, frozen=True):
    """The outcome of a target.

    @ivar executed: the number of inputs.
    @ivar coverage: the number of branches of the package that they reached.
    @ivar corpus: the number of inputs that are enough to reach them.
    @ivar failure: the end of the output if it failed; else empty."""

    executed: int
    coverage: int
    corpus: int
    failure: str


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m fuzz", description="Fuzz the code that reads bytes from the network."
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=600.0,
        help="for all of them (default: %(default)g)",
    )
    parser.add_argument("target", nargs="*", choices=[[], *TARGETS], help="default: all")
    options = parser.parse_args()
    sys.exit(run(options.target or TARGETS, options.seconds))


def run(targets: Sequence[str], seconds: float) -> int:
    """Run targets, and print the outcome of each.

    @param seconds: for all of them.
    @return: the number of those that failed."""
    print(f"{'target':10}{'inputs':>12}{'branches':>10}{'kept':>8}", flush=True)
    failed = 0
    for name in targets:
        outcome = fuzz(name, max(1, round(seconds / len(targets))))
        counted = f"{outcome.executed:12,}{outcome.coverage:10}{outcome.corpus:8}"
        print(f"{name:10}{counted}{'  FAILED' if outcome.failure else ''}", flush=True)
        if outcome.failure:
            failed += 1
            print(outcome.failure, flush=True)
    return failed


def fuzz(name: str, seconds: int) -> Outcome:
    """Run one target."""
    corpus, found = KEPT / name, KEPT / f"{name}-failures"
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    target = importlib.import_module(f"fuzz.{name}")
    for seed in target.SEEDS:
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    words = KEPT / f"{name}.words"
    words.write_text("".join(f'"{escaped(word)}"\n' for word in target.WORDS))
    child = subprocess.run(
        [
            *(sys.executable, "-m", "fuzz.one", name, str(corpus)),
            *(f"-max_total_time={seconds}", f"-timeout={SLOW}", f"-max_len={LONGEST_INPUT}"),
            *(f"-dict={words}", f"-artifact_prefix={found}/", "-print_final_stats=1"),
        ],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=seconds + PATIENCE,
    )
    return judge(child.returncode, child.stdout)


def judge(status: int, output: str) -> Outcome:
    """Read the output of libFuzzer.

    @param status: the exit status."""
    executed, last = _EXECUTED.search(output), _LAST.search(output)
    failed = status != 0 or executed is None or last is None
    return Outcome(
        int(executed[1]) if executed else 0,
        int(last[1]) if last else 0,
        int(last[3]) if last else 0,
        "\n".join(output.splitlines()[-_TAIL:]) if failed else "",
    )


def escaped(word: bytes) -> str:
    """A word in the syntax of libFuzzer's dictionaries."""
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main()
