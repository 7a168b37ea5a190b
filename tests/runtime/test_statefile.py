"""
Tests of L{usbip_server.runtime.statefile}.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from msgspec.json import encode
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from usbip_server.model.device import Lease
from usbip_server.runtime.statefile import StateFile
from usbip_server.server.devices.desiredstate import DesiredDevice, State
from usbip_server.testing import FakeReactor

KILLS = 50

SAVING = """
import os, sys
from tests.runtime.test_statefile import stateOf
from usbip_server.runtime.statefile import StateFile
from usbip_server.server.devices.desiredstate import State
from usbip_server.testing import FakeReactor

while sys.stdin.readline():
    child = os.fork()
    if child == 0:
        reactor = FakeReactor()
        file = StateFile(sys.argv[1], State, reactor, reactor.spawn)
        wishes = file.open().devices
        number = int(wishes[0].serial) if wishes else 0
        while True:
            number += 1
            file.save(stateOf(number))
            os.write(1, b"%d %d\\n" % (os.getpid(), number))
    os.waitpid(child, 0)
    os.write(1, b"killed\\n")
"""
"""A process that at each line begins to save, until it is killed, and tells each number that
is saved."""

HOLDING = """
import sys
from usbip_server.runtime.statefile import StateFile
from usbip_server.server.devices.desiredstate import State
from usbip_server.testing import FakeReactor

file = StateFile(sys.argv[1], State, FakeReactor())
file.open()
print("open", flush=True)
sys.stdin.read()
"""


def stateOf(number: int) -> State:
    """A state that is long, and damaged if not all of it has the same number."""
    wish = DesiredDevice(
        vendorId="2341", productId="0043", serial=str(number), busId="1-1.4", kept=True
    )
    return State(devices=(wish,) * 100)


class Fixture(SynchronousTestCase):
    """
    A place for a file, and what is logged.
    """

    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.directory = os.path.abspath(self.mktemp())
        self.path = os.path.join(self.directory, "state.json")
        capture = capturedLogs()
        self.events: Any = capture.__enter__()
        self.addCleanup(capture.__exit__, None, None, None)
        self.file = self.fileAt(self.path)

    def fileAt(self, path: str) -> StateFile[State]:
        """A state file."""
        return StateFile(path, State, self.reactor, self.reactor.spawn)

    def put(self, content: bytes) -> None:
        """Put a file at the place."""
        os.makedirs(self.directory, exist_ok=True)
        with open(self.path, "wb") as file:
            file.write(content)

    def there(self, path: str | None = None) -> bytes:
        """What is in the file."""
        with open(path or self.path, "rb") as file:
            return file.read()

    def names(self) -> list[str]:
        """What is in the directory."""
        return sorted(os.listdir(self.directory))

    def close(self, file: StateFile[State] | None = None) -> Deferred[None]:
        """Close, waiting for five seconds at the most."""
        return Deferred.fromCoroutine((file or self.file).close(5))

    def next(self) -> State:
        """What the next daemon finds."""
        self.successResultOf(self.close())
        self.file = self.fileAt(self.path)
        return self.file.open()

    def warnings(self) -> list[str]:
        """The warnings that were logged since the last time."""
        texts = [formatEvent(e) for e in self.events if e["log_level"] is LogLevel.warn]
        self.events.clear()
        return texts

    def warning(self) -> str:
        """The one warning."""
        (text,) = self.warnings()
        return text


class KeepingTests(Fixture):
    """
    What is saved is there the next time.
    """

    def test_kept(self) -> None:
        """What was saved last is found by the next daemon."""
        lease = Lease(owner="ci", address="192.0.2.7", until=1.5)
        wish = DesiredDevice(
            vendorId="2341", productId="0043", serial=None, busId="1-1.4", lease=lease
        )
        self.assertEqual(self.file.open(), State())
        for state in (stateOf(1), State(devices=(wish,)), State()):
            self.file.save(state)
            self.assertEqual(encode(self.next()), encode(state))
        self.assertEqual(self.warnings(), [])

    def test_readable(self) -> None:
        """It is one JSON object that a human can read, and nobody else's."""
        self.addCleanup(os.umask, os.umask(0))
        self.file.open()
        self.file.save(State(devices=stateOf(7).devices[:1]))
        text = self.there().decode()
        self.assertTrue(text.startswith('{\n  "version": 1,\n  "wishes": [\n    {\n'), text)
        self.assertTrue(text.endswith("}\n"), text)
        self.assertEqual(json.loads(text)["wishes"][0]["serial"], "7")
        for path, mode in ((self.path, 0o600), (self.directory, 0o700)):
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), mode)

    def test_link(self) -> None:
        """A symbolic link stays; what it leads to is replaced."""
        os.makedirs(self.directory)
        link = os.path.join(self.directory, "link")
        os.symlink("state.json", link)
        file = self.fileAt(link)
        file.open()
        file.save(stateOf(1))
        self.assertEqual(os.readlink(link), "state.json")
        self.successResultOf(self.close(file))
        self.assertEqual(self.next(), stateOf(1))

    def test_relative(self) -> None:
        """A relative path means what it meant at the start, wherever the daemon goes."""
        self.addCleanup(os.chdir, os.getcwd())
        self.file = self.fileAt(os.path.relpath(self.path))
        self.file.open()
        os.chdir("/")
        self.file.save(stateOf(1))
        self.assertEqual(self.next(), stateOf(1))

    def test_notBlocking(self) -> None:
        """Saving returns at once: all that may block is done in a thread."""
        self.file.open()
        self.reactor.hold = True
        self.file.save(stateOf(1))
        self.assertFalse(os.path.exists(self.path))
        self.reactor.runThreads()
        self.assertEqual(self.next(), stateOf(1))

    def test_newestWins(self) -> None:
        """Of several that come while one is being written the last is written."""
        self.file.open()
        self.reactor.hold = True
        for number in range(1, 10):
            self.file.save(stateOf(number))
        self.assertEqual(len(self.reactor.threads), 1)
        self.reactor.threads.pop()()
        self.assertIn(b'"1"', self.there())
        self.assertEqual(len(self.reactor.threads), 1)
        self.reactor.threads.pop()()
        self.assertEqual((self.reactor.threads, self.next()), ([], stateOf(9)))


