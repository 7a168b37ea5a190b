"""
The state file: a JSON file that outlasts restarts, written atomically and locked.

A new state is written to another file, which replaces the old one after fsync(2). So the file holds
the old state or the new one, even after a power failure.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Generic, TypeVar

import msgspec
from twisted.internet.defer import Deferred, TimeoutError
from twisted.logger import Logger
from twisted.python.failure import Failure

from usbip_server.runtime.latch import Latch
from usbip_server.runtime.threads import Spawn, startThread

S = TypeVar("S", bound=msgspec.Struct)

FORGETFUL = "what is attached is not remembered across a restart"

_ADVICE = {
    errno.EACCES: "Let the daemon's user write in {directory}, or set state.file to another place",
    errno.EPERM: "Let the daemon's user write in {directory}, or set state.file to another place",
    errno.EROFS: (
        "{directory} is read-only: set state.file to another place; in a systemd unit with "
        "ProtectSystem= set StateDirectory= or ReadWritePaths="
    ),
    errno.ENOSPC: "Make room on the file system of {directory}",
    errno.EDQUOT: "Make room on the file system of {directory}",
}


class _Head(msgspec.Struct):
    """
    The part of a state file that is common to all versions.
    """

    version: int


class _NotOurs(Exception):
    """
    The path is that of something that must not be replaced, or is locked by another daemon.
    """


class StateFile(Generic[S]):
    """
    A state in a file; where the file cannot be used, in memory only, with a warning.

    Writes are done in a thread: a disk may be slow, and a file server may not answer.
    """

    _log = Logger()

    def __init__(
        self,
        path: str,
        kind: type[S],
        reactor: Any,
        spawn: Spawn = startThread,
        former: str | None = None,
    ) -> None:
        """
        @param path: the path. The directory is created if necessary.
        @param former: the path in an older version: a file there is moved to C{path}, unless
            there is one.
        @param kind: the type of the state: has a C{version}, and defaults for all fields.
        @param reactor: provides C{IReactorTime} and C{IReactorFromThreads}.
        """
        self._path = path
        self._kind = kind
        self._reactor = reactor
        self._spawn = spawn
        self._former = former
        self._lock: int | None = None  # a descriptor
        self._isOff = False  # nothing is written any more
        self._unsaved: S | None = None
        self._isWriting = False
        self._complaints: set[str] = set()
        self._idle: list[Deferred[None]] = []
        self._saved = self._writing = 0  # counts calls of C{save}
        self._awaited: list[tuple[int, Latch]] = []

    def open(self) -> S:
        """
        Lock the file and read it. Blocks.

        @return: the state that was saved last; an empty state if there is none, or if it cannot be
            read, with a warning.
        """
        try:
            self._path = os.path.realpath(
                self._path
            )  # a symbolic link is kept, its target is replaced
            self._claim()
            self._moveFormer()
        except _NotOurs as error:
            self._isOff = True
            self._log.warn("{error}: {so}", error=error, so=FORGETFUL)
            return self._kind()
        except OSError as error:
            self._complain(error)
            return self._kind()
        try:
            return _read(self._path, self._kind)
        except FileNotFoundError:
            return self._kind()
        except (OSError, ValueError, msgspec.MsgspecError, RecursionError) as error:
            reason = error
        try:
            self._setAside(reason)
        except OSError as error:
            self._complain(error)
        return self._kind()

    def save(self, state: S) -> None:
        """
        Write a state in a thread; returns at once. A state that could not be written is written
        with the next call. If several are saved during a write, only the last is written.
        """
        if self._isOff:
            return
        self._saved += 1
        self._unsaved = state
        if not self._isWriting:
            self._write()

    async def written(self, seconds: float) -> None:
        """
        Wait until the state that was saved last is on the disk, or could not be written, which is
        logged.

        @param seconds: how long at most.
        """
        if self._isWriting:
            latch = Latch(self._reactor)
            self._awaited.append((self._saved, latch))
            await latch.within(seconds)

    async def close(self, seconds: float) -> None:
        """
        Finish writing, and unlock the file.

        @param seconds: how long to wait for the write.
        """
        if self._unsaved is not None and not self._isWriting and not self._isOff:
            self._write()
        self._isOff = True
        if self._isWriting:
            done: Deferred[None] = Deferred()
            self._idle.append(done)
            done.addTimeout(seconds, self._reactor)
            try:
                await done
            except TimeoutError:
                self._log.warn(
                    "{path} could not be written within {seconds:g} s: what was attached and "
                    "detached last may not be remembered",
                    path=self._path,
                    seconds=seconds,
                )
                return  # the write goes on: the lock is kept until the process ends
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _write(self) -> None:
        assert self._unsaved is not None
        self._isWriting = True
        self._writing = self._saved
        try:
            self._spawn(partial(self._inThread, self._unsaved))
        except RuntimeError as error:  # no more threads
            self._wrote(self._unsaved, Failure(error))

    def _inThread(self, state: S) -> None:
        failure = None
        try:
            if self._lock is None:
                self._claim()
                if os.path.lexists(self._path):
                    self._setAside("it could not be read when the daemon started")
            _replace(self._path, _encode(state))
        except BaseException:
            failure = Failure()
        self._reactor.callFromThread(self._wrote, state, failure)

    def _wrote(self, state: S, failure: Failure | None) -> None:
        self._isWriting = False
        if failure is None:
            if self._complaints:
                self._complaints.clear()
                self._log.info("{path} is written again", path=self._path)
        elif failure.check(_NotOurs):
            self._isOff = True
            self._unsaved = None
            self._log.warn("{error}: {so}", error=failure.value, so=FORGETFUL)
        elif isinstance(failure.value, OSError | RuntimeError):
            self._complain(failure.value)
        else:
            self._log.failure("cannot write the state", failure)
        written = [latch for number, latch in self._awaited if number <= self._writing]
        self._awaited = [it for it in self._awaited if it[0] > self._writing]
        if self._unsaved is not state and self._unsaved is not None:
            self._write()
        else:
            if failure is None:
                self._unsaved = None
            idle, self._idle = self._idle, []
            for done in idle:
                done.callback(None)
        for latch in written:
            latch.fire()

    def _claim(self) -> None:
        """
        Create the directory, lock the file, and remove temporary files of daemons that were killed.

        @raise _NotOurs: the file must not be used.
        @raise OSError: the file cannot be used.
        """
        directory, name = os.path.split(self._path)
        try:
            kind = os.stat(self._path).st_mode
            if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
                raise _NotOurs(f"{self._path} is no regular file")
            if stat.S_ISDIR(kind) and os.listdir(self._path):
                raise _NotOurs(f"{self._path} is a directory with something in it")
        except FileNotFoundError:
            os.makedirs(directory, mode=0o700, exist_ok=True)
        # Opening a FIFO without O_NONBLOCK waits for a writer.
        flags = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        lock = os.open(f"{self._path}.lock", flags, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(lock).st_mode):
                raise _NotOurs(f"{self._path}.lock is no regular file")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise _NotOurs(f"another daemon has {self._path}") from None
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock
        with contextlib.suppress(OSError):
            for other in os.listdir(directory):
                if re.fullmatch(rf"{re.escape(name)}\.[a-z0-9_]{{8}}\.new", other):
                    os.unlink(os.path.join(directory, other))

    def _moveFormer(self) -> None:
        """
        Move the file of an older version here. Does nothing if that is not permitted: the packaged
        unit has moved it then.

        @raise OSError: it cannot be moved.
        """
        if self._former is None or os.path.lexists(self._path):
            return
        if not os.path.isfile(self._former):
            return
        with contextlib.suppress(FileNotFoundError, PermissionError):
            shutil.move(self._former, self._path)
            self._log.info("{former} is now {path}", former=self._former, path=self._path)

    def _setAside(self, reason: object) -> None:
        """
        Rename a file that cannot be read, so that it is not overwritten.

        @raise OSError: it cannot be renamed.
        """
        aside = f"{self._path}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        os.rename(self._path, aside)
        self._log.warn(
            "{path} cannot be used ({reason}) and is now {aside}: what was attached before is "
            "forgotten",
            path=self._path,
            reason=reason,
            aside=aside,
        )

    def _complain(self, error: Exception) -> None:
        """
        Log a warning, once for each reason until the file has been written again.
        """
        number = getattr(error, "errno", None) or 0
        because = os.strerror(number) if number else str(error)
        if because in self._complaints:
            return
        self._complaints.add(because)
        advice = _ADVICE.get(number, "Look after {directory}, or set state.file to another place")
        self._log.warn(
            "cannot keep {path} ({because}): {so}. {advice}",
            path=self._path,
            because=because,
            so=FORGETFUL,
            advice=advice.format(directory=os.path.dirname(self._path)),
        )


def _read(path: str, kind: type[S]) -> S:
    """
    @raise OSError: the file does not exist, or cannot be read.
    @raise ValueError: the content is damaged, or of another version.
    @raise msgspec.MsgspecError: the content is damaged.
    """
    with open(path, encoding="utf-8", opener=_openAtOnce) as file:
        text = file.read()
    version = msgspec.json.decode(text, type=_Head).version
    known = msgspec.convert(kind(), _Head, from_attributes=True).version
    if version != known:
        raise ValueError(f"its version is {version}; this daemon knows {known}")
    return msgspec.json.decode(text, type=kind)


def _openAtOnce(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # which a FIFO would delay


def _encode(state: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n"


def _replace(path: str, data: bytes) -> None:
    """
    Replace the content of a file atomically.

    @raise OSError: it cannot be replaced, and is unchanged.
    """
    directory, name = os.path.split(path)
    descriptor, beside = tempfile.mkstemp(".new", f"{name}.", directory)  # its mode is 0600
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
    # The rename is not on the disk until the directory is.
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def statePath(
    file: str | None,
    environment: Mapping[str, str],
    isRoot: bool,
    name: str = "state.json",
    program: str = "usbipshare",
) -> str | None:
    """
    The path of the state file.

    @param file: as configured. C{"auto"} is a file in systemd's C{StateDirectory=}
        (systemd.exec(5)), else in C{/var/lib} for root (file-hierarchy(7)), else in the user's
        state directory (XDG Base Directory).
    @param name: the name of the file in that directory.
    @param program: the name of the directory in C{/var/lib}.
    """
    if file != "auto":
        return file
    folder = environment.get("STATE_DIRECTORY", "").partition(":")[0]
    if not folder and isRoot:
        folder = f"/var/lib/{program}"
    if not folder:
        home = environment.get("HOME") or "/"
        folder = f"{environment.get('XDG_STATE_HOME') or f'{home}/.local/state'}/usbipshare"
    return f"{folder}/{name}"
