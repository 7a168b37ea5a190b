"""
Tests of L{usbip_server.runtime.process}, with real child processes that misbehave.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError

from tests.support.childcase import ChildTestCase, isThere
from tests.support.fixtures import asked
from tests.support.timedreactor import OVER, TimedReactor
from usbip_server.runtime import process
from usbip_server.runtime.process import OUTPUT, PATH, CannotStart, Finished, find, run

SECONDS = 300.0
"""That a program may take, and each step of its end, where nothing is to be late."""

MUCH = b"x" * 1_000_000
"""More than a pipe takes."""


def openPipes() -> int:
    """How many pipes this process has open."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}").startswith("pipe:")
        except FileNotFoundError:
            continue  # the one that was open to list the directory
    return found


def finishedWith(
    status: int | None, output: str, signal: int | None = None, timedOut: bool = False
) -> Finished:
    """The result of a program that writes to its standard output only."""
    return Finished(status, output, signal, timedOut, answer=output)


class FullReactor:
    """
    The real reactor, on a system that has no room for more processes.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)

    def spawnProcess(self, *arguments: object) -> None:
        """There are too many."""
        raise BlockingIOError(11, "Resource temporarily unavailable")


class RunTests(ChildTestCase):
    """
    One program, from its start to its end.
    """

    def setUp(self) -> None:
        super().setUp()
        self.patch(process, "GRACE", SECONDS)

    async def run_(
        self,
        text: str,
        data: bytes = b"",
        environment: Mapping[str, str] | None = None,
        seconds: float = SECONDS,
        arguments: Sequence[str] = (),
    ) -> Finished:
        """Run a script. After that nothing of it is open here."""
        command = [self.script(text), *arguments]
        pipes = await self.ownPipes()
        finished = await run(reactor, command, data, environment, seconds=seconds)
        self.assertEqual(openPipes(), pipes)
        return finished

    async def late(
        self, text: str, data: bytes = b"", isOver: Callable[[], bool] | None = None
    ) -> Finished:
        """Run a script whose time is over when it has made the file C{$D/ready}, or when this is
        true."""
        timed = TimedReactor()
        script = self.script(text)
        pipes = await self.ownPipes()
        running = asked(run(timed, [script], data, seconds=OVER))
        await self.until(isOver or (self.directory / "ready").exists)
        timed.timeIsOver()
        finished: Finished = await running
        self.assertEqual(openPipes(), pipes)
        return finished

    async def ownPipes(self) -> int:
        """How many there are without a child; the reactor has some when it runs."""
        await self.turn()
        return openPipes()

    async def refusal(self, *command: str) -> CannotStart:
        """Why it cannot be started."""
        pipes = await self.ownPipes()
        with self.assertRaises(CannotStart) as caught:
            await run(reactor, command, seconds=SECONDS)
        self.assertIn(repr(command[0]), str(caught.exception))
        self.assertEqual(openPipes(), pipes)
        refused: CannotStart = caught.exception
        return refused

    async def test_finished(self) -> None:
        """What it prints on either stream and its exit status are there when it has ended."""
        finished = await self.run_("echo one; echo two >&2; exit 3")
        self.assertEqual(sorted(finished.output.splitlines()), ["one", "two"])
        self.assertEqual((finished.status, finished.signal, finished.timedOut), (3, None, False))
        self.assertEqual(await self.run_("exit 0"), finishedWith(0, ""))

    async def test_input(self) -> None:
        """It gets all of the input, however much it is, and then its end."""
        self.assertEqual((await self.run_("cat", b"some\nthing")).output, "some\nthing")
        self.assertEqual((await self.run_("wc -c", MUCH)).output, str(len(MUCH)))
        self.assertEqual((await self.run_("wc -c")).output, "0")

    async def test_inputUnread(self) -> None:
        """It need not read its input, and may close it."""
        self.assertEqual(await self.run_("echo ok", MUCH), finishedWith(0, "ok"))
        self.assertEqual(await self.run_("exec 0<&-; echo ok; exit 2", MUCH), finishedWith(2, "ok"))

    async def test_environment(self) -> None:
        """It is in the root directory and knows nothing of our environment."""
        os.environ["USBIPSHARE_SECRET"] = "x"
        self.addCleanup(os.environ.pop, "USBIPSHARE_SECRET")
        finished = await self.run_("pwd; env", environment={"MORE": "some thing"})
        first, *variables = finished.output.splitlines()
        self.assertEqual(first, "/")
        own = ("PWD=", "OLDPWD=", "SHLVL=", "_=")  # of the shell
        self.assertEqual(
            {variable for variable in variables if not variable.startswith(own)},
            {f"PATH={PATH}", "LC_ALL=C", "MORE=some thing"},
        )

    async def test_arguments(self) -> None:
        """No shell sees the arguments."""
        arguments = ["$HOME", "a b", "; exit 9", "`id`"]
        finished = await self.run_('printf "%s\\n" "$@"', arguments=arguments)
        self.assertEqual(finished.output.splitlines(), arguments)

    async def test_lookedUp(self) -> None:
        """A name without a path is looked up."""
        finished = await run(reactor, ["sh", "-c", "echo $0"], seconds=SECONDS)
        self.assertEqual(finished.output, find("sh"))

    async def test_missing(self) -> None:
        """What is not there, or no program, is an error that says so."""
        path = self.script("")
        for command, reason in (
            ("no-such-program", f"there is no such program in {PATH}"),
            ("", f"there is no such program in {PATH}"),
            ("/no/such/program", "there is no such program"),
            (str(self.directory), "it may not be executed"),
            ("bin/sh", "give its whole path, or nothing but its name"),
            ("./sh", "give its whole path, or nothing but its name"),
        ):
            self.assertEqual((await self.refusal(command)).reason, reason)
        os.chmod(path, 0o644)
        self.assertEqual((await self.refusal(path)).reason, "it may not be executed")

    async def test_notExecuted(self) -> None:
        """What turns out to be no program when it is executed is one that cannot be started."""
        refused = await self.refusal(self.script("", interpreter="/no/such/interpreter"))
        self.assertIn("No such file", refused.reason)
        path = self.directory / "text"
        path.write_text("echo no first line says what I am\n")
        path.chmod(0o755)
        self.assertIn("Exec format error", (await self.refusal(str(path))).reason)
        await self.refusal("sh", "zero\0byte")

    async def test_noRoom(self) -> None:
        """So is one for which the system has no room."""
        with self.assertRaises(CannotStart) as caught:
            await run(FullReactor(), ["sh"], seconds=SECONDS)
        self.assertIn("Resource temporarily unavailable", str(caught.exception))

    async def test_flood(self) -> None:
        """Of one that prints without end the beginning is kept."""
        finished = await self.run_("head -c 3000000 /dev/zero | tr '\\0' x; exit 4")
        self.assertEqual(finished, finishedWith(4, "x" * OUTPUT))
        finished = await self.late("yes | head -c 3000000; touch $D/ready; exec yes")
        self.assertEqual(len(finished.output), OUTPUT - 1)  # without the last line feed
        self.assertTrue(finished.timedOut)

    async def test_notText(self) -> None:
        """Output need not be UTF-8."""
        finished = await self.run_("printf 'a\\377b'")
        self.assertEqual(finished.output, "a\N{REPLACEMENT CHARACTER}b")

    async def test_signalled(self) -> None:
        """One that a signal ends has no status."""
        finished = await self.run_("echo ouch; kill -SEGV $$")
        self.assertEqual(finished, finishedWith(None, "ouch", signal.SIGSEGV))

    async def test_hanging(self) -> None:
        """One that hangs is told to end when its time is over; its input is not read."""
        finished = await self.late("echo here; touch $D/ready; exec sleep 1000", MUCH)
        self.assertEqual(finished, finishedWith(None, "here", signal.SIGTERM, timedOut=True))

    async def test_soon(self) -> None:
        """That is so when as much time has passed as it was given."""
        self.patch(process, "GRACE", 1.0)
        self.patch(process, "LINGER", SECONDS)
        for seconds in (0.3, 3.0, 30.0):  # more, if it was not even executed by then
            began = reactor.seconds()
            finished = await self.run_("exec sleep 1000", seconds=seconds)
            self.assertTrue(finished.timedOut)
            self.assertGreater(reactor.seconds() - began, seconds - 0.01)
            if finished.signal == signal.SIGTERM:
                return
        self.fail(f"it was not told to end: {finished}")

    async def test_heeding(self) -> None:
        """It may put things in order first."""
        finished = await self.late(
            "sleep 1000 & trap 'kill $!; echo bye; exit 4' TERM; echo here; touch $D/ready; wait"
        )
        self.assertEqual(finished, finishedWith(4, "here\nbye", timedOut=True))

    async def test_notHeeding(self) -> None:
        """One that does not want to end is killed."""
        self.patch(process, "GRACE", 0.1)
        self.patch(process, "LINGER", SECONDS)
        finished = await self.late("trap '' TERM; echo here; touch $D/ready; exec sleep 1000")
        self.assertEqual(finished, finishedWith(None, "here", signal.SIGKILL, timedOut=True))

    def leaving(self, end: str) -> str:
        """A script that leaves a process behind that has all pipes open."""
        return f"sleep 1000 <&0 & echo $!; {end}"

    def assertLeft(self, finished: Finished) -> Finished:
        """That process is there. It ends with the test."""
        pid = int(finished.output)
        self.killLater(pid)
        self.assertTrue(isThere(pid))
        return finished

    async def test_grandchild(self) -> None:
        """Others that have its pipes open delay nothing, and nothing of them stays open."""
        finished = self.assertLeft(await self.run_(self.leaving("exit 5"), MUCH, seconds=OVER))
        self.assertEqual((finished.status, finished.timedOut), (5, False))
        late = self.leaving("touch $D/ready; exec sleep 1000")
        finished = self.assertLeft(await self.late(late, MUCH))
        self.assertEqual((finished.signal, finished.timedOut), (signal.SIGTERM, True))

    async def test_endedInTime(self) -> None:
        """One that has ended in time is not late because others have its pipes open."""
        self.patch(process, "LINGER", 2 * OVER)
        ready = self.directory / "ready"

        def hasEnded() -> bool:
            return ready.exists() and not isThere(int(ready.read_text()))

        late = self.leaving("echo $$ > $D/new; mv $D/new $D/ready; exit 0")
        finished = self.assertLeft(await self.late(late, MUCH, hasEnded))
        self.assertEqual((finished.status, finished.timedOut), (0, False))

    async def test_cancelled(self) -> None:
        """It is killed at once when nobody is interested any more."""
        file = self.directory / "pid"
        script = self.script("echo $$ > $D/pid.new; mv $D/pid.new $D/pid; exec sleep 1000")
        pipes = await self.ownPipes()
        running = asked(run(reactor, [script], seconds=1000.0))
        await self.until(file.exists)
        running.cancel()
        with self.assertRaises(CancelledError):
            await running
        self.assertEqual(openPipes(), pipes)
        await self.until(lambda: not isThere(int(file.read_text())))
