"""
A fake kernel in memory, with C{vhci_hcd}.

It behaves as Linux 6.1 was measured to. It neither reads from the connection of a device nor
writes to it; the end of a connection is noticed at the next call.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import socket
from collections.abc import Iterator, Mapping

import msgspec
from zope.interface import implementer

from usbip_server.kernel.system import ISystem, UeventSocket
from usbip_server.testing.usbiphost import KernelBug, referenceTo

PLATFORM = "devices/platform/"
ATTRIBUTES = f"{PLATFORM}vhci_hcd.0/"

FREE, INITIALISING, USED, ERROR = 4, 5, 6, 7
"""C{VDEV_ST_NULL}, C{VDEV_ST_NOTASSIGNED}, C{VDEV_ST_USED} and C{VDEV_ST_ERROR}
(C{include/uapi/linux/usbip.h})."""

SUPER = 5
"""C{USB_SPEED_SUPER}."""

FIRST_BUS = 3

Files = Mapping[str, bytes]
"""The files in a device's folder: contents by path, in which C{*} stands for the bus id."""

SERIAL_PORT: Files = {
    "dev": b"189:1\n",
    "uevent": b"DEVNAME=bus/usb/003/002\nDEVTYPE=usb_device\n",
    "*:1.0/bInterfaceClass": b"ff\n",
    "*:1.0/uevent": b"DEVTYPE=usb_interface\n",
    "*:1.0/ttyUSB0/uevent": b"DRIVER=ftdi_sio\n",
    "*:1.0/ttyUSB0/tty/ttyUSB0/dev": b"188:0\n",
    "*:1.0/ttyUSB0/tty/ttyUSB0/uevent": b"MAJOR=188\nMINOR=0\nDEVNAME=ttyUSB0\n",
}

DISK: Files = {
    "*:1.0/bInterfaceClass": b"08\n",
    "*:1.0/host2/target2:0:0/2:0:0:0/block/sda/dev": b"8:0\n",
    "*:1.0/host2/target2:0:0/2:0:0:0/block/sda/uevent": b"DEVNAME=sda\nDEVTYPE=disk\n",
    "*:1.0/host2/target2:0:0/2:0:0:0/block/sda/sda1/dev": b"8:1\n",
    "*:1.0/host2/target2:0:0/2:0:0:0/block/sda/sda1/uevent": b"DEVNAME=sda1\nPARTN=1\n",
    "*:1.0/host2/target2:0:0/2:0:0:0/bsg/2:0:0:0/dev": b"251:0\n",
    "*:1.0/host2/target2:0:0/2:0:0:0/bsg/2:0:0:0/uevent": b"DEVNAME=bsg/2:0:0:0\n",
    "*:1.0/host2/target2:0:0/2:0:0:0/scsi_generic/sg0/dev": b"21:0\n",
    "*:1.0/host2/target2:0:0/2:0:0:0/scsi_generic/sg0/uevent": b"DEVNAME=sg0\n",
}


class _Port(msgspec.Struct, kw_only=True):
    """
    @ivar busId: that of the device at the port, or of the one that is being removed.
    @ivar enumerating: how many reads of the status are left until the bus id is shown.
    @ivar appearing: how many reads of the hub's folder are left until the device's appears in it.
    @ivar probing: how many reads of the device's folder are left until its drivers are bound.
    @ivar lingering: how many reads of the hub's folder are left until a detached device's
        disappears from it.
    """

    number: int
    controller: int
    isSuper: bool
    busId: str
    state: int = FREE
    speed: int = 0
    deviceId: int = 0
    descriptor: int = 0
    connection: socket.socket | None = None
    files: Files = {}
    enumerating: int = 0
    appearing: int = 0
    probing: int = 0
    lingering: int = 0

    @property
    def isThere(self) -> bool:
        """Whether the folder of a device exists."""
        return (self.state == USED and not self.appearing) or self.lingering > 0


