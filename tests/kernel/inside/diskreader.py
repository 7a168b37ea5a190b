"""
Somebody who reads a disk all the time.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType

from tests.kernel.inside.command import check
from tests.kernel.inside.waiting import waitUntil

# Seconds between two passes: what a test waits for meanwhile needs the processor, too.
_PAUSE = 0.2


class DiskReader:
    """
    Reads all of a disk with C{dd}, past the page cache, and compares it, again and again for
    as long as a C{with} lasts.
    """

    def __init__(self, node: str, wanted: bytes, folder: Path) -> None:
        """
        @param node: C{/dev/sda}
        @param wanted: what is on it.
        @param folder: where the copies go.
        """
        self._node = node
        self._wanted = wanted
        self._copy = folder / "copy"
        self._passes = 0
        self._trouble: str | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._readOn, daemon=True)

    def __enter__(self) -> DiskReader:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended = True
        self._thread.join()

    def readsOn(self) -> None:
        """
        Wait until it has read all of the disk once more, from now on.

        @raise AssertionError: it could not be read, or something else was on it.
        """
        wanted = self._passes + 2  # one is under way
        waitUntil(
            lambda: self._passes >= wanted or self._trouble is not None, f"{self._node} is read"
        )
        if self._trouble is not None:
            raise AssertionError(self._trouble)

    def _readOn(self) -> None:
        try:
            while not self._ended:
                options = (f"if={self._node}", f"of={self._copy}", "bs=64k", "iflag=direct")
                check("dd", *options, "status=none")
                if self._copy.read_bytes() != self._wanted:
                    raise AssertionError(f"{self._node} has something else on it")
                self._passes += 1
                time.sleep(_PAUSE)
        except AssertionError as error:
            self._trouble = str(error)
