"""
How many of the places that C{usbip-host} has for bus ids are taken: there are few, and they are
not given back by themselves.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections import defaultdict

import msgspec
from twisted.logger import Logger

from usbip_server.kernel.errors import SLOTS as SLOTS
from usbip_server.kernel.errors import TableFull, explained, requireSame
from usbip_server.kernel.mounts import usesOf
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
from usbip_server.model.device import HUB_CLASS, DeviceState, UsbDevice, busOrder
from usbip_server.model.errors import DeviceInUse, DeviceMounted, OperationFailed


def taken(system: ISystem) -> int | None:
    """
    How many; C{None} where the driver is not loaded.
    """
    try:
        return len(system.read(TABLE).split())
    except OSError:
        return None


DRIVERS = "bus/usb/drivers"
TABLE = f"{DRIVERS}/{USBIP_HOST}/match_busid"


class _Slot(msgspec.Struct, frozen=True):
    """
    An entry in the table that we made and used.

    @ivar deviceNumber: of the device that was bound with it.
    @ivar driver: the identity of the driver whose table it is.
    """

    busId: str
    deviceNumber: int
    driver: object


class UsbipHost:
    """
    The C{usbip-host} driver.

    C{bind} and C{unbind} block, perhaps for ever: call them in a thread. They may run at the
    same time for different devices.

    @ivar fresh: the bus ids of devices that we have bound, and whose clients' sessions nobody
        has tried to begin or end since.
    """

    _log = Logger()

    def __init__(self, system: ISystem) -> None:
        self.fresh: set[str] = set()
        self._system = system
        self._ours: dict[str, _Slot] = {}
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def lock(self, busId: str) -> threading.Lock:
        """
        Held by whoever does something to the device at C{busId}.
        """
        return self._locks[busId]

    def forget(self, busId: str) -> None:
        """
        The device at C{busId} has gone: its table entry must not be touched any more.
        """
        self._ours.pop(busId, None)
        self.fresh.discard(busId)

    def check(self, device: UsbDevice, allowMounted: bool = False) -> bool:
        """
        May this device be bound, as far as can be told without touching it?

        @param allowMounted: also if it is a disk that this machine uses itself.
        @return: is it bound already, and to be left as it is?
        @raise DeviceInUse: a client has imported it.
        @raise DeviceMounted: this machine uses it itself.
        @raise OperationFailed: it may not.
        """
        requireSame(self._system, device)
        if isImported(self._system, device.busId):
            raise OperationFailed(
                device, f"{device} was imported from another server; it is not shared again"
            )
        if device.deviceClass == HUB_CLASS:
            raise OperationFailed(device, f"{device} is a hub; hubs are not shared")
        if not allowMounted and (uses := usesOf(self._system, device.busId)):
            raise DeviceMounted(device, uses)
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
        @raise TableFull: there is none.
        """
        names = self._names()
        if device.busId not in names and len(names) >= SLOTS:
            raise TableFull(device, names)
        return device.busId in names

    def bind(
        self, device: UsbDevice, abandoned: threading.Event, allowMounted: bool = False
    ) -> None:
        """
        Give a device to usbip-host. If that fails it goes back to its driver.

        @param abandoned: set when nobody waits for it any more: then too it goes back.
        @param allowMounted: see L{check}.
        @raise OperationFailed: see its message.
        """
        busId = device.busId
        with self._locks[busId]:
            with explained(self._system, "attach", device):
                if self.check(device, allowMounted):
                    return
                self._ours.pop(busId, None)
                listed = self.ensureSlot(device)
            try:
                with explained(self._system, "attach", device):
                    self._take(device, listed, abandoned)
                    self._ours[busId] = _Slot(busId, device.deviceNumber, self._identity())
                    self.fresh.add(busId)
            except OperationFailed:
                self.giveBack(busId)
                raise

    def _take(self, device: UsbDevice, listed: bool, abandoned: threading.Event) -> None:
        busId = device.busId
        givenUp = OperationFailed(device, f"the attach of {device} was given up")
        driver = driverOf(self._system, busId)
        if driver is not None:
            self._write(f"{DRIVERS}/{driver}/unbind", busId)
        if abandoned.is_set():
            raise givenUp
        if not listed:
            self._add(device)
        self._write(f"{DRIVERS}/{USBIP_HOST}/bind", busId)
        if abandoned.is_set():
            self._write(f"{DRIVERS}/{USBIP_HOST}/unbind", busId)
            raise givenUp
        if driverOf(self._system, busId) != USBIP_HOST:
            raise OperationFailed(device, f"usbip-host did not take {device}")

    def _add(self, device: UsbDevice) -> None:
        try:
            self._write(TABLE, f"add {device.busId}")
        except OSError as error:
            if error.errno == errno.ENOMEM:
                raise TableFull(device, self._names()) from error
            raise

    def unbind(self, device: UsbDevice) -> None:
        """
        Give a device back to this machine's drivers. A client that has it loses it.

        @raise OperationFailed: see its message.
        """
        busId = device.busId
        with self._locks[busId], explained(self._system, "detach", device):
            requireSame(self._system, device)
            driver = driverOf(self._system, busId)
            if driver == USBIP_HOST:
                self._write(f"{DRIVERS}/{USBIP_HOST}/unbind", busId)
            elif driver is not None:
                return
            try:
                self._write(f"{DRIVERS}/usb/bind", busId)
            except OSError:
                if driverOf(self._system, busId) in (None, USBIP_HOST):
                    raise  # else somebody was quicker to give it back

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

    def reclaimable(self) -> list[str]:
        """
        The bus ids whose places in the table can perhaps be freed.
        """
        return list(self._ours)

    def reclaim(self, busId: str) -> bool:
        """
        Free a place in the table, if it is certain that this is safe. Blocks as long as
        the device whose place it is.

        @return: is it free?
        """
        lock = self._locks[busId]
        slot = self._ours.get(busId)
        if slot is None or not lock.acquire(blocking=False):
            return False  # unplugged, or somebody is binding or unbinding it
        try:
            if driverOf(self._system, busId) != "usb" or self._identity() != slot.driver:
                return False
            with self._system.holdDevice(busOrder(busId)[0], slot.deviceNumber):
                number = int(self._system.read(f"{DEVICES}/{busId}/devnum"))
                if number != slot.deviceNumber or self._ours.pop(busId, None) != slot:
                    return False
                self._write(f"{DRIVERS}/{USBIP_HOST}/rebind", busId)
        except (OSError, ValueError):
            return False
        finally:
            lock.release()
        self._log.info("freed the place of {busId} in usbip-host's table", busId=busId)
        return True

    def _names(self) -> list[str]:
        return self._system.read(TABLE).decode("ascii", "replace").split()

    def _identity(self) -> object:
        return self._system.identity(f"{DRIVERS}/{USBIP_HOST}")

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
