"""The facts of L{tests.kernel.facts} about C{usbip-host} on real kernels."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.kernel import guest
from tests.kernel.facts.cases import DEVICES, HostFactCase
from tests.kernel.facts.crashes import CrashFacts
from tests.kernel.facts.usbiphost import UsbipHostFacts
from usbip_server.kernel.system import ISystem, System

DEVICE = guest.KEYBOARD
OTHER = guest.SERIAL

HIGH = 3
"""C{USB_SPEED_HIGH}."""

SYS_DELETE_MODULE = 176
"""C{arch/x86/entry/syscalls/syscall_64.tbl}."""

CMD_SUBMIT = 1
URB_DMA_MAP_SG = 0x00040000
"""C{USBIP_URB_DMA_MAP_SG} (C{include/uapi/linux/usbip.h})."""

DYING = 20.0
"""Seconds within which the kernel has crashed."""

VHCI = "devices/platform/vhci_hcd.0"


class RealMachine(HostFactCase):
    """The machine that this runs in."""

    busId = DEVICE.busId

    def setUp(self) -> None:
        guest.awaitDevices()
        guest.modprobe("usbip-host")
        guest.modprobe("vhci-hcd")
        self.system = System()
        self.addCleanup(self._restore)

    def _restore(self) -> None:
        """Unload C{usbip-host}, which empties its table. Before that, devices are bound to replace
        pointers in the table to devices that are gone."""
        guest.modprobe("usbip-host")
        guest.resetUsb()
        for device in (DEVICE, OTHER):
            if device.busId in guest.matchBusIds() and self._canBind(device.busId):
                self.write(f"usbip-host/unbind={device.busId}", f"usb/bind={device.busId}")
        guest.rmmod("usbip-host")
        for device in (DEVICE, OTHER):
            guest.waitPresent(device.busId)

    def _canBind(self, busId: str) -> bool:
        self.write(f"usb/unbind={busId}")
        try:
            self.write(f"usbip-host/bind={busId}")
        except OSError:
            self.write(f"usb/bind={busId}")
            return False
        return True

    def plug(self) -> None:
        guest.plug(DEVICE)
        guest.waitPresent(self.busId)

    def unplug(self) -> None:
        guest.unplug(DEVICE)
        guest.waitGone(self.busId, DYING)

    def importForeign(self) -> str:
        self.write(f"usb/unbind={OTHER.busId}", f"usbip-host/match_busid=add {OTHER.busId}")
        self.write(f"usbip-host/bind={OTHER.busId}")
        return attachHere(self.system, OTHER, HIGH)

    def hub(self) -> str:
        busId = "usb2"
        self.addCleanup(lambda: self.write(f"usb/bind={busId}"))
        return busId

    def unload(self) -> None:
        guest.rmmod("usbip-host")

    def load(self) -> None:
        guest.modprobe("usbip-host")

    def leave(self, client: socket.socket) -> None:
        client.close()

    def breakSession(self, client: socket.socket) -> None:
        """A client asks for a scatter list without a buffer: C{stub_recv_cmd_submit}
        (C{drivers/usb/usbip/stub_rx.c}) takes that for a lack of memory."""
        number = deviceId(self.system, self.busId)
        basic = struct.pack(">5I", CMD_SUBMIT, 1, number, 1, 0)
        submit = struct.pack(">I4i8s", URB_DMA_MAP_SG, 0, 0, 0, 0, b"\x80\x06\0\x01\0\0\x12\0")
        client.sendall((basic + submit).ljust(48, b"\0"))

    def until(self, condition: Callable[[], object], what: str) -> None:
        guest.waitUntil(condition, what, 20.0)


def deviceId(system: ISystem, busId: str) -> int:
    """The number of a device in the URBs of USB/IP."""
    bus, device = (int(system.read(f"{DEVICES}/{busId}/{name}")) for name in ("busnum", "devnum"))
    return bus << 16 | device


def attachHere(system: ISystem, device: guest.Device, speed: int) -> str:
    """Import a device that is bound here, over a pair of sockets.

    @return: the bus id of what is imported."""
    server, client = socket.socketpair()
    with server, client:
        path = f"{DEVICES}/{device.busId}/usbip_sockfd"
        system.write(path, str(server.fileno()).encode())
        return attachAt(system, client, deviceId(system, device.busId), speed)


def attachAt(system: ISystem, client: socket.socket, number: int, speed: int = HIGH) -> str:
    """Import a device over a connection that its server has, and wait until its drivers have it.

    @return: the bus id of what is imported."""
    system.write(f"{VHCI}/attach", f"0 {client.fileno()} {number} {speed}".encode())
    _, busId = guest.waitImport()
    return busId


def detachAll() -> None:
    """Detach all that is imported."""
    for port in guest.imports():
        System().write(f"{VHCI}/detach", str(port).encode())


class UsbipHostTests(RealMachine, UsbipHostFacts, SynchronousTestCase):
    """Binding, unbinding, and the table."""


class CrashTests(RealMachine, CrashFacts, SynchronousTestCase):
    """Write sequences that crash the kernel."""

    def unload(self) -> None:
        """Unload the module without a new process: see L{assertDies}."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syscall(SYS_DELETE_MODULE, b"usbip_host", os.O_NONBLOCK):
            raise OSError(ctypes.get_errno(), "delete_module")

    def assertDies(self, act: Callable[[], object]) -> None:
        """Code that uses freed memory may also wait for a lock without end: then the console shows
        the blocked tasks, and the kernel is made to panic.

        User-mode Linux takes the address of the last page fault for that of a pointer of poison. If
        that was in memory of C{vmalloc} it repeats the same instruction without end (C{segv},
        C{arch/um/kernel/trap.c}) until the harness ends it: seen in two of about thirty runs, and
        not since another device is replugged before, and no process is started for the unload."""
        guest.unplug(guest.TABLET)
        guest.waitGone(guest.TABLET.busId)
        guest.plug(guest.TABLET)
        guest.waitPresent(guest.TABLET.busId)
        thread = threading.Thread(target=act, daemon=True)
        thread.start()
        thread.join(DYING)
        if thread.is_alive():
            for key in "wc":  # show tasks that are blocked; crash
                Path("/proc/sysrq-trigger").write_text(key)
        guest.waitUntil(lambda: False, "the kernel has died", DYING)
