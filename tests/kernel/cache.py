"""
The folder that keeps kernels from one run to the next.
"""

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
    """
    A folder for unpacked kernels, console logs, and what one run needs while it lasts.

    Any number of harnesses may use it at once, and each may be killed at any time.

    @ivar folder: where it is. Exists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".gitignore").write_text("*\n")

    @classmethod
    def default(cls) -> Cache:
        """
        The folder in C{USBIPSHARE_KERNEL_CACHE}, else the project's own.
        """
        chosen = os.environ.get("USBIPSHARE_KERNEL_CACHE")
        return cls(Path(chosen).resolve() if chosen else PROJECT / ".cache" / "kernels")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """
        While this lasts nobody else is in here.
        """
        with open(self.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def runFolder(self) -> Iterator[Path]:
        """
        A new folder for one boot, gone afterwards.

        Those that a killed harness left behind are removed first: a folder is in use as
        long as somebody holds the lock on its file C{in-use}.
        """
        with self.locked():
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
