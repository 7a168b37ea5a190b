"""A client that imports devices over TLS: with kTLS, or with a relay between the connection and the
kernel."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from pathlib import Path

from tests.kernel.inside.command import DEADLINE
from tests.kernel.inside.usb import VHCI_FOLDER, freePort
from tests.support.tlstunnel import carry
from usbip_server.net.ktls import missing

OK = 0

OP_ENABLE_KTLS = 8
"""C{SSL_OP_ENABLE_KTLS}."""

NO_TLS_MODULE = Path("/etc/modprobe.d/no-ktls.conf")
"""A file that forbids to load the kernel's module for TLS, while it contains
C{install tls /bin/false}."""


class TlsImport:
    """One connection.

    @ivar status: the status of the server's reply, L{OK} or an error.
    @ivar isKeyed: does the client's kernel encrypt?"""

    def __init__(
        self, port: int, busId: str, context: ssl.SSLContext, source: str = "127.0.0.1"
    ) -> None:
        """Ask for a device.

        @param source: the address to come from.
        @raise OSError: there is no TLS, or the server has closed the connection."""
        connection = socket.create_connection(("127.0.0.1", port), DEADLINE, (source, 0))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._ssl = context.wrap_socket(connection, server_hostname="localhost")
        except BaseException:
            connection.close()
            raise
        self._ssl.sendall(struct.pack(">HHI32s", 0x0111, 0x8003, 0, busId.encode()))
        _, _, self.status = struct.unpack(">HHI", self._read(8))
        self.isKeyed = missing(self._ssl, self._ssl.version()) is None
        if self.status == OK:
            described = self._read(312)
            assert described[256:288].rstrip(b"\0") == busId.encode()
            bus, device, self._speed = struct.unpack_from(">III", described, 288)
            self._deviceId = bus << 16 | device

    def attach(self) -> None:
        """Attach the device to vhci. With kTLS the session goes on without this process; otherwise
        it ends with this process, or with L{close}."""
        assert self._ssl.pending() == 0
        if self.isKeyed:
            with self._ssl:
                self._give(self._ssl)
            return
        theirs, ours = socket.socketpair()
        with theirs:
            self._give(theirs)
        threading.Thread(target=carry, args=(ours, self._ssl), daemon=True).start()

    def close(self) -> None:
        """Close the connection, unless the kernel has it."""
        with contextlib.suppress(OSError):
            self._ssl.shutdown(socket.SHUT_RDWR)
        self._ssl.close()

    def _read(self, count: int) -> bytes:
        """@raise EOFError: the server has closed the connection."""
        data = b""
        while len(data) < count:
            more = self._ssl.recv(count - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def _give(self, connection: socket.socket) -> None:
        number = freePort("ss" if self._speed >= 5 else "hs")
        order = f"{number} {connection.fileno()} {self._deviceId} {self._speed}"
        (VHCI_FOLDER / "attach").write_text(order)
