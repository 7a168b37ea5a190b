"""Debian's C{usbipd} and C{usbip}."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.kernel.inside.command import check, stop, waitUntil
from tests.kernel.inside.usb import waitBlockDevice, waitGone, waitImport, waitNothingImported

HOST = "127.0.0.1"

STOCK_PORT = 3240
"""The TCP port of C{usbipd} and C{usbip}, unless they are given another one."""

_LISTEN = "0A"
"""C{TCP_LISTEN} in C{/proc/net/tcp} (C{include/net/tcp_states.h})."""


@contextlib.contextmanager
def stockUsbipd(port: int = STOCK_PORT) -> Iterator[None]:
    """Run Debian's usbipd, in the foreground, until the C{with} ends. Sessions that it has handed
    to the kernel go on after that."""
    child = subprocess.Popen(
        ["usbipd", "--tcp-port", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def isUp() -> bool:
        if child.poll() is not None:
            raise AssertionError(f"usbipd ended with status {child.returncode}")
        return isListening(port)

    try:
        waitUntil(isUp, f"usbipd listens on {port}")
        yield
    finally:
        stop(child)


def isListening(port: int) -> bool:
    """Does a process listen on a TCP port? Read from C{/proc/net}, without a connection."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == _LISTEN and int(local.rpartition(":")[2], 16) == port:
                return True
    return False


def stockAttach(busId: str, host: str = HOST, port: int = STOCK_PORT) -> tuple[int, str]:
    """Import a device with Debian's C{usbip}, while nothing else is imported.

    @return: the vhci port, and the bus id of the imported device."""
    waitNothingImported()
    check("usbip", "--tcp-port", str(port), "attach", "-r", host, "-b", busId)
    return waitImport()


def attachDisk(busId: str, host: str = HOST, port: int = STOCK_PORT) -> tuple[int, str, str]:
    """Import a disk with Debian's C{usbip}, while nothing else is imported, and wait until it can
    be read.

    @return: the vhci port, and the bus id and the node of the imported disk."""
    vhciPort, imported = stockAttach(busId, host, port)
    return vhciPort, imported, waitBlockDevice(imported)


def stockDetach(port: int, busId: str) -> None:
    """Detach an imported device with Debian's C{usbip}, and wait until the device is gone.

    @param port: the vhci port.
    @param busId: of the imported device."""
    check("usbip", "detach", "-p", str(port))
    waitGone(busId)
