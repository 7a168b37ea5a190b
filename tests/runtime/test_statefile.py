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
from usbip_server.server.devices.desireddevice import DesiredDevice, State
from usbip_server.testing import FakeReactor

KILLS = 50

SAVING = """
import os, sys
from tests.runtime.test_statefile import stateOf
from usbip_server.runtime.statefile import StateFile
from usbip_server.server.devices.desireddevice import State
from usbip_server.testing import FakeReactor

while sys.stdin.readline():
    child = os.fork()
    if child == 0:
        reactor = FakeReactor()
        file = StateFile(sys.argv[1], State, reactor, reactor.spawn)
        devices = file.open().devices
        number = int(devices[0].serial) if devices else 0
        while True:
            number += 1
            file.save(stateOf(number))
            os.write(1, b"%d %d\\n" % (os.getpid(), number))
    os.waitpid(child, 0)
    os.write(1, b"killed\\n")
"""
"""For each line of its input, starts a process that saves states until it is killed, and that
prints its pid and the number of each saved state."""

HOLDING = """
import sys
from usbip_server.runtime.statefile import StateFile
from usbip_server.server.devices.desireddevice import State
from usbip_server.testing import FakeReactor

file = StateFile(sys.argv[1], State, FakeReactor())
file.open()
print("open", flush=True)
sys.stdin.read()
"""

MKSTEMP = tempfile.mkstemp


def stateOf(number: int) -> State:
    """A long state, which is damaged if not all of it has the same number."""
    desired = DesiredDevice(
        vendorId="2341", productId="0043", serial=str(number), busId="1-1.4", kept=True
    )
    return State(devices=(desired,) * 100)


def refuse(number: int) -> Callable[..., Any]:
    """A function that fails with an errno, and with another file name each time."""

    def refused(*arguments: object) -> None:
        raise OSError(number, os.strerror(number), f"/{random.random()}")

    return refused


