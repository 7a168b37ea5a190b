"""Tests of L{tests.kernel.selection} and L{tests.kernel.needs}."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.kernel.cache import PROJECT
from tests.kernel.machine import Boot, Ending, Machine
from tests.kernel.needs import Need, dies, needs
from tests.kernel.selection import SMOKE, Job, fullName, jobsFor, scenarioModules, unmet
from tests.kernel.tools import HarnessError

_EXAMPLES = f"{__name__}.Examples"


class Examples:
    """Scenarios to choose from. They are not run here."""

    class PlainTests(SynchronousTestCase):
        """Needs nothing."""

        def test_plain(self) -> None:
            """Needs nothing."""

        @needs(Need.HUB)
        def test_hub(self) -> None:
            """Needs a hub."""

        @dies("its last words")
        def test_death(self) -> None:
            """Kills the kernel."""

    @needs(Need.SYSTEMD)
    class SystemdTests(SynchronousTestCase):
        """Needs systemd."""

        @needs(Need.HUB)
        def test_both(self) -> None:
            """Needs a hub besides."""


class FakeMachine(Machine):
    """A machine that is not booted."""

    def __init__(self, isQuick: bool, *offers: Need) -> None:
        self.isQuick = isQuick
        self.offers = frozenset(offers)

    async def run(self, boot: Boot) -> Ending:
        raise NotImplementedError


_PLAIN = f"{_EXAMPLES}.PlainTests"
_SYSTEMD = f"{_EXAMPLES}.SystemdTests"
_NAMES = (_PLAIN, _SYSTEMD)


class JobsTests(SynchronousTestCase):
    """Which test runs where, and together with which."""

    def jobs(self, isQuick: bool, *offers: Need) -> dict[str, Job]:
        """The jobs for a machine, by name."""
        jobs = jobsFor(FakeMachine(isQuick, *offers), _NAMES)
        return {job.name.rpartition("Examples.")[2]: job for job in jobs}

    def test_unmetNeedsAreLeftOut(self) -> None:
        """A test whose needs are not met is left out; those of its case count as its own."""
        plain, hub, both = (f"{_PLAIN}.test_plain", f"{_PLAIN}.test_hub", f"{_SYSTEMD}.test_both")
        for offers, wanted in (
            ((), {plain}),
            ((Need.HUB,), {plain, hub}),
            ((Need.SYSTEMD,), {plain}),
            ((Need.HUB, Need.SYSTEMD), {plain, hub, both}),
        ):
            jobs = self.jobs(False, *offers)
            self.assertEqual(set(jobs["all in one boot"].tests), wanted)

    def test_bootForEachCase(self) -> None:
        """Where a boot is quick each test case has one."""
        jobs = self.jobs(True, Need.HUB, Need.SYSTEMD)
        self.assertEqual(
            {name: len(job.tests) for name, job in jobs.items()},
            {"PlainTests": 2, "SystemdTests": 1, "PlainTests.test_death": 1},
        )

    def test_bootForEachCrash(self) -> None:
        """A test that crashes the kernel has a boot of its own, with the pattern of the console."""
        for isQuick in (True, False):
            job = self.jobs(isQuick)["PlainTests.test_death"]
            self.assertEqual(job.tests, (f"{_PLAIN}.test_death",))
            self.assertEqual(job.death, "its last words")

    def test_unmetNeedsAreNamed(self) -> None:
        """What a machine does not have is named."""
        self.assertEqual(
            unmet(FakeMachine(True, Need.HUB), [_SYSTEMD]), {"systemd as it is installed"}
        )

    def test_unknownName(self) -> None:
        """An unknown name raises an error with the name."""
        error = self.assertRaises(HarnessError, jobsFor, FakeMachine(True), [fullName("nothing")])
        self.assertIn("tests.kernel.scenarios.nothing", str(error))


class NamesTests(SynchronousTestCase):
    """All scenarios, those of the smoke test, and those that the documentation names."""

    def test_allNamesCanBeLoaded(self) -> None:
        """Each module of scenarios can be loaded, and each name of the smoke test and of the
        documentation means something, which has a row for each module."""
        machine = FakeMachine(True, *Need)
        text = Path(PROJECT, "tests", "README.md").read_text()
        named = re.findall(r"SCENARIO=(?:'([^']+)'|([^'\s]+))", text)
        documented = [fullName(name) for pair in named for name in "".join(pair).split()]
        self.assertNotEqual(documented, [])
        for name in (*scenarioModules(), *SMOKE, *documented):
            self.assertNotEqual(jobsFor(machine, [name]), [], name)
        _, _, table = text.partition("### What is shown")
        rows = re.findall(r"^\| (`.*?`) \|", table.partition("\n###")[0], re.MULTILINE)
        modules = sorted(fullName(name) for row in rows for name in re.findall(r"`(\w+)`", row))
        self.assertEqual(modules, scenarioModules())


class CommandTests(SynchronousTestCase):
    """The command C{python -m tests.kernel}."""

    def test_missingProgram(self) -> None:
        """A mistake of the user is one sentence and exit status 1, without a traceback."""
        environment = {**os.environ, "USBIPSHARE_KERNEL_CACHE": self.mktemp(), "PATH": "/nowhere"}
        ended = subprocess.run(
            [sys.executable, "-m", "tests.kernel", "stock"],
            cwd=PROJECT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(ended.returncode, 1, ended)
        self.assertIn("apt-get install --no-install-recommends", ended.stderr)
        self.assertNotIn("Traceback", ended.stderr)
