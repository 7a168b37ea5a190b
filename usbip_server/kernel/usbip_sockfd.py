"""
Begins and ends the sessions of clients with C{usbip_sockfd}, an attribute of each device that is
bound to C{usbip-host} (C{store_usbip_sockfd}, C{drivers/usb/usbip/stub_dev.c}).
"""

from __future__ import annotations

import errno
import threading

from usbip_server.kernel.attributes import DEVICES, GONE, STATE_OF, USBIP_HOST, driverOf, statusOf
from usbip_server.kernel.errors import explained, requireSame
from usbip_server.kernel.system import ISystem
from usbip_server.kernel.usbip_host import UsbipHost
from usbip_server.model.device import DeviceState, UsbDevice
from usbip_server.model.errors import DeviceInUse, OperationFailed

RESET_SECONDS = 0.02
"""Between reads of the state while the device is being reset, as at the end of a session."""

LOOKS = 50
"""Reads of the state before an export fails: one second."""

END = -1
"""Written instead of a descriptor to end the session."""

PERMISSION_SECONDS = 0.05
"""Between attempts to write an attribute that this process has no permission for yet."""

PERMISSION_TRIES = 40
"""Attempts after a bind: two seconds."""


class UsbipSockfd:
    """
    The attribute of all devices. C{export} and C{release} block, without limit: call them in a
    thread. They may run at the same time for different devices.
    """

    def __init__(self, system: ISystem, host: UsbipHost) -> None:
        """
        @param host: the driver, whose lock for a device is held meanwhile.
        """
        self._system = system
        self._host = host

    def export(self, device: UsbDevice, descriptor: int, abandoned: threading.Event) -> None:
        """
        Begin the session of a client.

        @param descriptor: that of the client's connection. The kernel takes a reference.
        @param abandoned: set at the deadline: then the session is ended.
        @raise DeviceInUse: another client has imported the device, or has released it and the
            device is being reset.
        @raise OperationFailed: the session cannot begin.
        """
        busId = device.busId
        with self._host.lock(busId), explained(self._system, "export", device):
            looks = 1
            while not self._tryExport(device, descriptor, abandoned):
                if looks == LOOKS or abandoned.wait(RESET_SECONDS):
                    if self._state(busId) is DeviceState.IN_USE:
                        raise DeviceInUse(device)
                    raise OperationFailed(
                        device, f"usbip-host does not take the connection that is to have {device}"
                    )
                looks += 1
            if abandoned.is_set():
                self._write(busId, END, abandoned)
                raise OperationFailed(device, f"the export of {device} was given up")

    def _tryExport(self, device: UsbDevice, descriptor: int, abandoned: threading.Event) -> bool:
        """
        Write the descriptor if the device is bound and not in use; otherwise the kernel would log
        an error.

        @return: whether the session has begun.
        """
        requireSame(self._system, device)
        if driverOf(self._system, device.busId) != USBIP_HOST:
            raise OperationFailed(device, f"{device} is not attached: attach it first")
        self._requireReset(device)
        if self._state(device.busId) is not DeviceState.BOUND:
            return False
        try:
            self._write(device.busId, descriptor, abandoned)
        except OSError as error:
            if error.errno not in GONE | {errno.EINVAL}:
                raise
            return False  # it was imported or unbound in the meantime
        return True

    def release(self, device: UsbDevice, abandoned: threading.Event) -> None:
        """
        End the session of the client that has imported a device, and wait until it can be imported
        again.

        @param abandoned: set at the deadline.
        @raise usbip_server.kernel.errors.NotPermitted: this process may not end sessions.
        @raise OperationFailed: the session cannot be ended.
        """
        busId = device.busId
        with self._host.lock(busId), explained(self._system, "kick", device):
            requireSame(self._system, device)
            if self._state(busId) is not DeviceState.IN_USE:
                return
            try:
                self._write(busId, END, abandoned)
            except OSError as error:
                if error.errno not in GONE | {errno.EINVAL}:
                    raise  # else the session has ended in the meantime
            while self._state(busId) is DeviceState.IN_USE and not abandoned.wait(RESET_SECONDS):
                pass
            requireSame(self._system, device)
            self._requireReset(device)

    def _requireReset(self, device: UsbDevice) -> None:
        if self._state(device.busId) is DeviceState.ERROR:
            raise OperationFailed(device, f"usbip-host could not reset {device}: attach it again")

    def _state(self, busId: str) -> DeviceState | None:
        return STATE_OF.get(statusOf(self._system, busId) or 0)

    def _write(self, busId: str, descriptor: int, abandoned: threading.Event) -> None:
        """
        The kernel creates the attribute with each bind, writable by root only. For other users a
        udev rule changes that a moment later (C{data/60-usbipshare.rules}).
        """
        tries = PERMISSION_TRIES if busId in self._host.fresh else 1
        self._host.fresh.discard(busId)
        while True:
            try:
                self._system.write(f"{DEVICES}/{busId}/usbip_sockfd", b"%d" % descriptor)
                return
            except PermissionError:
                tries -= 1
                if tries == 0 or abandoned.wait(PERMISSION_SECONDS):
                    raise
