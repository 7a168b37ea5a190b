"""USB transfers through C{/dev/bus/usb}, and C{ioctl}.

Numbers and structures are those of C{include/uapi/linux/usbdevice_fs.h}, on a machine of 64
bits."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.kernel.cache import PROJECT
from tests.kernel.inside.command import stop, waitUntil
from tests.kernel.inside.usb import attribute

_CONTROL, _BULK = 0xC0185500, 0xC0185502
_SET_INTERFACE, _SET_CONFIGURATION = 0x80085504, 0x80045505
_CLAIM, _IOCTL = 0x8004550F, 0xC0105512
"""C{USBDEVFS_CONTROL} and so on."""

_CONTROL_TRANSFER = struct.Struct("@BBHHHIP")
_BULK_TRANSFER = struct.Struct("@IIIP")
_DRIVER_IOCTL = struct.Struct("@iiP")

_USBTEST_PARAMETER = struct.Struct("@IIIIIxxxxqq")
_USBTEST_REQUEST = 0xC0005564 | _USBTEST_PARAMETER.size << 16
"""C{struct usbtest_param_64} and C{USBTEST_REQUEST_64} (C{drivers/usb/misc/usbtest.c})."""

_TEST_CONTROL_QUEUE = 10


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)

Buffer = ctypes.Array[ctypes.c_char]


def buffer(data: bytes) -> Buffer:
    """Memory at a fixed address with a copy of some bytes."""
    return ctypes.create_string_buffer(data, max(len(data), 1))


def ioctl(file: int, number: int, argument: Buffer | int = 0) -> int:
    """Call C{ioctl(2)} without Python's lock. C{fcntl.ioctl} blocks all other threads if its
    argument has more than 1024 bytes, and takes no address.

    @param argument: of a buffer the address is passed.
    @return: the result.
    @raise OSError: the call failed; C{InterruptedError} after a signal."""
    value = argument if isinstance(argument, int) else ctypes.addressof(argument)
    result: int = _libc.ioctl(file, number, value)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


class UsbNode:
    """A device's node, open for as long as a C{with} lasts."""

    def __init__(self, busId: str) -> None:
        bus, device = (int(str(attribute(busId, name))) for name in ("busnum", "devnum"))
        self._path = f"/dev/bus/usb/{bus:03}/{device:03}"

    def __enter__(self) -> UsbNode:
        self._file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._file)

    def claim(self, interface: int = 0) -> None:
        """Have an interface for ourselves. No driver may have it."""
        ioctl(self._file, _CLAIM, buffer(struct.pack("I", interface)))

    def setInterface(self, interface: int, alternate: int) -> None:
        """Choose a setting of an interface that is claimed."""
        ioctl(self._file, _SET_INTERFACE, buffer(struct.pack("II", interface, alternate)))

    def setConfiguration(self, value: int) -> None:
        """Choose a configuration. No interface may be claimed."""
        ioctl(self._file, _SET_CONFIGURATION, buffer(struct.pack("I", value)))

    def controlIn(
        self, kind: int, request: int, value: int, index: int, length: int, seconds: float = 5.0
    ) -> bytes:
        """A control transfer that reads.

        @param kind: C{bmRequestType}, with bit 7 set."""
        data = buffer(bytes(length))
        setup = kind, request, value, index, length
        argument = _CONTROL_TRANSFER.pack(*setup, int(seconds * 1000), ctypes.addressof(data))
        count = ioctl(self._file, _CONTROL, buffer(argument))
        return data.raw[:count]

    def bulkIn(self, endpoint: int, length: int, seconds: float = 30.0) -> bytes:
        """A bulk transfer that reads."""
        data = buffer(bytes(length))
        count = self._bulk(endpoint, data, length, seconds)
        return data.raw[:count]

    def bulkOut(self, endpoint: int, data: bytes, seconds: float = 30.0) -> int:
        """A bulk transfer that writes; returns how much."""
        return self._bulk(endpoint, buffer(data), len(data), seconds)

    def testControlQueue(self) -> None:
        """Have the driver C{usbtest} send control requests to the device.

        @raise OSError: the device has not answered as it should."""
        parameter = _USBTEST_PARAMETER.pack(_TEST_CONTROL_QUEUE, 1, 64, 0, 1, 0, 0)
        inner = buffer(parameter)
        number = _USBTEST_REQUEST - (1 << 32)  # it is declared as an int
        argument = _DRIVER_IOCTL.pack(0, number, ctypes.addressof(inner))
        ioctl(self._file, _IOCTL, buffer(argument))

    def _bulk(self, endpoint: int, data: Buffer, length: int, seconds: float) -> int:
        argument = _BULK_TRANSFER.pack(
            endpoint, length, int(seconds * 1000), ctypes.addressof(data)
        )
        return ioctl(self._file, _BULK, buffer(argument))


@contextlib.contextmanager
def locked(busId: str) -> Iterator[None]:
    """Run a process that holds the lock of a device that never answers
    (L{tests.kernel.inside.rawgadget.models.Hanging}). Only unplugging the device ends the
    process."""
    child = subprocess.Popen([sys.executable, "-m", __name__, busId], cwd=PROJECT)

    def waits() -> bool:
        if child.poll() is not None:
            raise AssertionError(f"{busId} answers")
        return isStuck(child.pid)

    try:
        waitUntil(waits, f"a process waits for {busId}")
        yield
    finally:
        stop(child)


def isStuck(process: int) -> bool:
    """Does any thread of a process wait in the kernel, in such a way that no signal ends it?

    That is state C{D} of C{/proc/PID/task/TID/stat}, twice in a row: a moment of it is nothing."""
    return bool(_stuck(process) & _stuck(process))


def _stuck(process: int) -> set[str]:
    found = set()
    for stat in Path("/proc", str(process), "task").glob("*/stat"):
        try:
            state = stat.read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state == "D":
            found.add(stat.parent.name)
    return found


def main(busId: str) -> None:
    """Wait for the device's answer, in a process of its own."""
    with UsbNode(busId) as node, contextlib.suppress(OSError):  # it is unplugged
        node.testControlQueue()


if __name__ == "__main__":
    main(*sys.argv[1:])
