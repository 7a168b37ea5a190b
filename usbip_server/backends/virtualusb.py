"""
USB devices made of software, and the door they are imported through.

The devices are those of the PyPI package C{usbip}: a kernel that imports one finds a real
USB device. Each connection has a thread, as the package's calls block.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.logger import Logger

from usbip_server.device import Holder, Traffic

try:
    from usbip import USBDevice, protocol  # type: ignore[import-untyped]
    from usbip.classes.device.cdc_acm import CDCACM  # type: ignore[import-untyped]
    from usbip.classes.device.msc import MSC  # type: ignore[import-untyped]
except ImportError:  # it is an optional extra
    installed = False
else:
    installed = True

BLOCK = 512
"""Bytes in a block of a disk."""

HANDSHAKE_SECONDS = 10.0
"""For a client to say which device it wants."""

CONNECTIONS = 16
"""At a time."""

ACCEPT_AGAIN = 1.0
"""Seconds until it accepts again, after it could not: no descriptor was free."""

TRAFFIC_AT = 120
"""
Where C{tcpi_bytes_acked} and C{tcpi_bytes_received} are in C{struct tcp_info}, two numbers of
64 bits (C{include/uapi/linux/tcp.h}; Linux 4.1).
"""

REFUSED = bytes.fromhex("0111 0003 00000001")
"""C{OP_REP_IMPORT} with a status that is not 0 (Linux, usbip_protocol.rst)."""


class MemoryStore:
    """
    A disk's content, as the package wants to have it.
    """

    block_size = BLOCK

    def __init__(self, size: int) -> None:
        """
        @param size: in bytes.
        """
        self.num_blocks = size // BLOCK
        self._content = bytearray(self.num_blocks * BLOCK)

    def read(self, lba: int, count: int) -> bytes:
        """Read blocks."""
        return bytes(self._content[lba * BLOCK : (lba + count) * BLOCK])

    def write(self, lba: int, count: int, data: bytes) -> None:
        """Write blocks."""
        self._content[lba * BLOCK : lba * BLOCK + len(data)] = data


def addSerialPort(device: Any) -> None:
    """Make the device a CDC-ACM serial port that sends back what it receives."""
    device.add(CDCACM())


def addDisk(device: Any, size: int) -> None:
    """Make the device a mass storage disk of C{size} bytes."""
    device.add(MSC(MemoryStore(size)))


def makeDevice(vendorId: str, productId: str, **strings: str | None) -> Any:
    """
    A device without any function yet.
    """
    return USBDevice(int(vendorId, 16), int(productId, 16), **strings)


class Handshake:
    """
    A connection, to the package's handshake: it reads, and what it writes is held back
    until it is certain that the client gets what it is told it got.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.recv = connection.recv
        self.answer = b""

    def sendall(self, data: bytes) -> None:
        """Hold it back."""
        self.answer += data


