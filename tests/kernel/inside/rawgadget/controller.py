"""The ioctls of C{/dev/raw-gadget}.

Numbers and structures are those of C{include/uapi/linux/usb/raw_gadget.h}; what they do is
in C{drivers/usb/gadget/legacy/raw_gadget.c}. All calls block until the host has done its
part, and end with C{InterruptedError} when their thread gets a signal."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from tests.kernel.inside.rawgadget.descriptors import Endpoint
from tests.kernel.inside.usbfs import buffer, ioctl

SPEED_HIGH = 3
"""C{enum usb_device_speed}, C{include/uapi/linux/usb/ch9.h}."""

_WRITE, _READ = 1 << 30, 2 << 30
"""C{_IOC_WRITE}, C{_IOC_READ} (C{include/uapi/asm-generic/ioctl.h})."""


def _number(number: int, direction: int = 0, size: int = 0) -> int:
    """C{_IOC(direction, 'U', number, size)}"""
    return direction | size << 16 | ord("U") << 8 | number


_INIT_ARGUMENT = struct.Struct("128s128sB")
_EVENT = struct.Struct("=II")
_IO = struct.Struct("=HHI")
_SETUP = struct.Struct("<BBHHH")

_INIT = _number(0, _WRITE, _INIT_ARGUMENT.size)
_RUN = _number(1)
_EVENT_FETCH = _number(2, _READ, _EVENT.size)
_EP0_WRITE = _number(3, _WRITE, _IO.size)
_EP0_READ = _number(4, _READ | _WRITE, _IO.size)
_EP_ENABLE = _number(5, _WRITE, 9)
_EP_DISABLE = _number(6, _WRITE, 4)
_EP_WRITE = _number(7, _WRITE, _IO.size)
_EP_READ = _number(8, _READ | _WRITE, _IO.size)
_CONFIGURE = _number(9)
_VBUS_DRAW = _number(10, _WRITE, 4)
_EP0_STALL = _number(12)
_EP_SET_WEDGE = _number(15, _WRITE, 4)

_EVENT_CONTROL = 2
"""C{USB_RAW_EVENT_CONTROL}. The others are not used: 6.1 has C{CONNECT} only, later
kernels also C{SUSPEND}, C{RESUME}, C{RESET} and C{DISCONNECT}."""


@dataclass(frozen=True, slots=True)
class Setup:
    """A control request (USB 2.0, table 9-2).

    @ivar requestType: C{bmRequestType}: bit 7 is set if the host reads."""

    requestType: int
    request: int
    value: int
    index: int
    length: int

    @property
    def isIn(self) -> bool:
        """Does the host expect data?"""
        return bool(self.requestType & 0x80) and self.length > 0


class RawGadget:
    """One device. It is unplugged when C{close} is called or the process ends."""

    def __init__(self, controller: str, driver: str, speed: int = SPEED_HIGH) -> None:
        """Plug it in.

        @param controller: name of the device controller: C{dummy_udc.3}
        @param driver: name of its driver: C{dummy_udc}"""
        self._file = os.open("/dev/raw-gadget", os.O_RDWR | os.O_CLOEXEC)
        names = driver.encode(), controller.encode()
        ioctl(self._file, _INIT, buffer(_INIT_ARGUMENT.pack(*names, speed)))
        ioctl(self._file, _RUN)

    def close(self) -> None:
        """Unplug it."""
        os.close(self._file)

    def fetch(self) -> Setup:
        """Wait for a control request. Nothing else is waited for while that is not answered."""
        while True:
            event = buffer(_EVENT.pack(0, _SETUP.size) + bytes(_SETUP.size))
            ioctl(self._file, _EVENT_FETCH, event)
            if _EVENT.unpack_from(event)[0] == _EVENT_CONTROL:
                return Setup(*_SETUP.unpack_from(event, _EVENT.size))

    def send(self, data: bytes) -> None:
        """Answer a control request with data."""
        ioctl(self._file, _EP0_WRITE, buffer(_IO.pack(0, 0, len(data)) + data))

    def receive(self, length: int) -> bytes:
        """Answer a control request that brings data, or none."""
        return self._read(_EP0_READ, 0, length)

    def stall(self) -> None:
        """Refuse a control request."""
        ioctl(self._file, _EP0_STALL)

    def configured(self, milliamperes: int = 100) -> None:
        """Report that a configuration was chosen."""
        ioctl(self._file, _VBUS_DRAW, milliamperes // 2)
        ioctl(self._file, _CONFIGURE)

    def enable(self, endpoint: Endpoint) -> int:
        """Make an endpoint ready for use.

        @return: its handle.
        @raise OSError: the controller has no such endpoint. C{dummy_udc} has none that are
            isochronous."""
        return ioctl(self._file, _EP_ENABLE, buffer(endpoint.encode() + b"\0\0"))

    def disable(self, handle: int) -> None:
        """Disable an endpoint that is not being read or written."""
        ioctl(self._file, _EP_DISABLE, handle)

    def write(self, handle: int, data: bytes) -> int:
        """Send something when the host asks for it.

        @return: how much."""
        return ioctl(self._file, _EP_WRITE, buffer(_IO.pack(handle, 0, len(data)) + data))

    def read(self, handle: int, length: int) -> bytes:
        """Wait for something from the host."""
        return self._read(_EP_READ, handle, length)

    def wedge(self, handle: int) -> None:
        """Have the endpoint stall from now on, whatever the host clears."""
        ioctl(self._file, _EP_SET_WEDGE, handle)

    def _read(self, number: int, handle: int, length: int) -> bytes:
        argument = buffer(_IO.pack(handle, 0, length) + bytes(length))
        count = ioctl(self._file, number, argument)
        return argument.raw[_IO.size : _IO.size + count]