@implementer(ISystem)
class FakeVhci:
    """
    @ivar loaded: whether C{vhci_hcd} is loaded.
    @ivar loadable: whether it can be loaded.
    @ivar refuse: the errno that every write fails with; 0: none.
    @ivar becomes: the files of the device that is attached next.
    @ivar enumerating: the number of reads of the status until a new device has its bus id.
    @ivar appearing: the number of reads of a hub's folder, after that, until the folder of a new
        device appears in it.
    @ivar probing: the number of reads of a new device's folder until its interfaces have drivers.
    @ivar lingering: the number of reads of a hub's folder until the folder of a detached device
        disappears from it. An attach at the port before that dead-locks (D12).
    @ivar writes: all writes, as (name, text).
    @ivar reads: the files that were read.
    """

    def __init__(self, controllers: int = 2, ports: int = 3) -> None:
        """
        @param ports: the number of ports of each hub.
        """
        self.loaded = True
        self.loadable = True
        self.refuse = 0
        self.becomes: Files = SERIAL_PORT
        self.enumerating = 0
        self.appearing = 0
        self.probing = 0
        self.lingering = 0
        self.writes: list[tuple[str, str]] = []
        self.reads: list[str] = []
        self._dead: str | None = None
        self._each = ports
        self._ports = [
            _Port(
                number=2 * ports * controller + ports * isSuper + place,
                controller=controller,
                isSuper=bool(isSuper),
                busId=f"{FIRST_BUS + 2 * controller + isSuper}-{place + 1}",
            )
            for controller in range(controllers)
            for isSuper in (0, 1)
            for place in range(ports)
        ]

    # What tests do to the machine

    def used(self) -> dict[int, str]:
        """The bus ids of the devices, by port."""
        self._notice()
        return {port.number: port.busId for port in self._ports if port.state == USED}

    def states(self) -> dict[int, int]:
        """The states of the ports that are not free."""
        self._notice()
        return {port.number: port.state for port in self._ports if port.state != FREE}

    def connection(self, number: int) -> socket.socket:
        """The kernel's reference to the connection of the device at a port."""
        connection = self._ports[number].connection
        assert connection is not None, "there is no device"
        return connection

    def lose(self, number: int) -> None:
        """Have the kernel give a device up, as after invalid data."""
        self._ports[number].state = ERROR

    def close(self) -> None:
        """End all sessions."""
        for port in self._ports:
            self._free(port)

    # ISystem

    def read(self, path: str) -> bytes:
        self._alive()
        self.reads.append(path)
        name = path.removeprefix(ATTRIBUTES)
        if re.fullmatch(r"status(\.[1-9][0-9]*)?", name):
            return self._status(int(name.partition(".")[2] or 0), path)
        files = self._tree()
        if path not in files:
            raise _error(errno.ENOENT, path)
        return files[path]

    def write(self, path: str, data: bytes) -> None:
        self._alive()
        name = path.removeprefix(ATTRIBUTES)
        if not self.loaded or name not in ("attach", "detach"):
            raise _error(errno.ENOENT, path)
        if self.refuse:
            raise _error(self.refuse, path)
        if not data:
            return  # that opens it, and no more
        self.writes.append((name, data.decode()))
        self._notice()
        if name == "attach":
            self._attach(data.decode(), path)
        else:
            self._detach(data.decode(), path)

    def directories(self, path: str) -> list[str]:
        below = self._below(path)
        self._timePasses(path)
        return sorted({name.partition("/")[0] for name in below if "/" in name})

    def list(self, path: str) -> list[str]:
        return sorted({name.partition("/")[0] for name in self._below(path)})

    def loadModule(self, name: str) -> None:
        if not self.loadable:
            raise OSError(f"modprobe: FATAL: Module {name} not found")
        self.loaded = True

    def readlink(self, path: str) -> str:
        raise _error(errno.ENOENT, path)

    def identity(self, path: str) -> object:
        raise _error(errno.ENOENT, path)

    def holdDevice(self, bus: int, number: int) -> contextlib.AbstractContextManager[None]:
        raise _error(errno.ENOENT, f"/dev/bus/usb/{bus:03d}/{number:03d}")

    def connections(self) -> bytes:
        return b""

    def mountInfo(self) -> bytes:
        return b""

    def routes(self) -> tuple[bytes, bytes]:
        return b"", b""

    def swaps(self) -> bytes:
        return b""

    def resolve(self, path: str) -> str:
        return path

    def ueventSocket(self) -> UeventSocket:
        raise _error(errno.EPROTONOSUPPORT, "netlink")

    # vhci_hcd

    def _attach(self, text: str, path: str) -> None:
        """
        C{attach_store}: the speed selects the hub, not the number of the port.
        """
        found = re.match(r"\s*([0-9]+)\s+([0-9]+)\s+([0-9]+)\s+([0-9]+)", text)
        if found is None:  # sscanf() looks no further
            raise _error(errno.EINVAL, path)
        number, descriptor, deviceId, speed = map(int, found.groups())
        if not 1 <= speed <= SUPER or number >= len(self._ports):
            raise _error(errno.EINVAL, path)
        base = number - number % (2 * self._each)
        port = self._ports[base + self._each * (speed == SUPER) + number % self._each]
        connection = referenceTo(descriptor, path)
        if port.state != FREE:
            connection.close()
            raise _error(errno.EBUSY, path)
        if port.lingering:
            connection.close()
            self._dead = "the hub's worker waits for itself (D12)"
            self._alive()
        port.state, port.speed, port.deviceId = INITIALISING, speed, deviceId
        port.connection, port.descriptor, port.files = connection, descriptor, self.becomes
        port.enumerating, port.appearing = self.enumerating, self.appearing
        port.probing = self.probing
        self._enumerate(port)

    def _detach(self, text: str, path: str) -> None:
        text = text.removesuffix("\n")
        if not text.isdecimal() or int(text) >= len(self._ports):
            raise _error(errno.EINVAL, path)
        port = self._ports[int(text)]
        if port.state == FREE:
            raise _error(errno.EINVAL, path)
        self._free(port)

    def _free(self, port: _Port) -> None:
        """
        C{vhci_shutdown_connection}: shuts the connection down for all duplicates.
        """
        if port.connection is not None:
            with port.connection, contextlib.suppress(OSError):  # its other end is gone
                port.connection.shutdown(socket.SHUT_RDWR)
            port.connection = None
        port.lingering = self.lingering if port.isThere else 0
        port.state = FREE

    def _notice(self) -> None:
        """
        Free the ports whose connections have ended.
        """
        poll = select.poll()
        for port in self._ports:
            if port.connection is not None:
                poll.register(port.connection, select.POLLRDHUP)
        over = {descriptor for descriptor, _ in poll.poll(0)}
        for port in self._ports:
            if port.connection is not None and port.connection.fileno() in over:
                self._free(port)

    def _enumerate(self, port: _Port) -> None:
        if port.state == INITIALISING and not port.enumerating:
            port.state = USED

    def _status(self, controller: int, path: str) -> bytes:
        """
        C{status_show_vhci}.
        """
        self._notice()
        ports = [port for port in self._ports if port.controller == controller]
        if not ports or not self.loaded:
            raise _error(errno.ENOENT, path)
        lines = ["hub port sta spd dev      sockfd local_busid"]
        for port in ports:
            hub = "ss" if port.isSuper else "hs"
            line = f"{hub}  {port.number:04d} {port.state:03d} "
            if port.state == USED:
                line += f"{port.speed:03d} {port.deviceId:08x} {port.descriptor:06d} {port.busId}"
            else:
                line += "000 00000000 000000 0-0"
            lines.append(line)
            port.enumerating = max(0, port.enumerating - 1)
            self._enumerate(port)
        return "".join(f"{line}\n" for line in lines).encode()

    def _below(self, path: str) -> set[str]:
        self._alive()
        begin = f"{path}/"
        below = {name.removeprefix(begin) for name in self._tree() if name.startswith(begin)}
        if not below:
            raise _error(errno.ENOENT, path)
        return below

    def _timePasses(self, path: str) -> None:
        """
        Count a read of a folder.
        """
        for port in self._ports:
            if path == self._hub(port):
                port.lingering = max(0, port.lingering - 1)
                if port.state == USED:
                    port.appearing = max(0, port.appearing - 1)
            elif path == f"{self._hub(port)}/{port.busId}":
                port.probing = max(0, port.probing - 1)

    def _tree(self) -> dict[str, bytes]:
        """
        All files by path.
        """
        self._notice()
        if not self.loaded:
            return {}
        controllers = {port.controller for port in self._ports}
        names = ("attach", "detach", "nports", *map(_statusName, controllers))
        files = {f"{ATTRIBUTES}{name}": b"" for name in names}
        files[f"{ATTRIBUTES}nports"] = b"%d\n" % len(self._ports)
        for port in self._ports:
            files[f"{self._hub(port)}/speed"] = b"5000\n" if port.isSuper else b"480\n"
            files |= self._filesOf(port)
        return files

    def _filesOf(self, port: _Port) -> Iterator[tuple[str, bytes]]:
        """
        The files of the device at a port.
        """
        if not port.isThere:
            return
        folder = f"{self._hub(port)}/{port.busId}"
        yield f"{folder}/speed", {SUPER: b"5000\n", 3: b"480\n"}.get(port.speed, b"12\n")
        for name, content in port.files.items():
            if not port.probing or name.count("/") < 2:
                yield f"{folder}/{name.replace('*', port.busId)}", content

    def _hub(self, port: _Port) -> str:
        return f"{PLATFORM}vhci_hcd.{port.controller}/usb{port.busId.partition('-')[0]}"

    def _alive(self) -> None:
        if self._dead is not None:
            raise KernelBug(self._dead)


def _statusName(controller: int) -> str:
    return f"status.{controller}" if controller else "status"


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)