class CloseTests(Fixture):
    """
    The end of a daemon.
    """

    def test_waits(self) -> None:
        """Closing waits until the newest is on the disk."""
        self.file.open()
        self.reactor.hold = True
        for number in (1, 2):
            self.file.save(stateOf(number))
        closed = self.close()
        self.reactor.threads.pop()()
        self.assertNoResult(closed)
        self.reactor.threads.pop()()
        self.successResultOf(closed)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.next(), stateOf(2))

    def test_bounded(self) -> None:
        """
        It waits no longer than it is to. As long as something may still be written no other
        daemon gets the file.
        """
        self.file.open()
        self.reactor.hold = True
        self.file.save(stateOf(1))
        closed = self.close()
        self.reactor.advance(5)
        self.successResultOf(closed)
        self.assertIn("within 5 s", self.warning())
        self.fileAt(self.path).open()
        self.assertIn("another daemon", self.warning())
        self.reactor.runThreads()
        self.assertIn(b'"1"', self.there())

    def test_nothing(self) -> None:
        """When nothing was saved it does not wait, and can be done twice."""
        self.file.open()
        self.successResultOf(self.close())
        self.successResultOf(self.close())
        self.assertEqual(self.names(), ["state.json.lock"])

    def test_afterwards(self) -> None:
        """After it nothing is saved."""
        self.file.open()
        self.successResultOf(self.close())
        self.file.save(stateOf(1))
        self.assertEqual(self.next(), State())

    def test_triesAgain(self) -> None:
        """What could not be written is tried once more."""
        self.file.open()
        self.patch(tempfile, "mkstemp", refuse(errno.ENOSPC))
        self.file.save(stateOf(1))
        self.patch(tempfile, "mkstemp", MKSTEMP)
        self.assertEqual(self.next(), stateOf(1))


MKSTEMP = tempfile.mkstemp


def refuse(number: int) -> Callable[..., Any]:
    """A function that fails with an errno; what it names is another thing each time."""

    def refused(*arguments: object) -> None:
        raise OSError(number, os.strerror(number), f"/{random.random()}")

    return refused


