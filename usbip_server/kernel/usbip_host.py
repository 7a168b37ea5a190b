"""
Binding devices to the kernel's C{usbip-host} driver, and unbinding them.

Wrong orders of writes here are kernel bugs that take down USB until the next boot
(measured on Linux 6.1 and 6.12; C{drivers/usb/usbip/stub_main.c}):

  1. C{rebind} of a device that is bound destroys its table entry: the next unbind or
     unplug is a C{BUG}.
  2. C{rebind} of a bus id that was added and never bound follows a null pointer.
  3. C{rebind} of a bus id whose device was unplugged since follows a freed pointer.
  4. C{del} of a device that is bound leaves an entry that refuses every later bind.

So C{del} is not written at all, and C{rebind} is written in one place, L{UsbipHost._reclaim},
which cannot be reached without a L{_Slot}. There is a slot only for a device that we have
bound ourselves (not 2) and that has not been reported gone since; while it is reclaimed its
device can be neither bound (not 1) nor freed (not 3).
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections import defaultdict

import msgspec
from twisted.logger import Logger

from usbip_server.device import HUB_CLASS, DeviceState, UsbDevice, busOrder
from usbip_server.errors import DeviceInUse, OperationFailed
from usbip_server.kernel.scan import (
    DEVICES,
    GONE,
    STATE_OF,
    USBIP_HOST,
    driverOf,
    isImported,
    statusOf,
)
from usbip_server.kernel.system import ISystem

DRIVERS = "bus/usb/drivers"
TABLE = f"{DRIVERS}/{USBIP_HOST}/match_busid"

SLOTS = 16
"""C{MAX_BUSID} in C{drivers/usb/usbip/stub.h}; nothing can change it."""


EMPTY_TABLE = (
    "A reboot empties the table; so does `modprobe -r usbip-host && modprobe usbip-host`, but "
    "only if nothing was unplugged while it was attached, else the kernel may crash"
)
"""Unloading the module follows the same freed pointers as 3. above."""


class _Slot(msgspec.Struct, frozen=True):
    """
    An entry in the table that we made and used.

    @ivar deviceNumber: of the device that was bound with it.
    """

    busId: str
    deviceNumber: int


class UsbipHost:
    """
    The C{usbip-host} driver.

    C{bind} and C{unbind} block, perhaps for ever: call them in a thread. They may run at
    the same time for different devices.
    """

    _log = Logger()

    def __init__(self, system: ISystem) -> None:
        self._system = system
        self._ours: dict[str, _Slot] = {}
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def forget(self, busId: str) -> None:
        """
        The device at C{busId} has gone: its table entry must not be touched any more.
        """
        self._ours.pop(busId, None)

    def check(self, device: UsbDevice) -> bool:
        """
        May this device be bound, as far as can be told without touching it?

        @return: is it bound already, and to be left as it is?
        @raise DeviceInUse: a client has imported it.
        @raise OperationFailed: it may not.
        """
        self._requireSame(device)
        if isImported(self._system, device.busId):
            raise OperationFailed(
                device, f"{device} was imported from another server; it is not shared again"
            )
        if device.deviceClass == HUB_CLASS:
            raise OperationFailed(device, f"{device} is a hub; hubs are not shared")
        self._requireDriver(device)
        if driverOf(self._system, device.busId) != USBIP_HOST:
            return False
        state = STATE_OF.get(statusOf(self._system, device.busId) or 0, DeviceState.BOUND)
        if state is DeviceState.IN_USE:
            raise DeviceInUse(device)
        return state is DeviceState.BOUND

    def ensureSlot(self, device: UsbDevice) -> bool:
        """
        Make sure that there is a place in the driver's table.

        @return: is the device's bus id in it already?
        @raise OperationFailed: the table is full.
        """
        names = self._system.read(TABLE).decode("ascii", "replace").split()
        if device.busId in names:
            return True
        if len(names) < SLOTS or any(self._reclaim(slot) for slot in tuple(self._ours.values())):
            return False
        listed = ", ".join(sorted(names, key=_order))
        raise OperationFailed(
            device,
            f"all {SLOTS} places of usbip-host are taken ({listed}), and the kernel has no "
            f"more. A place stays taken when its device is detached or unplugged. {EMPTY_TABLE}",
        )

    def bind(self, device: UsbDevice, abandoned: threading.Event) -> None:
        """
        Give a device to usbip-host. If that fails it goes back to its driver.

        @param abandoned: set when nobody waits for it any more. A driver that lets go of
            the device after that gets it back.
        @raise OperationFailed: see its message.
        """
        with self._locks[device.busId]:
            if self.check(device):
                return
            self._ours.pop(device.busId, None)
            listed = self.ensureSlot(device)
            driver = driverOf(self._system, device.busId)
            try:
                if driver is not None:
                    self._write(f"{DRIVERS}/{driver}/unbind", device.busId)
                if abandoned.is_set():
                    raise OperationFailed(device, f"the attach of {device} was given up")
                if not listed:
                    self._write(TABLE, f"add {device.busId}")
                self._write(f"{DRIVERS}/{USBIP_HOST}/bind", device.busId)
                if driverOf(self._system, device.busId) != USBIP_HOST:
                    raise OperationFailed(device, f"usbip-host did not take {device}")
            except OSError as error:
                self.giveBack(device.busId)
                raise OperationFailed(device, self._explain(error, "attach", device)) from error
            except OperationFailed:
                self.giveBack(device.busId)
                raise
            self._ours[device.busId] = _Slot(device.busId, device.deviceNumber)

    def unbind(self, device: UsbDevice) -> None:
        """
        Give a device back to this machine's drivers. A client that has it loses it.

        @raise OperationFailed: see its message.
        """
        with self._locks[device.busId]:
            self._requireSame(device)
            try:
                if driverOf(self._system, device.busId) != USBIP_HOST:
                    return
                self._write(f"{DRIVERS}/{USBIP_HOST}/unbind", device.busId)
                self._write(f"{DRIVERS}/usb/bind", device.busId)
            except OSError as error:
                if driverOf(self._system, device.busId) not in (None, USBIP_HOST):
                    return  # somebody else was quicker to give it back
                raise OperationFailed(device, self._explain(error, "detach", device)) from error

    def giveBack(self, busId: str) -> None:
        """
        Give a device that has no driver to the one it ought to have.
        """
        with contextlib.suppress(OSError):
            if driverOf(self._system, busId) is not None:
                return
        try:
            self._write(f"{DRIVERS}/usb/bind", busId)
        except OSError as error:
            if error.errno not in GONE:
                self._log.error(
                    "{busId} is left without a driver: {error}. As root: "
                    "echo {busId} > /sys/bus/usb/drivers/usb/bind",
                    busId=busId,
                    error=error,
                )

    def _reclaim(self, slot: _Slot) -> bool:
        """
        Free a place in the table, if it is certain that this is safe.
        """
        lock = self._locks[slot.busId]
        if not lock.acquire(blocking=False):
            return False  # somebody is binding or unbinding it
        try:
            if driverOf(self._system, slot.busId) != "usb":
                return False
            with self._system.holdDevice(busOrder(slot.busId)[0], slot.deviceNumber):
                number = int(self._system.read(f"{DEVICES}/{slot.busId}/devnum"))
                if number != slot.deviceNumber or self._ours.pop(slot.busId, None) != slot:
                    return False
                self._write(f"{DRIVERS}/{USBIP_HOST}/rebind", slot.busId)
        except (OSError, ValueError):
            return False
        finally:
            lock.release()
        self._log.info("freed the place of {busId} in usbip-host's table", busId=slot.busId)
        return True

    def _requireSame(self, device: UsbDevice) -> None:
        try:
            number = int(self._system.read(f"{DEVICES}/{device.busId}/devnum"))
        except (OSError, ValueError):
            raise OperationFailed(device, f"{device} is gone: it was unplugged") from None
        if number != device.deviceNumber:
            raise OperationFailed(
                device, f"{device.busId} was plugged in anew a moment ago: ask again"
            )

    def _requireDriver(self, device: UsbDevice) -> None:
        try:
            self._system.list(f"{DRIVERS}/{USBIP_HOST}")
            return
        except OSError:
            pass
        try:
            self._system.loadModule(USBIP_HOST)
            self._system.list(f"{DRIVERS}/{USBIP_HOST}")
        except OSError as error:
            raise OperationFailed(
                device,
                "the kernel's usbip-host driver is not loaded, and could not be loaded "
                f"({error}). As root: modprobe usbip-host; to load it at every boot: "
                "echo usbip-host > /etc/modules-load.d/usbip-host.conf",
            ) from error
        self._log.info("loaded the kernel module usbip-host")

    def _write(self, path: str, text: str) -> None:
        self._system.write(path, text.encode("ascii"))

    def _explain(self, error: OSError, verb: str, device: UsbDevice) -> str:
        """
        What an errno of these attributes means, and what to do.
        """
        meaning = _MEANINGS.get(error.errno or 0, "the kernel refused: {error}")
        return f"cannot {verb} {device}: " + meaning.format(error=error, busId=device.busId)


_NOT_ALLOWED = (
    "no permission to write below /sys/bus/usb/drivers. Run the daemon as root, or let its "
    "user write usb/unbind, usb/bind and usbip-host/{{match_busid,bind,unbind,rebind}} there"
)

_MEANINGS = {
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EROFS: (
        "/sys is read-only here. In a container mount it writable; in a systemd unit with "
        "ProtectKernelTunables= set ReadWritePaths=/sys/bus/usb/drivers"
    ),
    errno.ENODEV: (
        "the kernel says there is no such device. If {busId} is still plugged in, another "
        f"program has left usbip-host's table entry for it unusable. {EMPTY_TABLE}"
    ),
    errno.EBUSY: "another driver took the device in the same moment: ask again",
    errno.ENOMEM: f"all {SLOTS} places of usbip-host are taken. {EMPTY_TABLE}",
    errno.ENOENT: "the usbip-host driver was unloaded: modprobe usbip-host",
}


def _order(name: str) -> tuple[int, ...]:
    try:
        return busOrder(name)
    except ValueError:
        return (0,)
