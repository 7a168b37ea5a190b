"""
The kernel's uevents: what it says, unasked, about devices that come, go and change hands.

No udev is needed. A message is a line C{action@devpath} and then C{KEY=value}s, each
ended by a NUL (C{lib/kobject_uevent.c}).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from usbip_server.kernel.system import UeventSocket
from usbip_server.model.device import isBusId

LARGEST = 8192
"""Bytes; the kernel makes none larger than C{UEVENT_BUFFER_SIZE}, 2048, and a header."""

AT_ONCE = 256
"""Messages to read before others get a turn."""


@implementer(IReadDescriptor)
class Uevents:
    """
    Tells which devices something has happened to.

    @ivar heard: has the kernel said anything at all?
    """

    _log = Logger()

    def __init__(
        self,
        socket: UeventSocket,
        reactor: Any,
        onDevice: Callable[[str], None],
        onLost: Callable[[], None],
    ) -> None:
        """
        @param onDevice: called with the bus id of a device that something happened to.
        @param onLost: called when messages were lost: anything may have happened.
        """
        self.heard = False
        self._socket = socket
        self._reactor = reactor
        self._onDevice = onDevice
        self._onLost = onLost

    def start(self) -> None:
        """Begin to listen."""
        self._reactor.addReader(self)

    def stop(self) -> None:
        """Listen no more."""
        self._reactor.removeReader(self)
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def logPrefix(self) -> str:
        return "uevents"

    def doRead(self) -> None:
        for _ in range(AT_ONCE):
            try:
                message, (sender, *_) = self._socket.recvfrom(LARGEST)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    self._log.warn("reading uevents: {error}", error=error)
                self._onLost()
                return
            if sender != 0:
                continue  # another program's: anybody may send
            self.heard = True
            busId = deviceOf(message)
            if busId is not None:
                self._onDevice(busId)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops, or the socket broke."""


def deviceOf(message: bytes) -> str | None:
    """
    The bus id of the USB device that a message is about, or whose interface it is about.
    """
    fields = dict(
        field.split("=", 1)
        for field in message.decode("utf-8", "replace").split("\0")[1:]
        if "=" in field
    )
    if fields.get("SUBSYSTEM") != "usb":
        return None
    busId = fields.get("DEVPATH", "").rpartition("/")[2].partition(":")[0]
    return busId if isBusId(busId) else None
