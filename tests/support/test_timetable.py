"""
The table of durations that test runners print.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.support.timetable import TimeTable


class TimeTableTests(SynchronousTestCase):
    """L{TimeTable}."""

    def test_columnsAreAligned(self) -> None:
        """Names are aligned at the left and seconds at the right, below a header."""
        table = TimeTable()
        table.add("lint", 0.26)
        table.add("unit and integration tests", 1234.5)
        self.assertEqual(
            str(table),
            "what                        seconds\n"
            "lint                            0.3\n"
            "unit and integration tests   1234.5",
        )

    def test_emptyTableHasHeader(self) -> None:
        """A table without rows consists of its header."""
        self.assertEqual(str(TimeTable()), "what  seconds")
