"""
What Windows' C{usbipd-win} answers, byte for byte, as its source has it (version 5.3 and what has
come after it, github.com/dorssel/usbipd-win):

  - C{Usbipd/ConnectedClient.cs}: a connection has one request. To what is none (another version,
    code or status) it says nothing at all. A list is always a success; it has what is shared,
    also what some client has. An import is refused with C{ST_NODEV} if the bus id is none of
    theirs, if nothing is plugged in there or if that is not shared, with C{ST_DEV_BUSY} if a
    client has it, or if Windows does not let go of it; with C{ST_NA}, C{ST_DEV_ERR} and
    C{ST_ERROR} if something else goes wrong, such as after 10 s without its driver
    (C{Usbipd/VBoxUsb.cs}).
  - C{Usbipd/ExportedDevice.cs}: each number and each text is a write of its own, texts are filled
    up with NULs. The path is the device's instance id, in capitals
    (C{Usbipd/WindowsDevice.cs}), bus and device number are those in the bus id
    (C{Usbipd.Automation/BusId.cs}: always two, up to 99), the configuration is the one that
    Windows has set. No device is faster than C{USB_SPEED_SUPER}. Where the interfaces cannot be
    read there are none. An import's answer has their number, and not them.
  - C{Usbipd/ClientContext.cs}: behind every answer but that of a good import the connection is
    closed. C{Usbipd/AttachedClient.cs}: the session ends when its client says no more.
  - C{Usbipd/Server.cs}: C{SO_KEEPALIVE} after 10 s, each second, five times.

What it does with USB traffic is not here, nor in which order it lists devices (that of random
numbers), nor what happens if two clients ask for one device in the same moment.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator

import msgspec

from tests.support.scriptedserver import SECONDS, received
from usbip_server.model.usbip import OpStatus

VERSION = 0x0111

REQ_DEVLIST, REP_DEVLIST = 0x8005, 0x0005
REQ_IMPORT, REP_IMPORT = 0x8003, 0x0003

PATH, BUS_ID = 256, 32
"""Bytes (C{Usbipd/Interop/UsbIp.cs})."""


class WindowsDevice(msgspec.Struct, frozen=True, kw_only=True):
    """
    A device there, with the numbers that it has on the wire.

    @ivar instanceId: what Windows calls it.
    @ivar classes: class, subclass and protocol.
    @ivar isShared: has somebody called C{usbipd bind}?
    """

    busId: str
    instanceId: str
    speed: int = 2
    vendorId: int
    productId: int
    release: int
    classes: tuple[int, int, int] = (0, 0, 0)
    configuration: int = 1
    configurations: int = 1
    interfaces: tuple[tuple[int, int, int], ...] = ()
    isShared: bool = True

    def described(self, withInterfaces: bool) -> Iterator[bytes]:
        """What is written of it, one thing after the other."""
        yield self.instanceId.encode().ljust(PATH, b"\0")
        yield self.busId.encode().ljust(BUS_ID, b"\0")
        for number in (*map(int, self.busId.split("-")), self.speed):
            yield struct.pack(">I", number)
        for number in (self.vendorId, self.productId, self.release):
            yield struct.pack(">H", number)
        counts = (self.configuration, self.configurations, len(self.interfaces))
        for number in (*self.classes, *counts):
            yield bytes([number])
        for triple in self.interfaces if withInterfaces else ():
            for number in (*triple, 0):
                yield bytes([number])


BOARD = WindowsDevice(
    busId="2-4",
    instanceId="USB\\VID_2341&PID_0043\\75330303035351F0A1C1",
    vendorId=0x2341,
    productId=0x0043,
    release=0x0001,
    classes=(2, 0, 0),
    interfaces=((2, 2, 1), (10, 0, 0)),
)

DRIVE = WindowsDevice(
    busId="1-21",
    instanceId="USB\\VID_0781&PID_5581\\4C530001234567890123",
    speed=5,
    vendorId=0x0781,
    productId=0x5581,
    release=0x0100,
    interfaces=((8, 6, 80),),
)

CAMERA = WindowsDevice(
    busId="1-6",
    instanceId="USB\\VID_13D3&PID_56A2\\0X0001",
    speed=3,
    vendorId=0x13D3,
    productId=0x56A2,
    release=0x1626,
    classes=(239, 2, 1),
    interfaces=((14, 1, 0), (14, 2, 0)),
    isShared=False,
)


class UsbipdWin:
    """
    Such a machine: what a L{tests.support.scriptedserver.ScriptedServer} plays.

    @ivar devices: what is plugged in there.
    @ivar stays: bus ids of devices that are not to be had, and the status that says so.
    @ivar breaks: does it come to nothing to look at the devices? A device may go in that moment.
    @ivar wasListed: called when a list was given.
    """

    def __init__(self, *devices: WindowsDevice) -> None:
        self.devices = {device.busId: device for device in devices}
        self.stays: dict[str, OpStatus] = {}
        self.breaks = False
        self.wasListed: Callable[[], object] = lambda: None
        self._sessions: dict[str, socket.socket] = {}
        self._changed = threading.Condition()
        self._requests = {REQ_DEVLIST: self._list, REQ_IMPORT: self._import}

    def __call__(self, connection: socket.socket) -> None:
        """Serve a client."""
        head = received(connection, 8)
        if len(head) < 8:
            return
        version, code, status = struct.unpack(">HHI", head)
        if version == VERSION and status == OpStatus.OK and code in self._requests:
            self._requests[code](connection)

    def unplug(self, busId: str) -> None:
        """Somebody pulls a device out: its client loses it."""
        with self._changed:
            del self.devices[busId]
            if busId in self._sessions:
                self._sessions[busId].shutdown(socket.SHUT_RDWR)

    def isFree(self, busId: str) -> bool:
        """Has nobody a device, or does whoever has it give it back?"""
        with self._changed:
            return self._changed.wait_for(lambda: busId not in self._sessions, SECONDS)

    def _list(self, connection: socket.socket) -> None:
        if self.breaks:
            return
        shared = [device for device in self.devices.values() if device.isShared]
        _say(connection, _head(REP_DEVLIST, OpStatus.OK), struct.pack(">I", len(shared)))
        for device in shared:
            _say(connection, *device.described(withInterfaces=True))
        self.wasListed()

    def _import(self, connection: socket.socket) -> None:
        busId = received(connection, BUS_ID).partition(b"\0")[0].decode()
        with self._changed:
            device, status = self.devices.get(busId), self.stays.get(busId, OpStatus.OK)
            if device is None or not device.isShared:
                status = OpStatus.NODEV
            elif busId in self._sessions:
                status = OpStatus.DEV_BUSY
            if status is OpStatus.OK:
                self._sessions[busId] = connection
        _say(connection, _head(REP_IMPORT, status))
        if status is not OpStatus.OK:
            return
        try:
            assert device is not None
            _say(connection, *device.described(withInterfaces=False))
            while connection.recv(65536):
                pass  # USB traffic
        finally:
            with self._changed:
                del self._sessions[busId]
                self._changed.notify_all()


def _head(code: int, status: OpStatus) -> bytes:
    return struct.pack(">HHI", VERSION, code, status)


def _say(connection: socket.socket, *parts: bytes) -> None:
    """
    Write them one by one. There Nagle's algorithm puts them together as it likes; here it does
    not, so that they come as small as they can.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for part in parts:
        connection.sendall(part)