class Session(msgspec.Struct, frozen=True, eq=False):
    """
    A client has a device imported.

    @ivar ended: set when that is over.
    """

    connection: socket.socket
    holder: Holder
    ended: threading.Event

    def shutDown(self) -> None:
        """Bring it to its end, which comes a little later."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def traffic(self) -> Traffic | None:
        """What it has moved so far."""
        with contextlib.suppress(OSError, struct.error):
            info = self.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            acked, received = struct.unpack_from("=QQ", info, TRAFFIC_AT)
            return Traffic(bytesIn=received, bytesOut=acked)
        return None


class Door:
    """
    Serves USB/IP to those who want to import the devices.
    """

    _log = Logger()

    def __init__(
        self,
        onChange: Callable[[str], None],
        clock: Callable[[], float],
        gate: Callable[[str, str], bool],
    ) -> None:
        """
        @param gate: may the client at an address import the device at a bus id? Called in
            some thread.
        @param onChange: called with the bus id, in some thread, when a device may have
            another holder.
        @param clock: tells the time, in seconds since the epoch.
        """
        self._clock = clock
        self._gate = gate
        self._onChange = onChange
        self._lock = threading.Lock()
        self._devices: dict[str, Any] = {}
        self._sessions: dict[str, Session] = {}
        self._past: dict[str, tuple[Holder, Traffic | None]] = {}
        self._room = threading.Semaphore(CONNECTIONS)
        self._listener: socket.socket | None = None

    def open(self, interface: str, port: int) -> int:
        """
        Begin to listen.

        @return: the port.
        @raise OSError: it is taken, or not ours to take.
        """
        self._listener = socket.create_server((interface, port))
        self._start(self._accept, self._listener)
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        """Listen no more, and end all sessions."""
        if self._listener is not None:
            listener, self._listener = self._listener, None
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
            listener.close()
        for busId in tuple(self._devices):
            self.withdraw(busId)

    def offer(self, busId: str, device: Any) -> None:
        """Let a device be imported."""
        with self._lock:
            self._devices[busId] = device

    def withdraw(self, busId: str) -> None:
        """Let it be imported no more; who has it loses it."""
        with self._lock:
            self._devices.pop(busId, None)
            session = self._sessions.pop(busId, None)
            if session is not None:
                self._past[busId] = session.holder, session.traffic()
                session.shutDown()

    def release(self, busId: str) -> None:
        """
        Who has it loses it; it can be imported anew. Blocks until the session has ended:
        call it in a thread.
        """
        with self._lock:
            session = self._sessions.get(busId)
            if session is not None:
                session.shutDown()
        if session is not None:
            session.ended.wait()

    def holder(self, busId: str) -> Holder | None:
        """The client that has it."""
        with self._lock:
            session = self._sessions.get(busId)
            return session.holder if session is not None else None

    def traffic(self, busId: str, holder: Holder) -> Traffic | None:
        """What the session of a client has moved: the one that is, or the last there was."""
        with self._lock:
            session = self._sessions.get(busId)
            if session is not None and session.holder == holder:
                return session.traffic()
            past, traffic = self._past.get(busId, (None, None))
            return traffic if past == holder else None

    def _start(self, function: Callable[..., None], *args: Any) -> None:
        threading.Thread(target=function, args=args, daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, address = listener.accept()
            except OSError as error:
                if listener is not self._listener:
                    return  # closed
                self._log.warn("cannot accept a connection: {error}", error=str(error))
                time.sleep(ACCEPT_AGAIN)
                continue
            if self._room.acquire(blocking=False):
                self._start(self._serve, connection, str(address[0]))
            else:
                connection.close()

    def _serve(self, connection: socket.socket, client: str) -> None:
        with contextlib.closing(connection):
            try:
                connection.settimeout(HANDSHAKE_SECONDS)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    free = [d for busId, d in self._devices.items() if busId not in self._sessions]
                handshake = Handshake(connection)
                device: Any = protocol.serve_handshake(handshake, free)
                if device is None:
                    connection.sendall(handshake.answer)
                else:
                    self._session(device, connection, client, handshake.answer)
            except OSError:
                pass  # the client is gone
            except Exception:
                self._log.failure("a virtual device failed on what {client} sent", client=client)
            finally:
                self._room.release()

    def _session(self, device: Any, connection: socket.socket, client: str, answer: bytes) -> None:
        holder = Holder(address=client, since=self._clock())
        session = Session(connection, holder, threading.Event())
        if not (self._gate(device.busid, client) and self._begin(device, session)):
            connection.sendall(REFUSED)
            return
        self._onChange(device.busid)
        try:
            connection.sendall(answer)
            self._carry(connection, device)
        finally:
            self._end(device.busid, session)

    def _begin(self, device: Any, session: Session) -> bool:
        with self._lock:
            offered = self._devices.get(device.busid) is device
            if not offered or device.busid in self._sessions:
                return False  # it was withdrawn, or another was quicker
            self._sessions[device.busid] = session
            return True

    def _end(self, busId: str, session: Session) -> None:
        with self._lock:
            if self._sessions.get(busId) is session:  # and it was not withdrawn meanwhile
                del self._sessions[busId]
                self._past[busId] = session.holder, session.traffic()
        session.ended.set()
        self._onChange(busId)

    def _carry(self, connection: socket.socket, device: Any) -> None:
        """
        Carry requests to the device and its answers back, until the client goes.
        """
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sending = threading.Lock()

        def respond(urb: Any) -> None:  # from any thread
            with sending, contextlib.suppress(OSError):
                protocol.write_ret(connection, urb)

        device.reset_io()
        while (urb := protocol.read_cmd(connection, device)) is not None:
            if urb.command == protocol.CMD_UNLINK:
                device.cancel_urb(urb.flags)
                with sending:
                    protocol.write_ret_unlink(connection, urb)
            elif device.handle_urb(urb, respond) is not None:
                respond(urb)
