"""
The driver core and C{usbip-host} of L{FakeKernel<usbip_server.testing.kernel.FakeKernel>}: what
writes to attributes of drivers do, and the uevents that follow.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import threading
from typing import NoReturn

import msgspec

from usbip_server.model.device import HUB_CLASS

DEVICES = "bus/usb/devices/"
DRIVERS = "bus/usb/drivers/"
HOST = "usbip-host"

NAME_BYTES = 32
"""C{BUSID_SIZE} (C{drivers/usb/usbip/stub.h}): of a name in the table, with a NUL at its end."""

DEVICE_CLASS_AT = 4
"""Where C{bDeviceClass} is in a device descriptor (USB 2.0, 9.6.1)."""


class KernelBug(Exception):
    """
    A real kernel would have crashed.
    """


class Device(msgspec.Struct, kw_only=True):
    number: int
    descriptors: bytes
    texts: dict[str, str]
    speed: str
    path: str
    peer: str | None = None
    driver: str | None = "usb"
    status: int = 0
    client: tuple[str, int] | None = None
    connection: socket.socket | None = None
    places: list[str] = msgspec.field(default_factory=list)
    resetting: int = 0
    forbidding: int = 0
    holds: int = 0
    isAuthorized: bool = True
    configuration: int = 1
    network: str | None = None

    @property
    def isHub(self) -> bool:
        """Whether it is a hub."""
        return self.descriptors[DEVICE_CLASS_AT] == int(HUB_CLASS, 16)

    @property
    def disk(self) -> str:
        """The name of its block device."""
        return f"sd{chr(ord('a') + self.number % 26)}"


class _Entry(msgspec.Struct):
    """
    An entry of C{match_busid}.

    @ivar state: as in C{drivers/usb/usbip/stub.h}.
    @ivar device: the device that its pointer refers to, which may have been unplugged.
    """

    state: str = "added"
    device: Device | None = None


class FakeUevents:
    """
    A netlink socket that the test can send messages to.
    """

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ours.setblocking(False)
        self.overrun = False

    def send(self, message: bytes) -> None:
        """Send a message; one that does not fit is lost."""
        try:
            self._theirs.send(message, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self.overrun = True

    def fileno(self) -> int:
        return self._ours.fileno()

    def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]:
        if self.overrun:
            self.overrun = False
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return self._ours.recv(size), (0, 1)

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


class FakeUsbipHost:
    """
    The devices of a machine, their drivers, and the table of C{usbip-host}.

    @ivar loaded: whether C{usbip-host} is loaded.
    @ivar resetting: how often C{usbip_status} still shows a device as in use when its
        session has ended: until it has been reset.
    @ivar forbidding: how often C{usbip_sockfd} is not to be written after a bind: until udev
        has run its rule.
    @ivar uevents: the socket that uevents are sent to.
    """

    def __init__(self, slots: int) -> None:
        self.loaded = True
        self.resetting = 0
        self.forbidding = 0
        self.uevents: FakeUevents | None = None
        self._slots = slots
        self._devices: dict[str, Device] = {}
        self._clients: list[tuple[str, int]] = []  # addresses and ports
        self._table: dict[str, _Entry] = {}
        self._stuck: dict[str, threading.Event] = {}
        self._sequence = 100
        self._dead: str | None = None

    def fillTable(self, *names: str) -> None:
        """Others have put names into usbip-host's table."""
        self._table.update({name: _Entry() for name in names})

    def driver(self, busId: str) -> str | None:
        """The driver of a device."""
        return self._devices[busId].driver

    def table(self) -> list[str]:
        """The names in usbip-host's table."""
        return list(self._table)

    def unload(self) -> None:
        """
        C{modprobe -r usbip-host}: its devices go back to their drivers, and so does what was
        unbound and has none (C{stub_device_rebind}, C{drivers/usb/usbip/stub_main.c}).
        """
        self._alive()
        for busId, device in self._devices.items():
            if device.driver == HOST:
                self._leaveHost(busId, device)
                device.driver = None
                self._say("unbind", busId)
        table, self._table = self._table, {}
        for busId, entry in table.items():
            if entry.device is not None:
                self._attach(busId, entry.device)
        self.loaded = False

    def disconnect(self, client: tuple[str, int]) -> None:
        """Have a client close its connection."""
        self._clients.remove(client)

    def _match(self, text: str) -> None:
        verb, _, name = text.partition(" ")
        if not name or len(name) >= NAME_BYTES or verb not in ("add", "del"):
            raise refusal(errno.EINVAL, "match_busid")
        entry = self._table.get(name)
        if verb == "del":
            if entry is None:
                raise refusal(errno.ENODEV, "match_busid")
            if entry.state == "bound":
                entry.state = "poisoned"
        elif entry is None:
            if len(self._table) >= self._slots:
                raise refusal(errno.ENOMEM, "match_busid")
            self._table[name] = _Entry()

    def _bind(self, driver: str, busId: str) -> None:
        device = self._device(busId)
        if device.driver is not None:
            raise refusal(errno.EBUSY, "bind")
        if driver == HOST:
            entry = self._table.get(busId)
            if entry is None or entry.state != "added" or device.isHub:
                raise refusal(errno.ENODEV, "bind")
            entry.state, entry.device, device.status = "bound", device, 1
            device.forbidding = self.forbidding
        device.driver = driver
        if driver == HOST:
            self._say("bind", busId, driver=HOST)
        else:
            self._sayConfigured(busId)

    def _unbind(self, driver: str, busId: str) -> None:
        device = self._device(busId)
        if device.driver != driver:
            raise refusal(errno.ENODEV, "unbind")
        if busId in self._stuck:
            self._stuck[busId].wait()
            if self._devices.get(busId) is not device:
                raise refusal(errno.ENODEV, "unbind")
        if driver == HOST:
            self._leaveHost(busId, device)
        else:
            self._sayDeconfigured(busId)
        device.driver = None
        self._say("unbind", busId)

    def _writeSocket(self, path: str, text: str) -> None:
        """
        C{usbip_sockfd} (C{store_usbip_sockfd}, C{drivers/usb/usbip/stub_dev.c}): the descriptor
        of a connection, or C{-1} to end the session. Nothing is read from the connection.
        """
        busId, _, name = path.removeprefix(DEVICES).partition("/")
        device = self._device(busId, errno.ENOENT)
        if name != "usbip_sockfd" or device.driver != HOST:
            raise refusal(errno.ENOENT, path)
        if device.forbidding:
            device.forbidding -= 1
            raise refusal(errno.EACCES, path)
        found = re.match(r"\s*(-?[0-9]+)", text)  # sscanf() looks no further
        if found is None:
            raise refusal(errno.EINVAL, path)
        number = int(found[1])
        if device.status != (2 if number == -1 else 1):
            raise refusal(errno.EINVAL, path)
        if number == -1:
            self._endSession(device)
            return
        device.connection = referenceTo(number, path)
        device.status = 2

    def _endSession(self, device: Device) -> None:
        self._dropClient(device)
        device.resetting = self.resetting
        device.status = 2 if device.resetting else 1

    def _leaveHost(self, busId: str, device: Device) -> None:
        entry = self._table.get(busId)
        if entry is None:
            self._die("kernel BUG at drivers/usb/usbip/stub_dev.c:439 (D1)")
        if entry.state == "bound":
            entry.state = "added"
        self._dropClient(device)
        device.status = device.resetting = 0

    def _dropClient(self, device: Device) -> None:
        if device.client is not None:
            self.disconnect(device.client)
            device.client = None
        if device.connection is not None:
            with device.connection, contextlib.suppress(OSError):  # its other end is gone
                device.connection.shutdown(socket.SHUT_RDWR)
            device.connection = None

    def _rebind(self, busId: str) -> None:
        if len(busId) >= NAME_BYTES:
            raise refusal(errno.EINVAL, "rebind")
        entry = self._table.get(busId)
        if entry is None:
            raise refusal(errno.ENODEV, "rebind")
        if entry.device is None:
            self._die("NULL pointer dereference in do_rebind (D2)")
        self._attach(busId, entry.device)
        del self._table[busId]

    def _attach(self, busId: str, device: Device) -> None:
        """
        C{do_rebind}, which calls C{device_attach}: give what an entry points to to the driver
        C{usb} if it has none.
        """
        if self._devices.get(busId) is not device:
            if not device.holds:
                self._die("use after free in do_rebind (D3)")
        elif device.driver is None:
            device.driver = "usb"
            self._sayConfigured(busId)

    def _needHost(self, path: str) -> None:
        if not self.loaded:
            raise refusal(errno.ENOENT, path)

    def _device(self, busId: str, otherwise: int = errno.ENODEV) -> Device:
        if busId not in self._devices:
            raise refusal(otherwise, busId)
        return self._devices[busId]

    def _alive(self) -> None:
        if self._dead is not None:
            raise KernelBug(self._dead)

    def _die(self, how: str) -> NoReturn:
        self._dead = how
        raise KernelBug(how)

    def _sayConfigured(self, busId: str) -> None:
        """The driver C{usb} takes a device and makes its interface."""
        self._say("add", busId, ":1.0")
        self._say("bind", busId, ":1.0")
        self._say("bind", busId, driver="usb")

    def _sayDeconfigured(self, busId: str) -> None:
        """The driver C{usb} releases a device and removes its interface."""
        self._say("unbind", busId, ":1.0")
        self._say("remove", busId, ":1.0")

    def _say(self, action: str, busId: str, interface: str = "", driver: str = "") -> None:
        self._sequence += 1
        if self.uevents is None:
            return
        kind = "usb_interface" if interface else "usb_device"
        path = f"/devices/pci0000:00/0000:00:03.0/usb1/{busId}"
        path += f"/{busId}{interface}" if interface else ""
        fields = {
            "ACTION": action,
            "DEVPATH": path,
            "SUBSYSTEM": "usb",
            "DEVTYPE": kind,
            **({"DRIVER": driver} if driver else {}),
            "SEQNUM": str(self._sequence),
        }
        lines = [f"{action}@{path}", *(f"{key}={value}" for key, value in fields.items())]
        with contextlib.suppress(OSError):  # closed
            self.uevents.send("".join(f"{line}\0" for line in lines).encode())


def referenceTo(descriptor: int, path: str) -> socket.socket:
    """
    The socket that C{sockfd_lookup} (C{net/socket.c}) finds, with another reference.
    """
    copy = -1
    try:
        copy = os.dup(descriptor)
        found = socket.socket(fileno=copy)
    except (OSError, OverflowError):
        if copy != -1:
            os.close(copy)
        raise refusal(errno.EINVAL, path) from None
    if found.type != socket.SOCK_STREAM:
        found.close()
        raise refusal(errno.EINVAL, path)
    return found


def refusal(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)