class AtomicTests(Fixture):
    """
    The old state or the new one, never half of one.
    """

    def test_order(self) -> None:
        """The file is on the disk before it gets its name, and the name after that."""
        steps: list[str] = []
        fsync, rename = os.fsync, os.rename

        def noteFsync(descriptor: int) -> None:
            kind = os.fstat(descriptor).st_mode
            steps.append("directory" if stat.S_ISDIR(kind) else "file")
            fsync(descriptor)

        def noteRename(old: str, new: str) -> None:
            steps.append("rename")
            self.assertEqual(os.path.dirname(old), os.path.dirname(new))
            rename(old, new)

        self.file.open()
        self.patch(os, "fsync", noteFsync)
        self.patch(os, "rename", noteRename)
        self.file.save(stateOf(1))
        self.assertEqual(steps, ["file", "rename", "directory"])

    def test_failing(self) -> None:
        """If a step fails the old state is there, nothing is left behind, and the next one is
        written."""
        self.file.open()
        self.file.save(stateOf(1))
        for where, name in ((tempfile, "mkstemp"), (os, "fsync"), (os, "rename")):
            right = getattr(where, name)
            self.patch(where, name, refuse(errno.EIO))
            self.file.save(stateOf(2))
            self.assertIn(os.strerror(errno.EIO), self.warning())
            self.patch(where, name, right)
            self.assertEqual(self.names(), ["state.json", "state.json.lock"])
            self.assertIn(b'"1"', self.there())
            self.file.save(stateOf(1))
            self.assertIn(b'"1"', self.there())
            self.assertEqual(self.warnings(), [])

    def test_leftOver(self) -> None:
        """What a killed daemon has left is removed, and nothing else."""
        left = ["state.json.abc_1234.new", "state.json.zzzzzzzz.new"]
        others = ["state.json.new", "state.json.mine.new", "other.json.abc_1234.new", "state.json2"]
        os.makedirs(self.directory)
        for name in left + others:
            with open(os.path.join(self.directory, name), "w"):
                pass
        self.file.open()
        self.assertEqual(self.names(), sorted([*others, "state.json.lock"]))

    def test_killed(self) -> None:
        """
        A daemon that is killed in the middle leaves a whole state: the last that it had
        said was saved, or a later one.
        """
        with subprocess.Popen(
            [sys.executable, "-c", SAVING, self.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            for _ in range(KILLS):
                process.stdin.write("\n")
                for _ in range(random.randrange(1, 20)):
                    pid, number = map(int, process.stdout.readline().split())
                os.kill(pid, signal.SIGKILL)
                while (line := process.stdout.readline()) != "killed\n":
                    number = int(line.split()[1])
                state = self.next()
                self.assertEqual(self.warnings(), [])
                self.assertGreaterEqual(int(state.devices[0].serial or ""), number)
                self.assertEqual(state, stateOf(int(state.devices[0].serial or "")))
                self.assertEqual(self.names(), ["state.json", "state.json.lock"])
                self.successResultOf(self.close())
            process.stdin.close()


class DamageTests(Fixture):
    """
    A file that is no state.
    """

    def assertSetAside(self, because: str) -> str:
        """
        What is there is set aside, which is told, and the daemon begins with nothing.

        @return: where it is now.
        """
        self.assertEqual(self.file.open(), State())
        warning = self.warning()
        found = re.search(r"state\.json\.damaged-[0-9]{8}T[0-9]{6}Z\b", warning)
        assert found is not None, warning
        self.assertIn(because, warning)
        self.assertIn(self.path, warning)
        return os.path.join(self.directory, found[0])

    def test_damaged(self) -> None:
        """It is set aside, whatever is wrong with it, and the next state is kept."""
        for content, because in (
            (b"", "truncated"),
            (b"no JSON", "malformed"),
            (b'{"version": 1, "wishes": [', "truncated"),
            (b"\xff\xfe\0\xd8", "utf-8"),
            (b'{"version": 1, "wishes": ["\xff"]}', "utf-8"),
            (b"[]", "object"),
            (b"{}", "version"),
            (b'{"version": "1"}', "version"),
            (b'{"version": 2, "more": 1}', "its version is 2; this daemon knows 1"),
            (b'{"version": 1, "more": 1}', "more"),
            (b'{"version": 1, "wishes": [{"serial": 7}]}', "serial"),
            (b'{"version": 1, "wishes": ' + b"[" * 100_000, ""),
        ):
            self.put(content)
            aside = self.assertSetAside(because)
            self.assertEqual(self.there(aside), content)
            os.unlink(aside)
            self.file.save(stateOf(1))
            self.assertEqual(self.next(), stateOf(1))
            self.successResultOf(self.close())
            self.file = self.fileAt(self.path)

    def test_truncated(self) -> None:
        """A state that is cut off anywhere is damaged."""
        self.file.open()
        self.file.save(State(devices=stateOf(1).devices[:1]))
        whole = self.there().rstrip()
        for end in range(len(whole)):
            self.put(whole[:end])
            self.assertEqual(self.next(), State())
            self.assertEqual(len(self.warnings()), 1)

    def test_directory(self) -> None:
        """An empty directory in its place is set aside too."""
        os.makedirs(self.path)
        self.assertTrue(os.path.isdir(self.assertSetAside("directory")))
        self.file.save(stateOf(1))
        self.assertEqual(self.next(), stateOf(1))

    def test_unreadable(self) -> None:
        """Also a file that the daemon may not read."""
        if os.geteuid() == 0:
            raise SkipTest("root may read all")
        self.put(b"{}")
        os.chmod(self.path, 0)
        self.assertSetAside(os.strerror(errno.EACCES))

    def test_notAFile(self) -> None:
        """
        What cannot be a damaged state is left alone: a directory with something in it, a
        device, a pipe. Nothing is remembered then.
        """
        os.makedirs(os.path.join(self.directory, "full", "thing"))
        os.mkfifo(os.path.join(self.directory, "pipe"))
        os.symlink("/dev/null", os.path.join(self.directory, "null"))
        for name, because in (
            ("full", "a directory with something in it"),
            ("pipe", "no regular file"),
            ("null", "/dev/null is no regular file"),
        ):
            file = self.fileAt(os.path.join(self.directory, name))
            self.assertEqual(file.open(), State())
            warning = self.warning()
            self.assertIn(because, warning)
            self.assertIn("not remembered across a restart", warning)
            file.save(stateOf(1))
            self.successResultOf(self.close(file))
        self.assertEqual(self.names(), ["full", "null", "pipe"])


class TroubleTests(Fixture):
    """
    A place where nothing can be kept.
    """

    def test_advice(self) -> None:
        """It is said what is wrong, what follows from it, and what to do; once."""
        for number, advice in (
            (errno.EACCES, f"Let the daemon's user write in {self.directory}"),
            (errno.EPERM, f"Let the daemon's user write in {self.directory}"),
            (errno.EROFS, f"{self.directory} is read-only"),
            (errno.ENOSPC, "Make room"),
            (errno.EDQUOT, "Make room"),
            (errno.EIO, "set state.file to another place"),
        ):
            file = self.fileAt(os.path.join(self.directory, f"{number}.json"))
            file.open()
            self.patch(tempfile, "mkstemp", refuse(number))
            for serial in range(5):
                file.save(stateOf(serial))
            warning = self.warning()
            for text in (os.strerror(number), "not remembered across a restart", advice):
                self.assertIn(text, warning)
            self.patch(tempfile, "mkstemp", MKSTEMP)

    def test_distinct(self) -> None:
        """Each error is told once, and again only when all has been well in between."""
        self.file.open()
        told = []
        for number in (errno.EIO, errno.ENOSPC, errno.EIO, 0, 0, errno.EIO, errno.EIO):
            self.patch(tempfile, "mkstemp", refuse(number) if number else MKSTEMP)
            self.file.save(stateOf(1))
            told.append([formatEvent(event).partition(" (")[0] for event in self.events])
            self.events.clear()
        bad, good = f"cannot keep {self.path}", f"{self.path} is written again"
        self.assertEqual(told, [[bad], [bad], [], [good], [], [bad], []])

    def test_triedAgain(self) -> None:
        """
        What is wrong at the start can be put right later: what is saved then is kept, and
        what could not be read is set aside.
        """
        with open(self.directory, "w"):
            pass  # where the directory should be
        self.assertEqual(self.file.open(), State())
        self.assertIn(os.strerror(errno.ENOTDIR), self.warning())
        self.file.save(stateOf(1))
        self.assertEqual(self.warnings(), [])
        os.unlink(self.directory)
        self.put(b"precious")
        self.file.save(stateOf(2))
        self.assertIn("could not be read when the daemon started", self.warning())
        aside, *others = self.names()[1:]
        self.assertEqual(others, ["state.json.lock"])
        self.assertEqual(self.there(os.path.join(self.directory, aside)), b"precious")
        self.assertEqual(self.next(), stateOf(2))

    def test_readOnly(self) -> None:
        """A state that can be read and not written is read."""
        self.file.open()
        self.file.save(stateOf(1))
        self.patch(tempfile, "mkstemp", refuse(errno.EROFS))
        self.assertEqual(self.next(), stateOf(1))
        self.file.save(stateOf(2))
        self.assertIn("read-only", self.warning())
        self.assertEqual(self.next(), stateOf(1))

    def test_stuckAside(self) -> None:
        """A damaged file that cannot be set aside is told, and the daemon runs."""
        self.put(b"damaged")
        self.patch(os, "rename", refuse(errno.EROFS))
        self.assertEqual(self.file.open(), State())
        self.assertIn("read-only", self.warning())

    def test_noThreads(self) -> None:
        """When there are no threads to be had it is tried again the next time."""

        def none(function: object) -> None:
            raise RuntimeError("can't start new thread")

        self.file.open()
        self.file._spawn = none
        for _ in range(3):
            self.file.save(stateOf(1))
        self.assertIn("can't start new thread", self.warning())
        self.file._spawn = self.reactor.spawn
        self.file.save(stateOf(2))
        self.assertEqual(self.next(), stateOf(2))


class TwoDaemonTests(Fixture):
    """
    One file, two daemons.
    """

    def test_second(self) -> None:
        """The second neither reads nor writes what the first has, and says so once."""
        self.file.open()
        self.file.save(stateOf(1))
        second = self.fileAt(self.path)
        self.assertEqual(second.open(), State())
        warning = self.warning()
        for text in ("another daemon has", self.path, "not remembered across a restart"):
            self.assertIn(text, warning)
        second.save(stateOf(2))
        self.successResultOf(self.close(second))
        self.assertEqual(self.warnings(), [])
        self.assertEqual(self.next(), stateOf(1))

    def test_process(self) -> None:
        """Also if the first is another process; when that has ended the file is free."""
        with subprocess.Popen(
            [sys.executable, "-c", HOLDING, self.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        ) as process:
            assert process.stdout is not None
            self.assertEqual(process.stdout.readline(), b"open\n")
            self.assertEqual(self.file.open(), State())
            self.assertIn("another daemon has", self.warning())
            process.kill()
        self.assertEqual(self.next(), State())
        self.file.save(stateOf(1))
        self.assertEqual(self.warnings(), [])
        self.assertEqual(self.next(), stateOf(1))

    def test_later(self) -> None:
        """Also if the second could not tell at its start."""
        with open(self.directory, "w"):
            pass
        self.file.open()
        os.unlink(self.directory)
        first = self.fileAt(self.path)
        first.open()
        first.save(stateOf(1))
        self.warnings()
        for _ in range(2):
            self.file.save(stateOf(2))
        self.assertIn("another daemon has", self.warning())
        self.successResultOf(self.close(first))
        self.assertEqual(self.next(), stateOf(1))


class RealThreadTests(TestCase):
    """
    With real threads.
    """

    async def test_many(self) -> None:
        """A thousand states in a row, and the last is kept."""
        path = self.mktemp()
        file = StateFile(path, State, reactor)
        file.open()
        for number in range(1000):
            file.save(stateOf(number))
        await file.close(60)
        again = StateFile(path, State, reactor)
        self.assertEqual(again.open(), stateOf(999))
        await again.close(60)
