"""
The runner of C{make test}.
"""

from __future__ import annotations

import os
import sys

from twisted.trial.unittest import SynchronousTestCase

from tests.suite import Outcome, Task, modules, runAll, timesOf, trialTasks
from tests.support.trialcounts import Counts, countsOf


def command(code: str, *arguments: str) -> tuple[str, ...]:
    """Run Python code."""
    return (sys.executable, "-c", code, *arguments)


class CountTests(SynchronousTestCase):
    """Numbers of tests."""

    def test_lastSummaryIsRead(self) -> None:
        """Trial's last summary is read, with all the names that it has for a number."""
        for summary, counts in (
            ("PASSED (successes=3)\n", Counts(3, 0, 0)),
            ("PASSED (skips=2, expectedFailures=1, successes=3)\n", Counts(4, 0, 2)),
            ("FAILED (failures=1, errors=2, unexpectedSuccesses=4)\n", Counts(0, 7, 0)),
            ("PASSED (successes=3)\nFAILED (failures=1)\n", Counts(0, 1, 0)),
            ("a test says PASSED (successes=3)\n", Counts()),
            ("PASSED\n", Counts()),
        ):
            self.assertEqual(countsOf(f"Ran 5 tests in 1.000s\n\n{summary}"), counts, summary)

    def test_failureWithoutFailedTestCountsAsOne(self) -> None:
        """A part that failed without a failed test counts as one."""
        lint = Outcome(Task("lint", "lint", ()), 1, "E501 Line too long", 1.0, 2.0)
        output = "FAILED (failures=2, successes=5)"
        unit = Outcome(Task("unit", "unit 1 of 3", ()), 1, output, 1.0, 2.0)
        self.assertEqual(lint.counts, Counts(0, 1, 0))
        self.assertEqual(lint.counts + unit.counts, Counts(5, 3, 0))

    def test_printedForm(self) -> None:
        """They are printed in the form that a CI reads."""
        self.assertEqual(str(Counts(5, 3, 1)), "5 passed, 3 failed, 1 skipped")


class TaskTests(SynchronousTestCase):
    """The processes that run unit and integration tests."""

    def test_allModulesAreFound(self) -> None:
        """All modules with tests are found, in all folders, and nothing else."""
        found = modules()
        for name in (__name__, "tests.integration.test_client", "tests.kernel.test_verdict"):
            self.assertIn(name, found)
        self.assertEqual({name.rpartition(".")[2][:5] for name in found}, {"test_"})

    def test_eachModuleInOneProcess(self) -> None:
        """Each module is run by one process, and each process has a folder of its own."""
        names = [f"tests.test_{number}" for number in range(9)]
        tasks = [*trialTasks(names)]
        self.assertEqual(sorted(name for task in tasks for name in task.command[4:]), names)
        self.assertEqual(len({task.command[3] for task in tasks}), 3)
        self.assertEqual([len(task.command[4:]) for task in tasks], [3, 3, 3])

    def test_partTakesFromFirstBeginToLastEnd(self) -> None:
        """A part takes from its first beginning to its last end."""
        outcomes = [
            Outcome(Task(part, part, ()), 0, "", begin, end)
            for part, begin, end in (("lint", 1.0, 2.0), ("unit", 2.0, 5.0), ("unit", 3.0, 4.5))
        ]
        self.assertEqual(
            str(timesOf(outcomes)).split(),
            ["what", "seconds", "lint", "1.0", "unit", "3.0", "in", "all", "4.0"],
        )


class RunTests(SynchronousTestCase):
    """Parts that run side by side."""

    def report(self, *commands: tuple[str, tuple[str, ...]], status: int) -> str:
        """Run commands, and return the report."""
        written: list[str] = []
        tasks = [Task(name, name, command) for name, command in commands]
        self.assertEqual(runAll(tasks, 2, written.append), status)
        return "\n".join(written)

    def test_outputOfPassedParts(self) -> None:
        """The output of each part is printed in one piece; a table and the counts are last."""
        code = "import sys; print('one'); print('PASSED (skips=1, successes=2)', file=sys.stderr)"
        report = self.report(("unit", command(code)), ("lint", command("print('ok')")), status=0)
        self.assertIn("unit: passed\n============\none\nPASSED (skips=1, successes=2)\n", report)
        self.assertIn("lint: passed\n============\nok\n", report)
        self.assertRegex(
            report,
            r"\nwhat +seconds\n(unit +\d+\.\d\nlint|lint +\d+\.\d\nunit) +\d+\.\d\n"
            r"in all +\d+\.\d\n2 passed, 0 failed, 1 skipped\Z",
        )

    def test_outputOfFailedPartsComesLast(self) -> None:
        """The output of parts that failed comes last, also if they end first."""
        report = self.report(
            ("lint", command("raise SystemExit('E501')")),
            ("unit", command("print('PASSED (successes=2)')")),
            status=1,
        )
        self.assertLess(report.index("unit: passed"), report.index("lint: FAILED with exit status"))
        self.assertIn("lint: FAILED with exit status 1\n", report)
        self.assertLess(report.index("E501"), report.index("what  "))
        self.assertTrue(report.endswith("\n2 passed, 1 failed, 0 skipped"), report)

    def test_partsRunAtTheSameTime(self) -> None:
        """Two parts run at the same time: each waits for the other."""
        path = self.mktemp()
        os.mkfifo(path)
        self.report(
            ("reader", command("import sys; print(open(sys.argv[1]).read())", path)),
            ("writer", command("import sys; open(sys.argv[1], 'w').write('met')", path)),
            status=0,
        )
