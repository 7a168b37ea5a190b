"""
C{ioctl(2)}, without Python's lock.

C{fcntl.ioctl} keeps all other threads waiting if its argument has more than 1024 bytes, and
takes no address.
"""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)

Buffer = ctypes.Array[ctypes.c_char]


def buffer(data: bytes) -> Buffer:
    """Memory that has a copy of some bytes. It stays where it is."""
    return ctypes.create_string_buffer(data, max(len(data), 1))


def ioctl(file: int, number: int, argument: Buffer | int = 0) -> int:
    """
    Have the kernel do something.

    @param argument: its address is passed if it is a buffer.
    @return: what the kernel returns.
    @raise OSError: the kernel refuses. C{InterruptedError} if there was a signal.
    """
    value = argument if isinstance(argument, int) else ctypes.addressof(argument)
    result: int = _libc.ioctl(file, number, value)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
