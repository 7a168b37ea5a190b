"""
Beginning and ending the sessions of clients: C{usbip_sockfd}, which a device has while it is
bound to C{usbip-host} (C{store_usbip_sockfd}, C{drivers/usb/usbip/stub_dev.c}).
"""

from __future__ import annotations

import errno
import threading

from usbip_server.kernel.errors import explained, requireSame
from usbip_server.kernel.scan import DEVICES, GONE, STATE_OF, USBIP_HOST, driverOf, statusOf
from usbip_server.kernel.system import ISystem
from usbip_server.kernel.usbip_host import UsbipHost
from usbip_server.model.device import DeviceState, UsbDevice
from usbip_server.model.errors import DeviceInUse, OperationFailed

RESET_SECONDS = 0.02
"""Between looks whether the device has been reset, which the end of a session begins with."""

LOOKS = 50
"""How often to look before a device that is to be exported is in use: for a second."""

END = -1
"""Written instead of a descriptor."""

PERMISSION_SECONDS = 0.05
"""Between tries to write what this process may not write yet."""

PERMISSION_TRIES = 40
"""After a bind: for two seconds."""


class UsbipSockfd:
    """
    The attribute of all devices. C{export} and C{release} block, perhaps for ever: call them
    in a thread. They may run at the same time for different devices.
    """

    def __init__(self, system: ISystem, host: UsbipHost) -> None:
        """
        @param host: the driver, which does nothing to a device meanwhile.
        """
        self._system = system
        self._host = host

    def export(self, device: UsbDevice, descriptor: int, abandoned: threading.Event) -> None:
        """
        Give a bound device to a client.

        @param descriptor: of the client's connection, in this process. The kernel takes a
            reference of its own.
        @param abandoned: set when nobody waits for that any more: then the session is ended.
        @raise DeviceInUse: another client has it, or had it and it is not reset yet.
        @raise OperationFailed: see its message.
        """
        busId = device.busId
        with self._host.lock(busId), explained(self._system, "export", device):
            looks = 1
            while not self._isGiven(device, descriptor, abandoned):
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

    def _isGiven(self, device: UsbDevice, descriptor: int, abandoned: threading.Event) -> bool:
        """
        Give it to the client, if it is there to be had. (The kernel would log each try.)
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
            return False  # somebody was quicker to take it, or to unbind it
        return True

    def release(self, device: UsbDevice, abandoned: threading.Event) -> None:
        """
        End the session of the client that has a device; it can be imported anew then.

        @param abandoned: set when nobody waits for that any more.
        @raise usbip_server.kernel.errors.NotPermitted: the session goes on.
        @raise OperationFailed: see its message.
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
                    raise  # else it has ended of itself
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
        The kernel makes the attribute anew with each bind, for root only. Where we are not root
        a rule of udev's changes that a moment later (C{data/60-usbipshare.rules}).
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
