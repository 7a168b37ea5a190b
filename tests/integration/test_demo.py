"""
C{make demo} and C{make run}.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

PROJECT = Path(__file__).parent.parent.parent
SECONDS = 60


class DemoTests(SynchronousTestCase):
    """
    What a newcomer does first.
    """

    def run_(self, *command: str) -> str:
        """Run a program that has to succeed, and return what it prints."""
        done = subprocess.run(
            command, cwd=PROJECT, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def test_demo(self) -> None:
        """The demo shows each step, ends by itself, and says what to try next."""
        said = self.run_(sys.executable, "docs/demo.py")
        for part in (
            '--> {"command":"list"}',
            '--> {"command":"find","desc":"serial"}',
            '--> {"command":"attach","bus":"1-1"}',
            "the device echoed b'Hello, USB!'",
            '--> {"command":"detach","bus":"1-1"}',
            "make run BACKEND=virtual",
            "| nc localhost 5055",
            "curl -X POST http://localhost:5055",
        ):
            self.assertIn(part, said)

    def test_makefile(self) -> None:
        """make demo runs it; make run runs the daemon, with what it was told."""
        self.assertIn("bin/python docs/demo.py", self.run_("make", "--dry-run", "demo"))
        said = self.run_("make", "--dry-run", "run", "BACKEND=virtual", "CONFIG=my.yaml")
        self.assertIn("twistd --nodaemon --pidfile= usbipshare", said)
        self.assertIn("--backend virtual --config my.yaml", " ".join(said.split()))
