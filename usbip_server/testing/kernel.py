"""
A fake kernel in memory, with USB devices and C{usbip-host}.

It behaves as Linux 6.1 was measured to, including its faults: where Linux would crash, it raises
L{KernelBug<usbip_server.testing.usbiphost.KernelBug>}, also in all later calls. C{tests/kernel}
runs the same conformance suite on this one and on the real one.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import re
import struct
import threading
from collections.abc import Iterator

from zope.interface import implementer

from usbip_server.kernel.system import ISystem
from usbip_server.model.device import busOrder
from usbip_server.testing.usbiphost import (
    DEVICES,
    DRIVERS,
    HOST,
    Device,
    FakeUevents,
    FakeUsbipHost,
    refusal,
)

BLOCK = "class/block/"


@implementer(ISystem)
class FakeKernel(FakeUsbipHost):
    """
    The interface to the kernel, and what tests do to the machine.

    @ivar loadable: whether C{usbip-host} can be loaded.
    @ivar refuse: the errno that every write fails with; 0: none.
    @ivar announces: whether uevents are sent.
    @ivar writes: all that was written, as (path, text).
    @ivar reads: the paths that were read, and C{"connections"}.
    """

    def __init__(self, slots: int = 16) -> None:
        """
        @param slots: the places of usbip-host's table.
        """
        super().__init__(slots)
        self.loadable = True
        self.refuse = 0
        self.announces = True
        self.writes: list[tuple[str, str]] = []
        self.reads: list[str] = []
        self._port = 40000  # of the client that came last
        self._mute: dict[str, threading.Event] = {}
        self._numbers = 1
        self._life = 0  # of usbip-host

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
        self._devices[busId] = Device(
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

        @return: its address and port, for C{disconnect}.
        """
        self._port += 1
        self._clients.append((address, self._port))
        return self._clients[-1]

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
        raise refusal(errno.ENOENT, path)

    def write(self, path: str, data: bytes) -> None:
        self._alive()
        text = data.decode()
        self.writes.append((path, text))
        if self.refuse:
            raise refusal(self.refuse, path)
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
            raise refusal(errno.ENOENT, path)

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
            raise refusal(errno.ENOENT, path)
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
        raise refusal(errno.ENOENT, path)

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
            raise refusal(errno.ENOENT, f"/dev/bus/usb/{bus:03d}/{number:03d}")
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

    def _mounted(self) -> Iterator[Device]:
        devices = tuple(self._devices.values())  # a test may unplug one meanwhile
        return (d for d in devices if d.places and d.driver == "usb")

    def ueventSocket(self) -> FakeUevents:
        if not self.announces:
            raise refusal(errno.EPROTONOSUPPORT, "netlink")
        self.uevents = FakeUevents()
        return self.uevents


def _subsystem(path: str) -> str:
    """The target of C{subsystem} in the directory of a controller, or of a bridge above it."""
    *above, name, link = path.split("/")
    if link == "subsystem" and re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", name):
        return "../../../bus/pci"
    if link == "subsystem" and above[1:2] == ["platform"] and not name.startswith("pci"):
        return "../../../bus/platform"
    raise refusal(errno.ENOENT, path)


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
