"""
Binds devices to the kernel's C{usbip-host} driver and unbinds them: the sequences of writes to
sysfs, and the driver's table of bus ids, which has few entries and does not free them by itself.

Some sequences of writes crash the kernel (Linux, C{drivers/usb/usbip/stub_main.c}), so the order
here must not be changed:

 - A bus id is written without a line feed: C{match_busid} would add the line feed to the name.
 - C{rebind} follows a pointer to a device that may have been freed. It is written only for an entry
   that this process has made, while the device that it was made for is held by an open descriptor
   and bound to the generic C{usb} driver.
 - A device without a driver whose bus id is in the table is being unbound by another program
   (C{usbip unbind} writes C{unbind}, C{del} and C{rebind}): it is not bound before that has ended,
   as C{rebind} of a bound device loses its entry, and the next C{unbind} then crashes the kernel.
 - C{del} is never written: an entry that is deleted while its device is bound is unusable.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections import defaultdict

import msgspec
from twisted.logger import Logger

from usbip_server.kernel.attributes import (
    DEVICES,
    GONE,
    NOT_AUTHORIZED,
    STATE_OF,
    USBIP_HOST,
    driverOf,
    isAuthorized,
    isImported,
    statusOf,
)
from usbip_server.kernel.errors import SLOTS as SLOTS
from usbip_server.kernel.errors import TableFull, explained, requireSame
from usbip_server.kernel.mounts import usesOf
from usbip_server.kernel.networks import networkUsesOf
from usbip_server.kernel.system import ISystem
from usbip_server.model.device import HUB_CLASS, DeviceState, UsbDevice, busOrder
from usbip_server.model.errors import DeviceInUse, DeviceMounted, NetworkInUse, OperationFailed


def taken(system: ISystem) -> int | None:
    """
    The number of entries in the driver's table; C{None}: the driver is not loaded.
    """
    try:
        return len(system.read(TABLE).split())
    except OSError:
        return None


SETTLE_SECONDS = 1.0
"""Time for another program that unbinds a device to come to its end (C{usbip unbind})."""

_PAUSE = 0.02

DRIVERS = "bus/usb/drivers"
TABLE = f"{DRIVERS}/{USBIP_HOST}/match_busid"


class _Slot(msgspec.Struct, frozen=True):
    """
    An entry in the table that was made by this process.

    @ivar deviceNumber: of the device that was bound with it.
    @ivar driver: the identity of the driver whose table it is: another one after a reload of the
        module.
    """

    busId: str
    deviceNumber: int
    driver: object


class UsbipHost:
    """
    The C{usbip-host} driver.

    C{bind} and C{unbind} block, without limit: call them in a thread. They may run at the same time
    for different devices.

    @ivar fresh: the bus ids of devices that were bound, and whose C{usbip_sockfd} was not written
        since.
    """

    _log = Logger()

    def __init__(self, system: ISystem) -> None:
        self.fresh: set[str] = set()
        self._system = system
        self._ours: dict[str, _Slot] = {}
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def lock(self, busId: str) -> threading.Lock:
        """
        The lock for operations on the device at a bus id.
        """
        return self._locks[busId]

    def forget(self, busId: str) -> None:
        """
        The device at a bus id was unplugged: its table entry must not be removed any more.
        """
        self._ours.pop(busId, None)
        self.fresh.discard(busId)

    def check(self, device: UsbDevice, allowMounted: bool = False) -> bool:
        """
        Check whether a device can be bound, without touching it.

        @param allowMounted: whether a disk or network adapter that this machine uses itself may be
            bound.
        @return: whether the device is bound already.
        @raise DeviceInUse: a client has imported it.
        @raise DeviceMounted: this machine uses it itself; L{NetworkInUse} if it is a network
            adapter, and no disk of it is in use.
        @raise OperationFailed: it cannot be bound for another reason.
        """
        requireSame(self._system, device)
        if isImported(self._system, device.busId):
            raise OperationFailed(
                device, f"{device} was imported from another server; it is not shared again"
            )
        if device.deviceClass == HUB_CLASS:
            raise OperationFailed(device, f"{device} is a hub; hubs are not shared")
        if not isAuthorized(self._system, device.busId):
            reason = NOT_AUTHORIZED.format(busId=device.busId)
            raise OperationFailed(device, f"cannot attach {device}: {reason}")
        if not allowMounted and (uses := usesOf(self._system, device.busId)):
            raise DeviceMounted(device, uses)
        if not allowMounted and (uses := networkUsesOf(self._system, device.busId)):
            raise NetworkInUse(device, uses)
        self._requireDriver(device)
        if driverOf(self._system, device.busId) != USBIP_HOST:
            return False
        state = STATE_OF.get(statusOf(self._system, device.busId) or 0, DeviceState.BOUND)
        if state is DeviceState.IN_USE:
            raise DeviceInUse(device)
        return state is DeviceState.BOUND

    def ensureSlot(self, device: UsbDevice) -> bool:
        """
        Check that the driver's table has room for a device.

        @return: whether the device's bus id is in the table already.
        @raise TableFull: there is no room.
        """
        names = self._names()
        if device.busId not in names and len(names) >= SLOTS:
            raise TableFull(device, names)
        return device.busId in names

    def bind(
        self, device: UsbDevice, abandoned: threading.Event, allowMounted: bool = False
    ) -> None:
        """
        Bind a device. If that fails, the device is given back to its driver.

        @param abandoned: set at the deadline: then too the device is given back.
        @param allowMounted: as in L{check}.
        @raise OperationFailed: it cannot be bound.
        """
        busId = device.busId
        with self._locks[busId]:
            with explained(self._system, "attach", device):
                if self.check(device, allowMounted):
                    return
                self._ours.pop(busId, None)
                self.ensureSlot(device)
                self.settle(device, abandoned)
            try:
                with explained(self._system, "attach", device):
                    self._take(device, abandoned)
                    self._ours[busId] = _Slot(busId, device.deviceNumber, self._identity())
                    self.fresh.add(busId)
            except OperationFailed:
                self.giveBack(busId)
                raise

    def settle(self, device: UsbDevice, abandoned: threading.Event) -> None:
        """
        Wait until no other program is unbinding the device, for L{SETTLE_SECONDS} at most.

        @param abandoned: set at the deadline, ends the wait.
        """
        for _ in range(int(SETTLE_SECONDS / _PAUSE)):
            hasDriver = driverOf(self._system, device.busId) is not None
            if hasDriver or device.busId not in self._names() or abandoned.wait(_PAUSE):
                return

    def _take(self, device: UsbDevice, abandoned: threading.Event) -> None:
        busId = device.busId
        givenUp = OperationFailed(device, f"the attach of {device} was given up")
        driver = driverOf(self._system, busId)
        if driver is not None:
            self._write(f"{DRIVERS}/{driver}/unbind", busId)
        if abandoned.is_set():
            raise givenUp
        self._bindListed(device, abandoned)
        if abandoned.is_set():
            self._write(f"{DRIVERS}/{USBIP_HOST}/unbind", busId)
            raise givenUp
        if driverOf(self._system, busId) != USBIP_HOST:
            raise OperationFailed(device, f"usbip-host did not take {device}")

    def _bindListed(self, device: UsbDevice, abandoned: threading.Event) -> None:
        """
        Write C{bind}, with the device's entry in the table. The C{rebind} of another program makes
        the entry unusable and removes it, even when it has bound the device's driver already: then
        an entry is made again.
        """
        for left in range(int(SETTLE_SECONDS / _PAUSE), -1, -1):
            if device.busId not in self._names():
                self._add(device)
            try:
                self._write(f"{DRIVERS}/{USBIP_HOST}/bind", device.busId)
                return
            except OSError as error:
                if error.errno != errno.ENODEV or not left or abandoned.wait(_PAUSE):
                    raise

    def _add(self, device: UsbDevice) -> None:
        try:
            self._write(TABLE, f"add {device.busId}")
        except OSError as error:
            if error.errno == errno.ENOMEM:
                raise TableFull(device, self._names()) from error
            raise

    def unbind(self, device: UsbDevice) -> None:
        """
        Unbind a device, and give it back to this machine's drivers. The session of a client ends.

        @raise OperationFailed: it cannot be unbound.
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
                    raise  # else another program has given it back already

    def giveBack(self, busId: str) -> None:
        """
        Give a device that has no driver back to the generic C{usb} driver.
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
        The bus ids of the table entries that this process has made.
        """
        return list(self._ours)

    def reclaim(self, busId: str) -> bool:
        """
        Remove an entry from the table, if that is certain to be safe. Blocks as long as the device
        hangs.

        @return: whether it was removed.
        """
        lock = self._locks[busId]
        slot = self._ours.get(busId)
        if slot is None or not lock.acquire(blocking=False):
            return False  # it was unplugged, or is being bound or unbound
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
