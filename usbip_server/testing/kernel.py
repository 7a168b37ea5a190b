"""
A fake kernel in memory, with USB devices and C{usbip-host}.

It behaves as Linux 6.1 was measured to, including its faults: where Linux would crash, it raises
L{KernelBug}, also in all later calls. C{tests/kernel} runs the same conformance suite on this one
and on the real one.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import socket
import struct
import threading
from collections.abc import Iterator
from typing import NoReturn

import msgspec
from zope.interface import implementer

from usbip_server.kernel.system import ISystem
from usbip_server.model.device import HUB_CLASS, busOrder

DEVICES = "bus/usb/devices/"
DRIVERS = "bus/usb/drivers/"
BLOCK = "class/block/"
HOST = "usbip-host"

NAME_BYTES = 32
"""C{BUSID_SIZE} (C{drivers/usb/usbip/stub.h}): of a name in the table, with a NUL at its end."""

DEVICE_CLASS_AT = 4
"""Where C{bDeviceClass} is in a device descriptor (USB 2.0, 9.6.1)."""


class KernelBug(Exception):
    """
    A real kernel would have crashed.
    """


class _Device(msgspec.Struct, kw_only=True):
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
    device: _Device | None = None


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


@implementer(ISystem)
class FakeKernel:
    """
    @ivar loaded: whether C{usbip-host} is loaded.
    @ivar loadable: whether it can be loaded.
    @ivar refuse: the errno that every write fails with; 0: none.
    @ivar announces: whether uevents are sent.
    @ivar resetting: how often C{usbip_status} still shows a device as in use when its
        session has ended: until it has been reset.
    @ivar forbidding: how often C{usbip_sockfd} is not to be written after a bind: until udev
        has run its rule.
    @ivar writes: all that was written, as (path, text).
    @ivar reads: the paths that were read, and C{"connections"}.
    """

    def __init__(self, slots: int = 16) -> None:
        self.loaded = True
        self.loadable = True
        self.refuse = 0
        self.announces = True
        self.resetting = 0
        self.forbidding = 0
        self.writes: list[tuple[str, str]] = []
        self.reads: list[str] = []
        self.uevents: FakeUevents | None = None
        self._slots = slots
        self._devices: dict[str, _Device] = {}
        self._clients: list[tuple[str, int]] = []  # addresses and ports
        self._port = 40000  # of the client that came last
        self._table: dict[str, _Entry] = {}
        self._stuck: dict[str, threading.Event] = {}
        self._mute: dict[str, threading.Event] = {}
        self._numbers = 1
        self._sequence = 100
        self._life = 0  # of usbip-host
        self._dead: str | None = None

    # What tests do to the machine

    def plug(
        self,
        busId: str,
        vendorId: str = "46f4",
        productId: str = "0001",
        deviceClass: int = 0,
        interfaces: tuple[tuple[int, int, int], ...] = ((8, 6, 80),),
        speed: str = "480",
        driver: str | None = "usb",
        imported: bool = False,
        controller: str = "pci0000:00/0000:00:03.0",
        peer: str | None = None,
        **texts: str,
    ) -> None:
        """
        Plug a device in.

        @param imported: whether it is imported from another server.
        @param controller: the directory of its USB controller, below C{/sys/devices}.
        @param peer: the same port on the bus of the other speed, such as C{"usb4-port2"}.
        @param texts: C{serial}, C{manufacturer}, C{product}.
        """
        self._numbers += 1
        bus = busOrder(busId)[0]
        path = "platform/vhci_hcd.0/usb4" if imported else f"{controller}/usb{bus}"
        self._devices[busId] = _Device(
            number=self._numbers,
            descriptors=_descriptors(
                int(vendorId, 16), int(productId, 16), deviceClass, interfaces
            ),
            texts=texts,
            speed=speed,
            path=f"../../../devices/{path}/{busId}",
            peer=peer,
            driver=driver,
        )
        self._say("add", busId)
        if driver == "usb":
            self._sayConfigured(busId)
        elif driver:
            self._say("bind", busId, driver=driver)

    def unplug(self, busId: str) -> None:
        """Unplug a device."""
        device = self._devices[busId]
        if device.driver == HOST:
            self._leaveHost(busId, device)
        elif device.driver == "usb":
            self._sayDeconfigured(busId)
        del self._devices[busId]
        if device.driver is not None:
            self._say("unbind", busId)
        self._say("remove", busId)
        self.revive(busId)

    def authorize(self, busId: str, isAuthorized: bool) -> None:
        """Authorize a device, or not, as USBGuard does (C{authorized})."""
        device = self._devices[busId]
        device.isAuthorized = isAuthorized
        if device.driver == "usb":
            self._say("add" if isAuthorized else "remove", busId, ":1.0")

    def configure(self, busId: str, value: int) -> None:
        """Make another configuration active (C{bConfigurationValue})."""
        self._say("remove", busId, f":{self._devices[busId].configuration}.0")
        self._devices[busId].configuration = value
        self._say("add", busId, f":{value}.0")

    def route(self, busId: str, interface: str | None) -> None:
        """Make a device a network adapter whose interface has the default route."""
        self._devices[busId].network = interface

    def hang(self, busId: str) -> None:
        """Have the driver of a device wait for it without limit."""
        self._stuck[busId] = threading.Event()

    def revive(self, busId: str) -> None:
        """Have a device answer again."""
        for stuck in (self._stuck, self._mute):
            if busId in stuck:
                stuck.pop(busId).set()

    def mute(self, busId: str) -> None:
        """Have reads of the strings of a device block."""
        self._mute[busId] = threading.Event()

    def importDevice(self, busId: str, address: str | None = None) -> None:
        """
        Have a client import a device.

        @param address: that of the client; C{None}: its connection is not in the list.
        """
        device = self._devices[busId]
        assert device.driver == HOST and device.status == 1, "the device is not bound"
        device.client = self.connect(address) if address is not None else None
        device.status = 2

    def connect(self, address: str) -> tuple[str, int]:
        """
        Have a client connect to C{usbipd}.

        @return: its address and port, for L{disconnect}.
        """
        self._port += 1
        self._clients.append((address, self._port))
        return self._clients[-1]

    def disconnect(self, client: tuple[str, int]) -> None:
        """Have a client close its connection."""
        self._clients.remove(client)

    def releaseDevice(self, busId: str) -> None:
        """End the session of a device, without a uevent."""
        self._endSession(self._devices[busId])

    def breakDevice(self, busId: str) -> None:
        """usbip-host cannot reset it."""
        device = self._devices[busId]
        self._dropClient(device)
        device.status = 3

    def mount(self, busId: str, place: str) -> None:
        """
        It is a disk, and this machine mounts its only partition.
        """
        self._devices[busId].places.append(place)

    def unmount(self, busId: str) -> None:
        """It is not mounted any more."""
        self._devices[busId].places.clear()

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

    def close(self) -> None:
        """Close the connections of all sessions."""
        for device in self._devices.values():
            self._dropClient(device)

    # ISystem

    def read(self, path: str) -> bytes:
        self._alive()
        self.reads.append(path)
        if path == "kernel/uevent_seqnum":
            return b"%d\n" % self._sequence
        if path == f"{DRIVERS}{HOST}/match_busid":
            self._needHost(path)
            return ("".join(f"{name} " for name in self._table) + "\n").encode()
        for device in self._mounted():
            if path == f"{BLOCK}{device.disk}1/dev":
                return b"8:%d\n" % device.number
        busId, _, name = path.removeprefix(DEVICES).partition("/")
        device = self._device(busId, errno.ENOENT)
        if name in ("serial", "manufacturer", "product"):
            if busId in self._mute:
                self._mute[busId].wait()
            if name in device.texts:
                return device.texts[name].encode() + b"\n"
        elif name == "usbip_status" and device.driver == HOST:
            status = device.status
            if device.resetting:
                device.resetting -= 1
                device.status = 2 if device.resetting else 1
            return b"%d\n" % status
        elif name == "descriptors":
            return device.descriptors
        elif name in ("devnum", "busnum"):
            return b"%d\n" % (device.number if name == "devnum" else busOrder(busId)[0])
        elif name == "speed":
            return device.speed.encode() + b"\n"
        elif name == "authorized":
            return b"%d\n" % device.isAuthorized
        raise _error(errno.ENOENT, path)

    def write(self, path: str, data: bytes) -> None:
        self._alive()
        text = data.decode()
        self.writes.append((path, text))
        if self.refuse:
            raise _error(self.refuse, path)
        if path.startswith(DEVICES):
            self._writeSocket(path, text)
            return
        driver, _, attribute = path.removeprefix(DRIVERS).partition("/")
        if driver == HOST:
            self._needHost(path)
        if attribute == "match_busid":
            self._match(text)
        elif attribute == "rebind":
            self._rebind(text)
        elif attribute == "unbind":
            self._unbind(driver, text.removesuffix("\n"))
        elif attribute == "bind":
            self._bind(driver, text.removesuffix("\n"))
        else:
            raise _error(errno.ENOENT, path)

    def directories(self, path: str) -> list[str]:
        self._alive()
        paths = [
            path
            for device in self._mounted()
            for path in (
                f"{DEVICES}{device.path.rpartition('/')[2]}/1.0/host0/target0/block/{device.disk}",
                f"{BLOCK}{device.disk}/{device.disk}1",
            )
        ]
        paths += [
            f"{DEVICES}{busId}/1.0/net/{device.network}"
            for busId, device in tuple(self._devices.items())
            if device.network and device.driver == "usb"
        ]
        begin = f"{path}/"
        below = {each.removeprefix(begin) for each in paths if each.startswith(begin)}
        return sorted({each.partition("/")[0] for each in below})

    def list(self, path: str) -> list[str]:
        self._alive()
        if path == f"{DRIVERS}{HOST}":
            self._needHost(path)
            return ["bind", "match_busid", "rebind", "unbind"]
        if not path.startswith(DEVICES.rstrip("/")):
            raise _error(errno.ENOENT, path)
        devices = tuple(self._devices.items())
        interfaces = {
            busId: f"{busId}:{each.configuration}.0"
            for busId, each in devices
            if each.driver == "usb" and each.isAuthorized
        }
        busId = path.removeprefix(DEVICES)
        if busId != path:
            self._device(busId, errno.ENOENT)
            return [*([interfaces[busId]] if busId in interfaces else []), "devnum"]
        return ["usb1", "1-0:1.0", *(busId for busId, _ in devices), *interfaces.values()]

    def readlink(self, path: str) -> str:
        self._alive()
        if path.startswith("devices/"):
            return _subsystem(path)
        busId, _, name = path.removeprefix(DEVICES).partition("/")
        device = self._device(busId, errno.ENOENT)
        if not name:
            return device.path
        if name == "port/peer" and device.peer is not None:
            return f"../../../../{device.peer}"
        if name == "driver" and device.driver is not None:
            return f"../../../../bus/usb/drivers/{device.driver}"
        raise _error(errno.ENOENT, path)

    def identity(self, path: str) -> object:
        assert path == f"{DRIVERS}{HOST}", path
        self._needHost(path)
        return self._life

    def loadModule(self, name: str) -> None:
        if not self.loadable:
            raise OSError(f"modprobe: FATAL: Module {name} not found")
        self._life += not self.loaded
        self.loaded = True

    @contextlib.contextmanager
    def holdDevice(self, bus: int, number: int) -> Iterator[None]:
        found = [d for d in tuple(self._devices.values()) if d.number == number]
        if not found:
            raise _error(errno.ENOENT, f"/dev/bus/usb/{bus:03d}/{number:03d}")
        (device,) = found
        device.holds += 1
        try:
            yield
        finally:
            device.holds -= 1

    def connections(self) -> bytes:
        self._alive()
        self.reads.append("connections")
        return b"".join(_connection(address, port) for address, port in self._clients)

    def mountInfo(self) -> bytes:
        mounts = [(d, place) for d in tuple(self._devices.values()) for place in d.places]
        lines = (
            f"24 1 8:{device.number} / {place} rw - ext4 /dev/{device.disk}1 rw\n"
            for device, place in mounts
        )
        return "".join(lines).encode()

    def routes(self) -> tuple[bytes, bytes]:
        lines = ["Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT"]
        devices = tuple(self._devices.values())
        lines += [f"{d.network} 00000000 0 0003 0 0 0 00000000 0 0 0" for d in devices if d.network]
        return "".join(f"{line}\n" for line in lines).encode(), b""

    def swaps(self) -> bytes:
        return b""

    def resolve(self, path: str) -> str:
        return path

    def _mounted(self) -> Iterator[_Device]:
        devices = tuple(self._devices.values())  # a test may unplug one meanwhile
        return (d for d in devices if d.places and d.driver == "usb")

    def ueventSocket(self) -> FakeUevents:
        if not self.announces:
            raise _error(errno.EPROTONOSUPPORT, "netlink")
        self.uevents = FakeUevents()
        return self.uevents

    # usbip-host and the driver core

    def _match(self, text: str) -> None:
        verb, _, name = text.partition(" ")
        if not name or len(name) >= NAME_BYTES or verb not in ("add", "del"):
            raise _error(errno.EINVAL, "match_busid")
        entry = self._table.get(name)
        if verb == "del":
            if entry is None:
                raise _error(errno.ENODEV, "match_busid")
            if entry.state == "bound":
                entry.state = "poisoned"
        elif entry is None:
            if len(self._table) >= self._slots:
                raise _error(errno.ENOMEM, "match_busid")
            self._table[name] = _Entry()

    def _bind(self, driver: str, busId: str) -> None:
        device = self._device(busId)
        if device.driver is not None:
            raise _error(errno.EBUSY, "bind")
        if driver == HOST:
            entry = self._table.get(busId)
            if entry is None or entry.state != "added" or device.isHub:
                raise _error(errno.ENODEV, "bind")
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
            raise _error(errno.ENODEV, "unbind")
        if busId in self._stuck:
            self._stuck[busId].wait()
            if self._devices.get(busId) is not device:
                raise _error(errno.ENODEV, "unbind")
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
            raise _error(errno.ENOENT, path)
        if device.forbidding:
            device.forbidding -= 1
            raise _error(errno.EACCES, path)
        found = re.match(r"\s*(-?[0-9]+)", text)  # sscanf() looks no further
        if found is None:
            raise _error(errno.EINVAL, path)
        number = int(found[1])
        if device.status != (2 if number == -1 else 1):
            raise _error(errno.EINVAL, path)
        if number == -1:
            self._endSession(device)
            return
        device.connection = referenceTo(number, path)
        device.status = 2

    def _endSession(self, device: _Device) -> None:
        self._dropClient(device)
        device.resetting = self.resetting
        device.status = 2 if device.resetting else 1

    def _leaveHost(self, busId: str, device: _Device) -> None:
        entry = self._table.get(busId)
        if entry is None:
            self._die("kernel BUG at drivers/usb/usbip/stub_dev.c:439 (D1)")
        if entry.state == "bound":
            entry.state = "added"
        self._dropClient(device)
        device.status = device.resetting = 0

    def _dropClient(self, device: _Device) -> None:
        if device.client is not None:
            self.disconnect(device.client)
            device.client = None
        if device.connection is not None:
            with device.connection, contextlib.suppress(OSError):  # its other end is gone
                device.connection.shutdown(socket.SHUT_RDWR)
            device.connection = None

    def _rebind(self, busId: str) -> None:
        if len(busId) >= NAME_BYTES:
            raise _error(errno.EINVAL, "rebind")
        entry = self._table.get(busId)
        if entry is None:
            raise _error(errno.ENODEV, "rebind")
        if entry.device is None:
            self._die("NULL pointer dereference in do_rebind (D2)")
        self._attach(busId, entry.device)
        del self._table[busId]

    def _attach(self, busId: str, device: _Device) -> None:
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
            raise _error(errno.ENOENT, path)

    def _device(self, busId: str, otherwise: int = errno.ENODEV) -> _Device:
        if busId not in self._devices:
            raise _error(otherwise, busId)
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
        raise _error(errno.EINVAL, path) from None
    if found.type != socket.SOCK_STREAM:
        found.close()
        raise _error(errno.EINVAL, path)
    return found


def _subsystem(path: str) -> str:
    """The target of C{subsystem} in the directory of a controller, or of a bridge above it."""
    *above, name, link = path.split("/")
    if link == "subsystem" and re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", name):
        return "../../../bus/pci"
    if link == "subsystem" and above[1:2] == ["platform"] and not name.startswith("pci"):
        return "../../../bus/platform"
    raise _error(errno.ENOENT, path)


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


def _connection(address: str, port: int) -> bytes:
    """
    A line of C{/proc/net/tcp} or C{tcp6}: an established connection to C{usbipd}.
    """
    ours, theirs = (
        "".join(f"{word:08X}" for word in struct.unpack(f"={len(packed) // 4}I", packed))
        for packed in (
            ipaddress.ip_address("2001:db8::1" if ":" in address else "192.0.2.1").packed,
            ipaddress.ip_address(address).packed,
        )
    )
    line = f"   0: {ours}:0CA8 {theirs}:{port:04X} 01 00000000:00000000 02:000A2C2A 00000000"
    return f"{line}     0        0 26481 2 0000000000000000 20 4 30 10 -1\n".encode()


def _descriptors(
    vendor: int, product: int, deviceClass: int, interfaces: tuple[tuple[int, int, int], ...]
) -> bytes:
    """
    What sysfs shows in C{descriptors}: the device descriptor as the device has it, then
    the configuration (USB 2.0, 9.6).
    """
    device = struct.pack(
        "<BBHBBBBHHHBBBB", 18, 1, 0x200, deviceClass, 0, 0, 64, vendor, product, 0x100, 1, 2, 3, 1
    )
    parts = b"".join(
        struct.pack("<BBBBBBBBB", 9, 4, index, 0, 0, *triple, 0)
        for index, triple in enumerate(interfaces)
    )
    return (
        device
        + struct.pack("<BBHBBBBB", 9, 2, 9 + len(parts), len(interfaces), 1, 0, 0x80, 50)
        + parts
    )
