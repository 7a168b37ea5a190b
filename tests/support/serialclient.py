"""
serial-usbipclient 1.1.2, a client that nobody here wrote: it drives serial ports over USB/IP
itself, without a kernel.
"""

from __future__ import annotations

from typing import Any

SECONDS = 60.0
"""For an answer."""

try:
    from serial_usbipclient.usbip_client import (  # type: ignore[import-not-found, unused-ignore]
        HardwareID,
        USBAttachError,
        USBIPClient,
        USBIPValueError,
    )
except ImportError:  # it needs Python 3.11
    installed = False
else:
    installed = True

    class _PatientClient(USBIPClient):  # type: ignore[misc, unused-ignore]
        """
        Waits longer than a quarter of a second: the servers of a busy machine need more.
        """

        @staticmethod
        def readall(size: int, usb: Any, timeout: float = SECONDS) -> bytes:
            data: bytes = USBIPClient.readall(size, usb, timeout)
            return data


__all__ = ["SerialClient", "USBAttachError", "USBIPValueError", "installed"]


class SerialClient:
    """
    The one serial port with its vendor and product id, from a server on this machine.
    """

    def __init__(self, port: int, vendorId: int, productId: int) -> None:
        """
        @param port: the server's.
        """
        self._client = _PatientClient(("127.0.0.1", port))
        self._which = HardwareID(vendorId, productId)

    def busIds(self) -> list[str]:
        """What the server lists."""
        published = self._client.list_published()
        self._client.disconnect_server()
        return [path.busid.rstrip(b"\0").decode() for path in published.paths]

    def attach(self) -> None:
        """Import it, and make it ready for use."""
        self._client.attach([self._which])
        [self._port] = self._client.get_connection(self._which)

    def write(self, line: bytes) -> int:
        """Send something; how much of it the port has taken."""
        return self._client.send(self._port, line)

    def read(self) -> bytes:
        """What the port sends, as far as the end of a line."""
        return self._port.response_data(size=0)

    def close(self) -> None:
        """Give it back."""
        self._client.shutdown()
