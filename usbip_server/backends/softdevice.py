"""
Emulated USB devices, and the sessions of the clients that have imported them.

The devices are those of the PyPI package C{usbip}. Each session has a thread, as the calls of the
package block.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from twisted.logger import Logger

from usbip_server.model.device import Holder
from usbip_server.runtime.threads import startThread

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
        """Read blocks."""
        return bytes(self._content[lba * BLOCK : (lba + count) * BLOCK])

    def write(self, lba: int, count: int, data: bytes) -> None:
        """Write blocks."""
        self._content[lba * BLOCK : lba * BLOCK + len(data)] = data


def makeDevice(vendorId: str, productId: str, diskSize: int | None, **strings: str | None) -> Any:
    """
    Make a disk, or a serial port (CDC-ACM) that sends back what it receives.

    @param diskSize: in bytes; C{None} for a serial port.
    """
    device = USBDevice(int(vendorId, 16), int(productId, 16), **strings)
    device.add(CDCACM() if diskSize is None else MSC(MemoryStore(diskSize)))
    return device


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
        self._socket = socket.fromfd(
            connection.fileno(), connection.family, connection.type, connection.proto
        )

    def recv(self, most: int) -> bytes:
        """
        Receive bytes; empty if the connection is shut down.
        """
        while True:
            try:
                return self._socket.recv(most, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._wait(select.POLLIN)

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

    def __init__(self, usb: Any, reactor: Any, onEnd: Callable[[], None]) -> None:
        """
        @param usb: the package's device.
        @param reactor: provides C{IReactorFromThreads}.
        @param onEnd: called when a session has ended, unless C{withdraw} has ended it.
        """
        self.session: Session | None = None
        self.former: Session | None = None
        self._usb = usb
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

        def respond(urb: Any) -> None:  # from any thread
            if threading.get_ident() == us:
                behind.append(urb)
            else:
                send(urb)

        def send(urb: Any) -> None:
            with wire.sending, contextlib.suppress(OSError):
                protocol.write_ret(wire, urb)

        self._usb.reset_io()
        while (urb := protocol.read_cmd(wire, self._usb)) is not None:
            if urb.command == protocol.CMD_UNLINK:
                self._usb.cancel_urb(urb.flags)
                with wire.sending:
                    protocol.write_ret_unlink(wire, urb)
            elif self._usb.handle_urb(urb, respond) is not None:
                send(urb)
            while behind:
                send(behind.pop(0))
