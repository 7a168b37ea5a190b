"""
The records of the origin of attached devices that C{usbip attach} writes, as the kernel has no such
information: C{/var/run/vhci_hcd/port3} contains C{raspi 3240 1-1.4}
(C{tools/usb/usbip/libsrc/vhci_driver.c}, C{usbip_attach.c}). They are not removed when a connection
to a server ends, so they may be out of date.

In a folder beside it there are notes of the ports that were given up before the device there
appeared. The kernel may be busy with such a device for ten seconds more, which no program can see,
and a device that is attached at the port meanwhile can dead-lock it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

import msgspec

FOLDER = "/var/run/vhci_hcd"

LONGEST = 4096
"""Bytes of a record; the stock tool reads 255 of them."""

GIVEN_UP_SECONDS = 12.0
"""How long a port is not used after it was given up."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """
    The origin of an attached device.

    @ivar host: the server, as it was given.
    @ivar service: the port, a number or a name.
    @ivar busId: the bus id at the server.
    """

    host: str
    service: str
    busId: str


class Records:
    """
    The records of all ports.
    """

    def __init__(self, folder: str = FOLDER, now: Callable[[], float] = time.monotonic) -> None:
        """
        @param now: returns the time of notes, in seconds; all processes have the same one.
        """
        self._folder = folder
        self._now = now

    def of(self, port: int) -> Record | None:
        """
        The record of a port; C{None} if there is no valid one.
        """
        try:
            with open(self._path(port), "rb") as file:
                words = file.read(LONGEST).decode("utf-8", "replace").split()
        except OSError:
            return None
        if len(words) != 3:
            return None
        return Record(host=words[0], service=words[1], busId=words[2])

    def write(self, port: int, record: Record) -> None:
        """
        Write a record atomically.

        @raise OSError: it cannot be written.
        """
        os.makedirs(self._folder, 0o700, exist_ok=True)
        temporary = f"{self._path(port)}.new"
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(f"{record.host} {record.service} {record.busId}\n")
        os.replace(temporary, self._path(port))

    def remove(self, port: int) -> None:
        """
        Remove a record, and the folder if it is empty then. Errors are ignored.
        """
        with contextlib.suppress(OSError):
            os.unlink(self._path(port))
        with contextlib.suppress(OSError):
            os.rmdir(self._folder)

    def giveUp(self, port: int) -> None:
        """
        Note that a port was given up before the device there appeared. Errors are ignored.
        """
        with contextlib.suppress(OSError):
            os.makedirs(self._givenUp, 0o700, exist_ok=True)
            path = f"{self._givenUp}/{port}"
            with open(path, "w"):
                os.utime(path, (self._now(), self._now()))

    def isGivenUp(self, port: int) -> bool:
        """
        Whether a port was given up so recently that it must not be used. A note in the future is
        ignored: it was written before the machine was started again.
        """
        path = f"{self._givenUp}/{port}"
        try:
            age = self._now() - os.stat(path).st_mtime
        except OSError:
            return False
        if 0 <= age < GIVEN_UP_SECONDS:
            return True
        with contextlib.suppress(OSError):
            os.unlink(path)
            os.rmdir(self._givenUp)
        return False

    @property
    def _givenUp(self) -> str:
        return f"{self._folder}-given-up"

    def _path(self, port: int) -> str:
        return f"{self._folder}/port{port}"
