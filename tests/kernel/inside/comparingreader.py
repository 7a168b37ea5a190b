"""A thread that reads the same bytes again and again, while a test does something else."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.kernel.inside.command import check, waitUntil

_PAUSE = 0.2
"""Seconds between two reads: the test needs the processor in between."""


class ComparingReader:
    """Calls a function and compares what it returns, in a thread, until the C{with} ends."""

    def __init__(self, read: Callable[[], bytes], expected: bytes, pause: float = _PAUSE) -> None:
        """@param read: the function. It may block, and raise C{OSError} or C{AssertionError}.
        @param pause: seconds between two calls."""
        self._read = read
        self._expected = expected
        self._pause = pause
        self._count = 0
        self._error: Exception | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ComparingReader:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended = True
        self._thread.join()

    def awaitRead(self) -> None:
        """Wait until a read that begins after this call has ended.

        @raise AssertionError: a read failed, or returned other bytes."""
        wanted = self._count + 2  # one is in progress
        waitUntil(lambda: self._count >= wanted or self._error, "another read has ended")
        if self._error is not None:
            raise AssertionError(f"reading failed: {self._error!r}")

    def _run(self) -> None:
        try:
            while not self._ended:
                if self._read() != self._expected:
                    raise AssertionError("other bytes were read")
                self._count += 1
                time.sleep(self._pause)
        except (OSError, AssertionError) as error:
            self._error = error


def diskReader(node: str, pause: float = _PAUSE) -> ComparingReader:
    """Reads a whole disk with C{dd}, past the page cache, and compares it with the image that each
    disk of the guest has at first.

    @param node: C{/dev/sda}
    @param pause: seconds between two reads."""

    def read() -> bytes:
        with tempfile.NamedTemporaryFile() as copy:
            check("dd", f"if={node}", f"of={copy.name}", "bs=64k", "iflag=direct", "status=none")
            return Path(copy.name).read_bytes()

    return ComparingReader(read, diskBytes(), pause)


def diskBytes() -> bytes:
    """What each disk has on it at first, read from the host."""
    return Path(os.environ["USBIPSHARE_GUEST_DISK"]).read_bytes()


def checkDiskBytes(node: str) -> None:
    """Assert that a disk has the bytes that each disk of the guest has at first."""
    check("cmp", node, os.environ["USBIPSHARE_GUEST_DISK"])
