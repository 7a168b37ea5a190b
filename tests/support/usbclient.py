"""
Connections for clients that speak USB/IP themselves, with the package C{usbip}.
"""

from __future__ import annotations

import socket

from usbip.transport import USBIP  # type: ignore[import-untyped]


class UsbTransport(USBIP):  # type: ignore[misc]
    """
    Connections to a server on this machine.

    The package sends a request's header and its data one after the other. Without C{TCP_NODELAY}
    the kernel keeps the data back until the server acknowledges the header, up to 40 ms later.
    """

    def __init__(self, port: int) -> None:
        super().__init__("127.0.0.1", port)

    def connect(self) -> socket.socket:
        """Connect."""
        connection: socket.socket = super().connect()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection
