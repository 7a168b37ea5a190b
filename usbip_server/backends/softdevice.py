"""
Emulated USB devices, and the sessions of the clients that have imported them.

The devices are those of the PyPI package C{usbip}. Each session has a thread, as the calls of the
package block.

A client cannot make a device allocate more than L{LARGEST} bytes at a time, leave more than that
unread, or have more than L{MOST_URBS} requests unanswered. (A disk also collects the data of one
write command, which cannot be larger than the disk.)
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import msgspec
from twisted.logger import Logger

from usbip_server.model.device import Holder
from usbip_server.runtime.threads import startThread

try:
    from usbip import USBDevice, protocol  # type: ignore[import-untyped]
    from usbip.classes.device.cdc_acm import CDCACM  # type: ignore[import-untyped]
    from usbip.classes.device.msc import MSC  # type: ignore[import-untyped]
    from usbip.core import IN  # type: ignore[import-untyped]
except ImportError:  # it is an optional extra
    installed = False
else:
    installed = True

BLOCK = 512
"""Bytes in a block of a disk."""

LARGEST = 1024 * 1024
"""Bytes in a transfer and in a read command of a disk: as large as Linux makes them for the fastest
disks (C{max_sectors}, C{drivers/usb/storage/scsiglue.c})."""

MOST_URBS = 1024
"""Requests of a client that are not answered yet."""

_HEADER = struct.Struct(">5IIi20x")
"""C{struct usbip_header} of C{USBIP_CMD_SUBMIT} (C{drivers/usb/usbip/usbip_common.h}): command,
seqnum, devid, direction, ep, transfer_flags, transfer_buffer_length."""


class InvalidTraffic(Exception):
    """
    A client has exceeded a limit, or has sent what the device cannot process; its session ends. The
    text states which.
    """


class Unread:
    """
    Counts the bytes that an IN endpoint has and its client has not read.
    """

    def __init__(self, endpoint: Any) -> None:
        """
        @param endpoint: that of the package. All calls that change its content are counted.
        """
        self.bytes = 0
        self.endpoint: int = endpoint.number
        write, reset = endpoint.write, endpoint.reset

        def counted(data: bytes) -> None:
            self.bytes += len(data)
            write(data)

        def emptied() -> None:  # by SET_CONFIGURATION, too
            self.bytes = 0
            reset()

        endpoint.write, endpoint.reset = counted, emptied

    def read(self, urb: Any) -> None:
        """Count what a reply carries."""
        if urb.direction == IN and urb.ep == self.endpoint:
            self.bytes -= urb.actual

    def requireRoom(self) -> None:
        """
        @raise InvalidTraffic: the client sends commands, but does not read the replies.
        """
        if self.bytes > LARGEST:
            raise InvalidTraffic(f"more than {LARGEST} bytes are waiting to be read")


class MemoryStore:
    """
    The content of a disk, with the interface that the package requires.
    """

    block_size = BLOCK

    def __init__(self, size: int) -> None:
        """
        @param size: in bytes.
        """
        self.num_blocks = size // BLOCK
        self._content = bytearray(self.num_blocks * BLOCK)

    def read(self, lba: int, count: int) -> bytes:
        """
        Read blocks.

        @raise InvalidTraffic: too many at once.
        """
        if count * BLOCK > LARGEST:
            raise InvalidTraffic(f"a read of {count * BLOCK} bytes, and {LARGEST} are the most")
        return bytes(self._content[lba * BLOCK : (lba + count) * BLOCK])

    def write(self, lba: int, count: int, data: bytes) -> None:
        """Write blocks."""
        self._content[lba * BLOCK : lba * BLOCK + len(data)] = data


class SoftUsb(NamedTuple):
    """
    A device of the package.

    @ivar usb: the C{USBDevice}.
    @ivar unread: what its client has not read.
    """

    usb: Any
    unread: Unread


def makeDevice(
    vendorId: str, productId: str, diskSize: int | None, **strings: str | None
) -> SoftUsb:
    """
    Make a disk, or a serial port (CDC-ACM) that sends back what it receives. As one without flow
    control, the port loses what does not fit into its buffer of L{LARGEST} bytes.

    @param diskSize: in bytes; C{None} for a serial port.
    """
    device = USBDevice(int(vendorId, 16), int(productId, 16), **strings)
    if diskSize is None:

        def echo(port: Any, data: bytes) -> None:
            fitting = data[: max(0, LARGEST - unread.bytes)]
            if fitting:
                port.write(fitting)

        unread = Unread(device.add(CDCACM(on_rx=echo)).in_ep)
    else:
        unread = Unread(device.add(MSC(MemoryStore(diskSize))).in_ep)
    return SoftUsb(device, unread)


class Wire:
    """
    A duplicate of a client's connection with blocking calls. It waits in poll(2), as
    C{O_NONBLOCK} is shared with all duplicates (fcntl(2)) and must not be changed.

    @ivar sending: a lock, to be held until a message is sent completely.
    """

    def __init__(self, connection: socket.socket) -> None:
        """
        @raise OSError: it is closed, or there is no descriptor left.
        """
        self.sending = threading.Lock()
        self._ahead = b""
        self._socket = socket.fromfd(
            connection.fileno(), connection.family, connection.type, connection.proto
        )

    def recv(self, most: int) -> bytes:
        """
        Receive bytes; empty if the connection is shut down.
        """
        if self._ahead:
            received, self._ahead = self._ahead[:most], self._ahead[most:]
            return received
        while True:
            try:
                return self._socket.recv(most, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._wait(select.POLLIN)

    def peek(self, size: int) -> bytes:
        """
        Receive so many bytes, or fewer at the end of the connection, and keep them for C{recv}.
        """
        ahead = b""
        while len(ahead) < size and (more := self.recv(size - len(ahead))):
            ahead += more
        self._ahead = ahead
        return ahead

    def sendall(self, data: bytes) -> None:
        """
        Send all bytes.

        @raise OSError: the connection is shut down.
        """
        left = memoryview(data)
        while left:
            try:
                left = left[self._socket.send(left, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                self._wait(select.POLLOUT)

    def _wait(self, event: int) -> None:
        poll = select.poll()
        poll.register(self._socket, event)
        poll.poll()

    def shutDown(self) -> None:
        """Shut the connection down, for all duplicates; calls that wait return."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the duplicate."""
        with self.sending:
            self._socket.close()


class Session(msgspec.Struct, frozen=True, eq=False):
    """
    The session of a client.

    @ivar ended: set at its end.
    """

    wire: Wire
    holder: Holder
    ended: threading.Event


class SoftDevice:
    """
    A device that can be imported by one client at a time. Its methods are called in the reactor's
    thread; the traffic is processed in another.

    @ivar session: the session of the client that has imported the device.
    @ivar former: the session that C{withdraw} is ending.
    """

    _log = Logger()

    def __init__(self, device: SoftUsb, reactor: Any, onEnd: Callable[[], None]) -> None:
        """
        @param reactor: provides C{IReactorFromThreads}.
        @param onEnd: called when a session has ended, unless C{withdraw} has ended it.
        """
        self.session: Session | None = None
        self.former: Session | None = None
        self._usb, self._unread = device
        self._reactor = reactor
        self._onEnd = onEnd

    def begin(self, connection: socket.socket, holder: Holder) -> None:
        """
        Begin the session of a client. There must be no other one, nor a former one.

        @raise OSError: the connection is closed, or there is no descriptor left.
        @raise RuntimeError: the system has no more threads.
        """
        assert self.session is None and self.former is None
        session = Session(Wire(connection), holder, threading.Event())
        try:
            startThread(partial(self._run, session))
        except BaseException:
            session.wire.close()
            raise
        self.session = session

    def shutDown(self) -> None:
        """End the session. Returns before it has ended."""
        if self.session is not None:
            self.session.wire.shutDown()

    def withdraw(self) -> None:
        """End the session, and make it the former one at once."""
        if self.session is not None:
            self.shutDown()
            self.session, self.former = None, self.session

    def _run(self, session: Session) -> None:
        try:
            self._carry(session.wire)
        except OSError:
            pass  # the connection has ended
        except InvalidTraffic as error:
            self._log.warn(
                "ended the session of {client} with a virtual device: {error}",
                client=session.holder.address,
                error=str(error),
            )
        except Exception:
            self._log.failure(
                "a virtual device failed on what {client} sent", client=session.holder.address
            )
        finally:
            session.wire.shutDown()
            self._reactor.callFromThread(self._over, session)
            session.ended.set()

    def _over(self, session: Session) -> None:
        session.wire.close()
        if session is self.former:
            self.former = None
        elif session is self.session:
            self.session = None
            self._onEnd()

    def _carry(self, wire: Wire) -> None:
        """
        Pass requests to the device and its replies back, until the connection ends.
        """
        us = threading.get_ident()
        behind: list[Any] = []  # replies during handle_urb
        unanswered: set[int] = set()

        def respond(urb: Any) -> None:  # from any thread
            if threading.get_ident() == us:
                behind.append(urb)
            else:
                send(urb)

        def send(urb: Any) -> None:
            unanswered.discard(urb.seqnum)
            if urb.direction == IN:  # a SETUP packet may contradict it
                urb.actual = min(urb.actual, len(urb.buffer))
            self._unread.read(urb)
            with wire.sending, contextlib.suppress(OSError):
                protocol.write_ret(wire, urb)

        self._usb.reset_io()
        while (urb := self._receive(wire)) is not None:
            if urb.command == protocol.CMD_UNLINK:
                self._usb.cancel_urb(urb.flags)
                unanswered.discard(urb.flags)
                with wire.sending:
                    protocol.write_ret_unlink(wire, urb)
                continue
            if urb.seqnum in unanswered or len(unanswered) == MOST_URBS:
                raise InvalidTraffic(f"more than {MOST_URBS} requests, or two with one number")
            unanswered.add(urb.seqnum)
            if self._handle(urb, respond):
                send(urb)
            while behind:
                send(behind.pop(0))

    def _handle(self, urb: Any, respond: Callable[[Any], None]) -> bool:
        """
        Pass a request to the device. The package raises various errors for invalid requests, such
        as a SCSI command without a byte.

        @return: whether the reply is to be sent now.
        @raise InvalidTraffic: the device cannot process it.
        """
        try:
            return self._usb.handle_urb(urb, respond) is not None
        except (InvalidTraffic, OSError):
            raise
        except Exception as error:
            raise InvalidTraffic(f"it cannot process a request: {error!r}") from error

    def _receive(self, wire: Wire) -> Any:
        """
        Receive a request of the client; C{None} at the end of the connection.

        @raise InvalidTraffic: it is too large, or there is no room for the reply.
        """
        header = wire.peek(_HEADER.size)
        if len(header) < _HEADER.size:
            return None
        command, _, _, direction, endpoint, _, length = _HEADER.unpack(header)
        if command == protocol.CMD_SUBMIT:
            if not 0 <= length <= LARGEST:
                raise InvalidTraffic(f"a transfer of {length} bytes, and {LARGEST} are the most")
            if direction != IN and endpoint != 0:
                self._unread.requireRoom()
        elif command != protocol.CMD_UNLINK:
            raise InvalidTraffic(f"an unknown command {command:#x}")
        return protocol.read_cmd(wire, self._usb)
