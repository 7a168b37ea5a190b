"""
Programs that are forked from a process that has imported their modules.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.kernel.inside.command import waitUntil
from tests.support.childdaemon import SECONDS, TWISTED, ChildDaemon
from tests.support.forking import FORKING, ForkedChild, spawn

COMMAND = str(Path(sys.executable).with_name("usbipshare"))

VIRTUAL = "backend: {type: virtual}\n"


class ForkingTests(SynchronousTestCase):
    """With the environment variable that is set in guests."""

    def setUp(self) -> None:
        self.patch(os, "environ", {**os.environ, FORKING: "1"})

    def outcome(self, *command: str) -> tuple[int, str]:
        """Run a forked program; returns its exit status and output."""
        with tempfile.TemporaryFile() as output:
            child = spawn(command, subprocess.DEVNULL, output, subprocess.STDOUT)
            self.assertIsInstance(child, ForkedChild)
            status = child.wait(SECONDS)
            output.seek(0)
            return status, output.read().decode()

    def test_arguments(self) -> None:
        """Each program has its own arguments and exit status."""
        check = ("usbipshare", "--check", "--backend", "virtual")
        status, output = self.outcome(*TWISTED, *check)
        self.assertEqual(status, 0, output)
        self.assertIn("configuration OK", output)
        status, output = self.outcome(COMMAND, "--version")
        self.assertEqual(status, 0, output)
        self.assertTrue(output.startswith("usbipshare"), output)
        status, output = self.outcome(COMMAND, "--nonsense")
        self.assertNotEqual(status, 0, output)
        self.assertIn("--nonsense", output)

    def test_forkedDaemonLikeStartedOne(self) -> None:
        """A forked daemon has the descriptors of a started one, works, can be killed and
        started again, and ends with the same exit status."""
        with ChildDaemon(VIRTUAL, prefix=["env"]) as started, ChildDaemon(VIRTUAL) as forked:
            self.assertIsInstance(started.child, subprocess.Popen)
            self.assertIsInstance(forked.child, ForkedChild)
            self.assertEqual(forked.ask("list"), started.ask("list"))
            waitUntil(lambda: kinds(forked) == kinds(started), "the connections are closed", 30)
            forked.kill()
            self.assertEqual(forked.child.returncode, -signal.SIGKILL)
            forked.start()
            self.assertIsNone(forked.child.poll())
        self.assertEqual(forked.child.returncode, started.child.returncode)

    def test_otherProgramsAreNotForked(self) -> None:
        """Other programs are started as usual."""
        for command in (["true"], [sys.executable, "-c", ""], ["env", *TWISTED, "--version"]):
            child = spawn(command, subprocess.DEVNULL, subprocess.DEVNULL, subprocess.DEVNULL)
            self.assertIsInstance(child, subprocess.Popen)
            self.assertEqual(child.wait(SECONDS), 0)


def kinds(daemon: ChildDaemon) -> list[str]:
    """The kinds of its file descriptors."""
    folder = Path(f"/proc/{daemon.child.pid}/fd")
    return sorted(os.readlink(link).partition("[")[0] for link in folder.iterdir())
