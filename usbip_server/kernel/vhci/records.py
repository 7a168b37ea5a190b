"""
The notes that C{usbip attach} leaves of where a device came from, which the kernel does not
know: C{/var/run/vhci_hcd/port3} with C{raspi 3240 1-1.4} in it
(C{tools/usb/usbip/libsrc/vhci_driver.c}, C{usbip_attach.c}). Nobody takes them away when a
server goes: they are hints.
"""

from __future__ import annotations

import contextlib
import os

import msgspec

FOLDER = "/var/run/vhci_hcd"

LONGEST = 4096
"""Bytes; the stock tool reads 255 of them."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """
    Where a device came from.

    @ivar host: the server, as it was named.
    @ivar service: its port, a number or a name.
    @ivar busId: the device's, there.
    """

    host: str
    service: str
    busId: str


class Records:
    """
    All of them.
    """

    def __init__(self, folder: str = FOLDER) -> None:
        self._folder = folder

    def of(self, port: int) -> Record | None:
        """
        The note about a port, if there is one that makes sense.
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
        Leave one. It is whole or it is not there.

        @raise OSError: that cannot be.
        """
        os.makedirs(self._folder, 0o700, exist_ok=True)
        temporary = f"{self._path(port)}.new"
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(f"{record.host} {record.service} {record.busId}\n")
        os.replace(temporary, self._path(port))

    def remove(self, port: int) -> None:
        """
        Take one away, and the folder with the last; what cannot be, stays.
        """
        with contextlib.suppress(OSError):
            os.unlink(self._path(port))
        with contextlib.suppress(OSError):
            os.rmdir(self._folder)

    def _path(self, port: int) -> str:
        return f"{self._folder}/port{port}"
