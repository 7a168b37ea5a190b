"""
The interface to the kernel: sysfs, C{/proc}, netlink and modprobe. Everything else uses an
L{ISystem}, so that a test can use a directory or L{usbip_server.testing.FakeKernel} instead.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Protocol

from zope.interface import Interface, implementer

NETLINK_KOBJECT_UEVENT = 15
"""C{include/uapi/linux/netlink.h}"""

KERNEL_GROUP = 1
"""The multicast group of the kernel's own uevents; udev's are in another."""

CONNECTIONS = ("/proc/self/net/tcp", "/proc/self/net/tcp6")
"""Not C{/proc/net}, which is missing if C{/proc} is mounted with C{subset=pid}
(C{Documentation/filesystems/proc.rst}). Without IPv6 there is only the first."""

MODPROBE_SECONDS = 10

PAGE = 4096


class UeventSocket(Protocol):
    """
    The methods of a socket that uevents are received from.
    """

    def fileno(self) -> int: ...
    def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]: ...
    def close(self) -> None: ...


class ISystem(Interface):
    """
    Files below C{/sys}, and a few other interfaces of the kernel.

    All calls except C{ueventSocket} may block, some without limit: make them in a thread
    (L{usbip_server.runtime.threads}). Paths are relative to C{/sys}. Errors are C{OSError}.
    """

    def read(path: str) -> bytes:
        """The content of a file."""

    def write(path: str, data: bytes) -> None:
        """
        Write to an attribute with one write(2), without a line feed: usbip-host would take it for a
        part of a bus id.
        """

    def directories(path: str) -> list[str]:
        """The names of the directories in a directory, without symbolic links."""

    def list(path: str) -> list[str]:
        """The names in a directory."""

    def readlink(path: str) -> str:
        """The target of a symbolic link."""

    def identity(path: str) -> object:
        """
        A value that changes when a file or directory is replaced by another.
        """

    def loadModule(name: str) -> None:
        """
        Load a kernel module.

        @raise OSError: it cannot be loaded; the text states why.
        """

    def holdDevice(bus: int, number: int) -> contextlib.AbstractContextManager[None]:
        """
        A context in which the kernel does not free its structure for a device.

        @raise OSError: there is no such device.
        """

    def connections() -> bytes:
        """
        The content of C{/proc/net/tcp} and C{/proc/net/tcp6}: see
        L{usbip_server.kernel.importers.established}.
        """

    def mountInfo() -> bytes:
        """
        The mounts of this machine, in the format of proc_pid_mountinfo(5); empty if it cannot be
        read.
        """

    def routes() -> tuple[bytes, bytes]:
        """
        The content of C{/proc/net/route} and C{/proc/net/ipv6_route}; empty if it cannot be read.
        """

    def swaps() -> bytes:
        """The swap areas, in the format of proc_swaps(5); empty if it cannot be read."""

    def resolve(path: str) -> str:
        """The path below C{/dev} that a path leads to, with all symbolic links followed."""

    def ueventSocket() -> UeventSocket:
        """
        A non-blocking socket that receives the kernel's uevents.

        @raise OSError: they cannot be received.
        """


@implementer(ISystem)
class System:
    """
    The real kernel, or a directory with the same layout as C{/sys}.
    """

    def __init__(self, root: str = "/sys") -> None:
        """
        @param root: where sysfs is mounted. Any other path than C{/sys} has no uevents, and
            contains C{proc} and C{dev}.
        """
        self._root = root
        self._real = os.path.realpath(root) == "/sys"
        self._machine = "" if self._real else os.path.realpath(root)

    def read(self, path: str) -> bytes:
        # Not open(), which is slower: a scan of all devices spends most of its time here.
        descriptor = os.open(f"{self._root}/{path}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.read(descriptor, PAGE)
            # The kernel gives no more than a page at a time (fs/kernfs/file.c).
            while len(data) % PAGE == 0 and (more := os.read(descriptor, PAGE)):
                data += more
            return data
        finally:
            os.close(descriptor)

    def write(self, path: str, data: bytes) -> None:
        descriptor = os.open(os.path.join(self._root, path), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)

    def directories(self, path: str) -> list[str]:
        with os.scandir(os.path.join(self._root, path)) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]

    def list(self, path: str) -> list[str]:
        return os.listdir(os.path.join(self._root, path))

    def readlink(self, path: str) -> str:
        return os.readlink(os.path.join(self._root, path))

    def identity(self, path: str) -> object:
        status = os.stat(os.path.join(self._root, path))
        return status.st_dev, status.st_ino, status.st_ctime_ns

    def loadModule(self, name: str) -> None:
        import shutil
        import subprocess

        if not self._real:
            raise OSError(f"{self._root} is not the kernel's /sys")
        program = shutil.which("modprobe", path="/usr/sbin:/sbin:/usr/bin:/bin")
        if program is None:
            raise OSError("there is no modprobe")
        try:
            done = subprocess.run(
                [program, "--", name],
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=MODPROBE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise OSError(f"modprobe has not ended within {MODPROBE_SECONDS} s") from None
        if done.returncode != 0:
            raise OSError(done.stderr.decode(errors="replace").strip() or "modprobe failed")

    @contextlib.contextmanager
    def holdDevice(self, bus: int, number: int) -> Iterator[None]:
        # An open usbfs node holds a reference (usbdev_open, drivers/usb/core/devio.c).
        node = f"/dev/bus/usb/{bus:03d}/{number:03d}"
        descriptor = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield
        finally:
            os.close(descriptor)

    def connections(self) -> bytes:
        tables = b""
        for path in CONNECTIONS if self._real else ():
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
                tables += file.read()
        return tables

    def mountInfo(self) -> bytes:
        # ProtectHome= in a unit removes mounts on /home from the mount namespace of this process,
        # but not from that of the first process.
        return self._proc("1/mountinfo") or self._proc("self/mountinfo")

    def routes(self) -> tuple[bytes, bytes]:
        return self._proc("self/net/route"), self._proc("self/net/ipv6_route")

    def swaps(self) -> bytes:
        return self._proc("swaps")

    def _proc(self, name: str) -> bytes:
        try:
            with open(f"{self._machine}/proc/{name}", "rb") as file:
                return file.read()
        except OSError:
            return b""

    def resolve(self, path: str) -> str:
        return os.path.realpath(self._machine + path).removeprefix(self._machine)

    def ueventSocket(self) -> UeventSocket:
        if not self._real:
            raise OSError(f"{self._root} is not the kernel's /sys")
        made = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            NETLINK_KOBJECT_UEVENT,
        )
        try:
            _enlargeBuffer(made)
            made.bind((0, KERNEL_GROUP))
        except OSError:
            made.close()
            raise
        return made


def _enlargeBuffer(made: socket.socket) -> None:
    """
    A hub with many devices that is plugged in causes hundreds of messages at once.
    """
    wanted = 4 * 1024 * 1024
    forced = getattr(socket, "SO_RCVBUFFORCE", 33)  # needs CAP_NET_ADMIN
    for option in (forced, socket.SO_RCVBUF):
        with contextlib.suppress(PermissionError):
            made.setsockopt(socket.SOL_SOCKET, option, wanted)
            return
