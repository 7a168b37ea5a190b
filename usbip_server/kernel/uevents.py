"""
Receives the kernel's uevents from a netlink socket: messages about devices that are plugged in,
unplugged, bound and unbound. No udev is needed.

A message is C{action@devpath}, followed by C{KEY=value} fields; each part ends with a NUL
(C{lib/kobject_uevent.c}).
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
"""Bytes in a message; the kernel's have at most C{UEVENT_BUFFER_SIZE}, 2048, and a header."""

AT_ONCE = 256
"""Messages read before control returns to the reactor."""


@implementer(IReadDescriptor)
class Uevents:
    """
    Calls back with the bus id of each USB device that the kernel sends a uevent about.

    @ivar hasReceived: whether any uevent has been received.
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
        @param onDevice: called with the bus id of the device in a uevent.
        @param onLost: called when messages were lost: the state of any device may have changed.
        """
        self.hasReceived = False
        self._socket = socket
        self._reactor = reactor
        self._onDevice = onDevice
        self._onLost = onLost

    def start(self) -> None:
        """Begin to receive."""
        self._reactor.addReader(self)

    def stop(self) -> None:
        """Receive no more, and close the socket."""
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
                continue  # from a process, not from the kernel: any process may send
            self.hasReceived = True
            busId = deviceOf(message)
            if busId is not None:
                self._onDevice(busId)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor has stopped, or the socket has failed. Nothing has to be done."""


def deviceOf(message: bytes) -> str | None:
    """
    The bus id of the USB device that a uevent is about, or whose interface it is about; C{None}
    for a uevent about anything else.
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
