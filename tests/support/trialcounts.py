"""
Reads the numbers of passed, failed and skipped tests from trial's summary.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_SUMMARY = re.compile(r"^(?:PASSED|FAILED)(?: \((\w+=\d+(?:, \w+=\d+)*)\))?\r?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of tests."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped
        )

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def countsOf(output: str) -> Counts:
    """
    Read trial's last summary, C{FAILED (skips=1, failures=2, successes=3)}.

    @return: zeros if there is no summary.
    """
    summaries = _SUMMARY.findall(output)
    if not summaries:
        return Counts()
    numbers = {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", summaries[-1])}
    return Counts(
        passed=numbers.get("successes", 0) + numbers.get("expectedFailures", 0),
        failed=sum(numbers.get(name, 0) for name in ("failures", "errors", "unexpectedSuccesses")),
        skipped=numbers.get("skips", 0),
    )
