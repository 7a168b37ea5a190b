"""
The replies of Windows' C{usbipd-win}, byte for byte, as in its source (version 5.3 and later,
github.com/dorssel/usbipd-win):

  - C{Usbipd/ConnectedClient.cs}: a connection has one request. To another version, code or status
    there is no reply. A list is always a success; it has the shared devices, also those in use. An
    import is refused with C{ST_NODEV} for a bus id that is not valid there, absent or not shared,
    with C{ST_DEV_BUSY} for a device that a client or a program of Windows uses, and with C{ST_NA},
    C{ST_DEV_ERR} or C{ST_ERROR} after other errors (C{Usbipd/VBoxUsb.cs}).
  - C{Usbipd/ExportedDevice.cs}: each number and each text is a write of its own. The path is the
    instance id in capitals (C{Usbipd/WindowsDevice.cs}); bus and device number are those in the
    bus id, up to 99 (C{Usbipd.Automation/BusId.cs}). The reply to an import has the number of the
    interfaces, without these.
  - C{Usbipd/ClientContext.cs}: after every reply but that of a successful import the connection is
    closed. C{Usbipd/AttachedClient.cs}: the session ends when the client closes the connection.

USB traffic, sessions and the random order of its lists are not simulated.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator

import msgspec

from tests.support.scriptedserver import received
from usbip_server.model.usbip import OpStatus

VERSION = 0x0111

REQ_DEVLIST, REP_DEVLIST = 0x8005, 0x0005
REQ_IMPORT, REP_IMPORT = 0x8003, 0x0003

PATH, BUS_ID = 256, 32
"""Bytes (C{Usbipd/Interop/UsbIp.cs})."""


class WindowsDevice(msgspec.Struct, frozen=True, kw_only=True):
    """
    A device of the server, with the numbers that it has in USB/IP.

    @ivar instanceId: its name in Windows.
    @ivar classes: class, subclass and protocol.
    @ivar isShared: was C{usbipd bind} called for it?
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
        """Its description, in the parts that are written."""
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
    Serves the connections of a L{tests.support.scriptedserver.ScriptedServer}.

    @ivar devices: the devices that are plugged in, by bus id.
    @ivar stays: the status of refusals, by bus id.
    @ivar breaks: fail each list, as if a device went meanwhile.
    @ivar wasListed: called after each list.
    """

    def __init__(self, *devices: WindowsDevice) -> None:
        self.devices = {device.busId: device for device in devices}
        self.stays: dict[str, OpStatus] = {}
        self.breaks = False
        self.wasListed: Callable[[], object] = lambda: None

    def __call__(self, connection: socket.socket) -> None:
        """Serve a connection."""
        request = received(connection, 8)
        if request == _head(REQ_DEVLIST) and not self.breaks:
            shared = [device for device in self.devices.values() if device.isShared]
            _write(connection, _head(REP_DEVLIST), struct.pack(">I", len(shared)))
            for device in shared:
                _write(connection, *device.described(withInterfaces=True))
            self.wasListed()
        elif request == _head(REQ_IMPORT):
            busId = received(connection, BUS_ID).partition(b"\0")[0].decode()
            found, status = self.devices.get(busId), self.stays.get(busId, OpStatus.OK)
            if found is None or not found.isShared:
                status = OpStatus.NODEV
            _write(connection, _head(REP_IMPORT, status))
            if found is not None and status is OpStatus.OK:
                _write(connection, *found.described(withInterfaces=False))
                while connection.recv(65536):
                    pass  # USB traffic


def _head(code: int, status: OpStatus = OpStatus.OK) -> bytes:
    return struct.pack(">HHI", VERSION, code, status)


def _write(connection: socket.socket, *parts: bytes) -> None:
    """
    Write each part as a packet of its own, the smallest that Nagle's algorithm may send.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for part in parts:
        connection.sendall(part)
