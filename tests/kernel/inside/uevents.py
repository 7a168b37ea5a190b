"""Uevents of bindings, with their times."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import NamedTuple

_NETLINK_KOBJECT_UEVENT, _KERNEL_GROUP = 15, 1


class Binding(NamedTuple):
    """A device was bound to a driver: when, in seconds since the epoch, and to which."""

    time: float
    busId: str
    driver: str


class Uevents:
    """Receives uevents until the C{with} ends."""

    def __init__(self) -> None:
        self._bindings: list[Binding] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._ended = False

    def __enter__(self) -> Uevents:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_KOBJECT_UEVENT)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind((0, _KERNEL_GROUP))
        self._socket.settimeout(0.2)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended = True
        self._thread.join()
        self._socket.close()

    def bindings(self, busId: str) -> list[Binding]:
        """The bindings of a device so far."""
        return [binding for binding in tuple(self._bindings) if binding.busId == busId]

    def _listen(self) -> None:
        while not self._ended:
            with contextlib.suppress(TimeoutError):
                message = self._socket.recv(1 << 16).decode("utf-8", "replace")
                header, *rest = message.rstrip("\0").split("\0")
                fields = dict(line.split("=", 1) for line in rest if "=" in line)
                if fields.get("ACTION") == "bind" and fields.get("DEVTYPE") == "usb_device":
                    busId = header.rpartition("/")[2]
                    self._bindings.append(Binding(time.time(), busId, fields["DRIVER"]))
