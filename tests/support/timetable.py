"""
A table of durations: what was run, and how many seconds it took.
"""

from __future__ import annotations


class TimeTable:
    """Collects durations and formats them as an aligned table with a header."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, float]] = []

    def add(self, what: str, seconds: float) -> None:
        """
        Append a row.

        @param what: a short name of what was run.
        """
        self._rows.append((what, seconds))

    def __str__(self) -> str:
        """The table without a final line feed, rows in the order in which they were added."""
        rows = [("what", "seconds"), *((what, f"{seconds:.1f}") for what, seconds in self._rows)]
        left = max(len(what) for what, _ in rows)
        right = max(len(seconds) for _, seconds in rows)
        return "\n".join(f"{what:<{left}}  {seconds:>{right}}" for what, seconds in rows)
