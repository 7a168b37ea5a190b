"""
Debian's usbipd.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import TracebackType

from tests.kernel.inside.command import stop
from tests.kernel.inside.waiting import waitUntil

_LISTEN = "0A"


class StockUsbipd:
    """
    A stock usbipd for as long as a C{with} lasts, on loopback like on any other address.

    It runs in the foreground. Sessions that it has handed to the kernel outlive it.
    """

    def __init__(self, port: int = 3240) -> None:
        self._port = port

    def __enter__(self) -> StockUsbipd:
        self._child = subprocess.Popen(
            ["usbipd", "--tcp-port", str(self._port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        waitUntil(self._isUp, f"usbipd listens on {self._port}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        stop(self._child)

    def _isUp(self) -> bool:
        if self._child.poll() is not None:
            raise AssertionError(f"usbipd ended with status {self._child.returncode}")
        return isListening(self._port)


def isListening(port: int) -> bool:
    """
    Does anybody listen on a TCP port? Asks the kernel, so that the listener does not notice.
    """
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == _LISTEN and int(local.rpartition(":")[2], 16) == port:
                return True
    return False
