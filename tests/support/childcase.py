"""
What tests with real child processes need: scripts, and waiting until something is so.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase


class ChildTestCase(TestCase):
    """
    Tests that run scripts.
    """

    timeout = 300

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()

    def script(self, text: str, interpreter: str = "/bin/sh", name: str = "script") -> str:
        """The path of a program that does this; C{$D} is the test's directory."""
        path = self.directory / name
        new = path.with_name(f"{name}.new")
        new.write_text(f"#!{interpreter}\n{text}\n".replace("$D", str(self.directory)))
        new.chmod(0o755)
        new.replace(path)  # one that is just being executed could not be written to
        return str(path)

    def killLater(self, pid: int) -> None:
        """When the test is over, a process ends that nobody else would end."""

        def kill() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

        self.addCleanup(kill)

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the reactor turn until something is so."""
        while not condition():
            await self.turn()

    async def turn(self) -> None:
        """Let the reactor turn."""
        turned: Deferred[None] = Deferred()
        reactor.callLater(0.01, turned.callback, None)
        await turned


def isThere(pid: int) -> bool:
    """Is there such a process, or what is left of it until it is reaped?"""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
