"""The folder that keeps kernels from one run to the next."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


class Cache:
    """A folder for kernels, console logs, and what one run needs while it lasts.

    Any number of harnesses may use it at once, and each may be killed at any time.

    @ivar folder: where it is. Exists."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def default(cls) -> Cache:
        """The folder in C{USBIPSHARE_KERNEL_CACHE}, else one in the user's cache: a fresh checkout
        finds the kernels that an earlier one has built."""
        chosen = os.environ.get("USBIPSHARE_KERNEL_CACHE")
        if chosen:
            return cls(Path(chosen).resolve())
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return cls(Path(caches).resolve() / "usbipshare" / "kernels")

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold the lock of a name, across processes, until the C{with} ends."""
        with open(self.folder / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """A temporary folder in which something is made that is then moved to its place in the
        cache. Holds the lock of the name; folders that a killed harness left behind are removed."""
        with self.locked(name):
            for leftover in self.folder.glob(f"make-{name}-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f"make-{name}-", dir=self.folder) as made:
                yield Path(made)

    @contextmanager
    def runFolder(self) -> Iterator[Path]:
        """A new folder for one boot, gone afterwards.

        Those that a killed harness left behind are removed first: a folder is in use as
        long as a process holds the lock on its file C{in-use}."""
        with self.locked("runs"):
            for stale in self.folder.glob("run-*"):
                _removeUnlessUsed(stale)
            folder = Path(tempfile.mkdtemp(prefix="run-", dir=self.folder))
            mark = os.open(folder / "in-use", os.O_WRONLY | os.O_CREAT)
            fcntl.flock(mark, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(mark)


def _removeUnlessUsed(folder: Path) -> None:
    # It is in use, or its user is just removing it.
    with suppress(BlockingIOError, FileNotFoundError), open(folder / "in-use", "w") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
