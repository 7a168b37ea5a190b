"""
C{python -m tests.client.service.servicechild --config FILE}: the client service with a kernel in
memory. Device nodes are in C{dev} beside its socket.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred
from twisted.logger import globalLogBeginner, jsonFileLogObserver

from usbip_server.client.service.config import load
from usbip_server.client.service.core import Kernel
from usbip_server.client.service.tap import assemble
from usbip_server.testing import FakeVhci
from usbip_server.testing.vhci import Files

MODEM: Files = {
    "*:1.0/bInterfaceClass": b"02\n",
    "*:1.0/tty/ttyACM0/dev": b"166:0\n",
    "*:1.0/tty/ttyACM0/uevent": b"MAJOR=166\nMINOR=0\nDEVNAME=ttyACM0\n",
}
"""The attributes of each attached device: a serial port."""


class LockedVhci(FakeVhci):
    """
    Can be used by several threads.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()

    def read(self, path: str) -> bytes:
        with self._lock:
            return super().read(path)

    def write(self, path: str, data: bytes) -> None:
        with self._lock:
            super().write(path, data)

    def directories(self, path: str) -> list[str]:
        with self._lock:
            return super().directories(path)

    def list(self, path: str) -> list[str]:
        with self._lock:
            return super().list(path)


def main(path: str) -> None:
    """
    Run the service until SIGTERM.
    """
    reactor: Any = installed
    globalLogBeginner.beginLoggingTo([jsonFileLogObserver(sys.stdout)])
    folder = os.path.dirname(load(path).config().socket.path or "/nowhere/")
    vhci = LockedVhci()
    vhci.becomes = MODEM
    kernel = Kernel(vhci, f"{folder}/dev", f"{folder}/records")
    service = assemble(path, reactor, kernel)

    def stop() -> Deferred[None]:
        return service.stopService()

    service.startService()
    reactor.addSystemEventTrigger("before", "shutdown", stop)
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[2])