def child(program: str, path: str) -> subprocess.Popen[str]:
    """A Python process that runs a program with the path of a state file."""
    return subprocess.Popen(
        [sys.executable, "-c", program, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


class StateFileCase(SynchronousTestCase):
    """
    A directory for a state file, and what is logged.
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
        """Write the file."""
        os.makedirs(self.directory, exist_ok=True)
        with open(self.path, "wb") as file:
            file.write(content)

    def there(self, path: str | None = None) -> bytes:
        """The content of the file."""
        with open(path or self.path, "rb") as file:
            return file.read()

    def names(self) -> list[str]:
        """The names in the directory."""
        return sorted(os.listdir(self.directory))

    def close(self, file: StateFile[State] | None = None) -> Deferred[None]:
        """Close, with a time limit of five seconds."""
        return Deferred.fromCoroutine((file or self.file).close(5))

    def next(self) -> State:
        """The state that the next daemon reads."""
        self.successResultOf(self.close())
        self.file = self.fileAt(self.path)
        return self.file.open()

    def warnings(self) -> list[str]:
        """The warnings that were logged since the last call."""
        texts = [formatEvent(e) for e in self.events if e["log_level"] is LogLevel.warn]
        self.events.clear()
        return texts

    def warning(self, *parts: str) -> str:
        """The only warning; it contains all parts."""
        (text,) = self.warnings()
        for part in parts:
            self.assertIn(part, text)
        return text


class SavingTests(StateFileCase):
    """
    What is saved is read by the next daemon.
    """

    def test_roundTrip(self) -> None:
        """The state that was saved last is the one that is read."""
        lease = Lease(owner="ci", address="192.0.2.7", until=1.5)
        desired = DesiredDevice(
            vendorId="2341", productId="0043", serial=None, busId="1-1.4", lease=lease
        )
        self.assertEqual(self.file.open(), State())
        for state in (stateOf(1), State(devices=(desired,)), State()):
            self.file.save(state)
            self.assertEqual(encode(self.next()), encode(state))
        self.assertEqual(self.warnings(), [])

    def test_format(self) -> None:
        """The file is indented JSON, and only its owner can read it and its directory."""
        self.addCleanup(os.umask, os.umask(0))
        self.file.open()
        self.file.save(State(devices=stateOf(7).devices[:1]))
        text = self.there().decode()
        self.assertTrue(text.startswith('{\n  "version": 1,\n  "wishes": [\n    {\n'), text)
        self.assertTrue(text.endswith("}\n"), text)
        self.assertEqual(json.loads(text)["wishes"][0]["serial"], "7")
        for path, mode in ((self.path, 0o600), (self.directory, 0o700)):
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), mode)

    def test_paths(self) -> None:
        """A symbolic link stays, and its target is replaced. A relative path is relative to the
        working directory at the start."""
        os.makedirs(self.directory)
        link = os.path.join(self.directory, "link")
        os.symlink("state.json", link)
        start = os.getcwd()
        self.addCleanup(os.chdir, start)
        for number, path in enumerate((link, os.path.relpath(self.path))):
            file = self.fileAt(path)
            file.open()
            os.chdir("/")
            file.save(stateOf(number))
            self.successResultOf(self.close(file))
            self.assertEqual(os.readlink(link), "state.json")
            self.assertEqual(self.next(), stateOf(number))
            self.successResultOf(self.close())
            os.chdir(start)

    def test_thread(self) -> None:
        """Saving does not block: the file is written in a thread. Of several states that are saved
        meanwhile only the last is written."""
        self.file.open()
        self.reactor.hold = True
        for number in range(1, 10):
            self.file.save(stateOf(number))
        self.assertFalse(os.path.exists(self.path))
        self.assertEqual(len(self.reactor.threads), 1)
        self.reactor.threads.pop()()
        self.assertIn(b'"1"', self.there())
        self.assertEqual(len(self.reactor.threads), 1)
        self.reactor.threads.pop()()
        self.assertEqual((self.reactor.threads, self.next()), ([], stateOf(9)))

    def written(self) -> Deferred[None]:
        """The result of a wait for the last state, of five seconds at most."""
        return Deferred.fromCoroutine(self.file.written(5))

    def test_written(self) -> None:
        """
        A wait for the last state ends when this state or a later one is on the disk, or could not
        be written, or at its time limit; without a state it ends at once.
        """
        self.file.open()
        self.successResultOf(self.written())
        self.reactor.hold = True
        waits = []
        for number in (1, 2, 3):
            self.file.save(stateOf(number))
            waits.append(self.written())
        self.reactor.threads.pop()()
        self.successResultOf(waits[0])
        self.assertNoResult(waits[1])
        self.reactor.threads.pop()()
        for wait in waits[1:]:
            self.successResultOf(wait)
        self.assertEqual(self.next(), stateOf(3))
        self.file.save(stateOf(4))
        late = self.written()
        self.reactor.advance(5)
        self.successResultOf(late)
        failing = self.written()
        self.patch(tempfile, "mkstemp", refuse(errno.ENOSPC))
        self.reactor.threads.pop()()
        self.successResultOf(failing)
        self.successResultOf(self.written())
        self.warning("No space left")
        self.assertEqual(self.reactor.getDelayedCalls(), [])


class FormerPathTests(StateFileCase):
    """
    The state that an older version has saved elsewhere.
    """

    def setUp(self) -> None:
        super().setUp()
        self.former = os.path.join(self.mktemp(), "old.json")
        os.mkdir(os.path.dirname(self.former))
        older = self.fileAt(self.former)
        older.open()
        older.save(stateOf(1))
        self.successResultOf(self.close(older))

    def open(self) -> State:
        """The state that is read where a former path is given."""
        self.file = StateFile(
            self.path, State, self.reactor, self.reactor.spawn, former=self.former
        )
        return self.file.open()

    def test_moved(self) -> None:
        """It is read and moved; the next start needs no former path."""
        self.assertEqual(self.open(), stateOf(1))
        self.assertFalse(os.path.exists(self.former))
        self.assertEqual(self.next(), stateOf(1))

    def test_newer(self) -> None:
        """A file at the present path is used, and the old one is left alone."""
        self.file.open()
        self.file.save(stateOf(2))
        self.successResultOf(self.close())
        self.assertEqual(self.open(), stateOf(2))
        self.assertTrue(os.path.exists(self.former))

    def test_none(self) -> None:
        """Without an old file the state is empty, and nothing is logged."""
        os.unlink(self.former)
        self.assertEqual(self.open(), State())
        self.assertEqual(self.warnings(), [])


class CloseTests(StateFileCase):
    """
    Closing, at the end of the daemon.
    """

    def test_waits(self) -> None:
        """Closing waits until the last state is on the disk."""
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

    def test_timeLimit(self) -> None:
        """Closing ends at its time limit; the file stays locked until the thread has ended."""
        self.file.open()
        self.reactor.hold = True
        self.file.save(stateOf(1))
        closed = self.close()
        self.reactor.advance(5)
        self.successResultOf(closed)
        self.warning("within 5 s")
        self.fileAt(self.path).open()
        self.warning("another daemon")
        self.reactor.runThreads()
        self.assertIn(b'"1"', self.there())

    def test_closed(self) -> None:
        """Closing without a state, and twice, does nothing; nothing is saved afterwards."""
        self.file.open()
        for _ in range(2):
            self.successResultOf(self.close())
        self.assertEqual(self.names(), ["state.json.lock"])
        self.file.save(stateOf(1))
        self.assertEqual(self.next(), State())

    def test_retry(self) -> None:
        """Closing tries again to write a state that could not be written."""
        self.file.open()
        self.patch(tempfile, "mkstemp", refuse(errno.ENOSPC))
        self.file.save(stateOf(1))
        self.patch(tempfile, "mkstemp", MKSTEMP)
        self.assertEqual(self.next(), stateOf(1))


class AtomicTests(StateFileCase):
    """
    A file has the old state or the new one, never a part of one.
    """

    def test_order(self) -> None:
        """The new file is synchronized, then renamed, then its directory is synchronized."""
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

    def test_failure(self) -> None:
        """If a step fails, the old state and no other file is there, and the next state is
        written."""
        self.file.open()
        self.file.save(stateOf(1))
        for where, name in ((tempfile, "mkstemp"), (os, "fsync"), (os, "rename")):
            right = getattr(where, name)
            self.patch(where, name, refuse(errno.EIO))
            self.file.save(stateOf(2))
            self.warning(os.strerror(errno.EIO))
            self.patch(where, name, right)
            self.assertEqual(self.names(), ["state.json", "state.json.lock"])
            self.assertIn(b'"1"', self.there())
            self.file.save(stateOf(1))
            self.assertIn(b'"1"', self.there())
            self.assertEqual(self.warnings(), [])

    def test_leftOver(self) -> None:
        """Temporary files of a killed daemon are removed, and no others."""
        left = ["state.json.abc_1234.new", "state.json.zzzzzzzz.new"]
        others = ["state.json.new", "state.json.mine.new", "other.json.abc_1234.new", "state.json2"]
        os.makedirs(self.directory)
        for name in left + others:
            with open(os.path.join(self.directory, name), "w"):
                pass
        self.file.open()
        self.assertEqual(self.names(), sorted([*others, "state.json.lock"]))

    def test_killed(self) -> None:
        """A process that is killed while it saves leaves a whole state: the last one that it has
        reported as saved, or a later one."""
        with child(SAVING, self.path) as process:
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


class DamageTests(StateFileCase):
    """
    Files that contain no state.
    """

    def assertSetAside(self, because: str) -> str:
        """
        The file is renamed, with a warning, and the state is empty.

        @return: the new path.
        """
        self.assertEqual(self.file.open(), State())
        warning = self.warning(because, self.path)
        found = re.search(r"state\.json\.damaged-[0-9]{8}T[0-9]{6}Z\b", warning)
        assert found is not None, warning
        return os.path.join(self.directory, found[0])

    def test_damaged(self) -> None:
        """A damaged file is set aside, and the next state is saved."""
        for content, because in (
            *((b"", "truncated"), (b"no JSON", "malformed"), (b"\xff\xfe\0\xd8", "utf-8")),
            (b'{"version": 1, "wishes": [', "truncated"),
            (b'{"version": 1, "wishes": ["\xff"]}', "utf-8"),
            *((b"[]", "object"), (b"{}", "version"), (b'{"version": "1"}', "version")),
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
        os.unlink(self.path)
        os.makedirs(self.path)
        self.assertTrue(os.path.isdir(self.assertSetAside("directory")))
        self.file.save(stateOf(1))
        self.assertEqual(self.next(), stateOf(1))

    def test_truncated(self) -> None:
        """A state that is cut off anywhere is damaged."""
        self.file.open()
        self.file.save(State(devices=stateOf(1).devices[:1]))
        whole = self.there().rstrip()
        for end in range(len(whole)):
            self.put(whole[:end])
            self.assertEqual(self.next(), State())
            self.assertEqual(len(self.warnings()), 1)

    def test_unreadable(self) -> None:
        """A file without read permission is set aside."""
        if os.geteuid() == 0:
            raise SkipTest("root may read all")
        self.put(b"{}")
        os.chmod(self.path, 0)
        self.assertSetAside(os.strerror(errno.EACCES))

    def test_notAFile(self) -> None:
        """A directory that is not empty, a device or a FIFO is left alone, and nothing is saved."""
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
            self.warning(because, "not remembered across a restart")
            file.save(stateOf(1))
            self.successResultOf(self.close(file))
        self.assertEqual(self.names(), ["full", "null", "pipe"])

    def test_lockIsNoFile(self) -> None:
        """A FIFO, a device or a directory in place of the lock does not block the start: the state
        is not saved, with a warning."""
        for number, make in enumerate(
            (os.mkfifo, os.mkdir, lambda it: os.mknod(it, stat.S_IFSOCK))
        ):
            path = os.path.join(self.directory, str(number), "state.json")
            os.makedirs(os.path.dirname(path))
            make(f"{path}.lock")
            file = self.fileAt(path)
            self.assertEqual(file.open(), State())
            file.save(stateOf(1))
            self.warning("not remembered across a restart")
            self.successResultOf(self.close(file))
            self.assertFalse(os.path.exists(path))

    def test_notRenamed(self) -> None:
        """If a damaged file cannot be set aside, that is logged, and the state is empty."""
        self.put(b"damaged")
        self.patch(os, "rename", refuse(errno.EROFS))
        self.assertEqual(self.file.open(), State())
        self.warning("read-only")


class TroubleTests(StateFileCase):
    """
    A directory or a system that does not let the state be written.
    """

    def test_advice(self) -> None:
        """The warning contains the error, its effect and advice, and is logged once."""
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
            self.warning(os.strerror(number), "not remembered across a restart", advice)
            self.patch(tempfile, "mkstemp", MKSTEMP)

    def test_distinct(self) -> None:
        """Each error is logged once, and again only after a success."""
        self.file.open()
        logged = []
        for number in (errno.EIO, errno.ENOSPC, errno.EIO, 0, 0, errno.EIO, errno.EIO):
            self.patch(tempfile, "mkstemp", refuse(number) if number else MKSTEMP)
            self.file.save(stateOf(1))
            logged.append([formatEvent(event).partition(" (")[0] for event in self.events])
            self.events.clear()
        bad, good = f"cannot keep {self.path}", f"{self.path} is written again"
        self.assertEqual(logged, [[bad], [bad], [], [good], [], [bad], []])

    def test_mendedLater(self) -> None:
        """A directory that appears after the start is used, and a file in it that was not read is
        set aside."""
        with open(self.directory, "w"):
            pass  # where the directory should be
        self.assertEqual(self.file.open(), State())
        self.warning(os.strerror(errno.ENOTDIR))
        self.file.save(stateOf(1))
        self.assertEqual(self.warnings(), [])
        os.unlink(self.directory)
        self.put(b"precious")
        self.file.save(stateOf(2))
        self.warning("could not be read when the daemon started")
        aside, *others = self.names()[1:]
        self.assertEqual(others, ["state.json.lock"])
        self.assertEqual(self.there(os.path.join(self.directory, aside)), b"precious")
        self.assertEqual(self.next(), stateOf(2))

    def test_readOnly(self) -> None:
        """A state that can be read but not written is read."""
        self.file.open()
        self.file.save(stateOf(1))
        self.patch(tempfile, "mkstemp", refuse(errno.EROFS))
        self.assertEqual(self.next(), stateOf(1))
        self.file.save(stateOf(2))
        self.warning("read-only")
        self.assertEqual(self.next(), stateOf(1))

    def test_noThread(self) -> None:
        """If no thread can be started, the next state is tried again."""

        def none(function: object) -> None:
            raise RuntimeError("can't start new thread")

        self.file.open()
        self.file._spawn = none
        for _ in range(3):
            self.file.save(stateOf(1))
        self.warning("can't start new thread")
        self.file._spawn = self.reactor.spawn
        self.file.save(stateOf(2))
        self.assertEqual(self.next(), stateOf(2))


class TwoDaemonTests(StateFileCase):
    """
    Two daemons with the same file.
    """

    def test_locked(self) -> None:
        """The second daemon neither reads nor writes the file of the first, and logs that once,
        also if it could not find that out at its start."""
        with open(self.directory, "w"):
            pass
        late = self.fileAt(self.path)
        late.open()
        os.unlink(self.directory)
        self.file.open()
        self.file.save(stateOf(1))
        self.warnings()
        second = self.fileAt(self.path)
        self.assertEqual(second.open(), State())
        self.warning("another daemon has", self.path, "not remembered across a restart")
        for _ in range(2):
            late.save(stateOf(2))
        self.warning("another daemon has")
        second.save(stateOf(2))
        self.successResultOf(self.close(second))
        self.assertEqual(self.warnings(), [])
        self.assertEqual(self.next(), stateOf(1))

    def test_process(self) -> None:
        """The lock of another process ends with that process."""
        with child(HOLDING, self.path) as process:
            assert process.stdout is not None
            self.assertEqual(process.stdout.readline(), "open\n")
            self.assertEqual(self.file.open(), State())
            self.warning("another daemon has")
            process.kill()
        self.assertEqual(self.next(), State())
        self.file.save(stateOf(1))
        self.assertEqual(self.warnings(), [])
        self.assertEqual(self.next(), stateOf(1))


class RealThreadTests(TestCase):
    """
    With real threads.
    """

    async def test_many(self) -> None:
        """Of a thousand states that are saved at once the last is in the file."""
        path = self.mktemp()
        file = StateFile(path, State, reactor)
        file.open()
        for number in range(1000):
            file.save(stateOf(number))
        await file.close(60)
        again = StateFile(path, State, reactor)
        self.assertEqual(again.open(), stateOf(999))
        await again.close(60)
