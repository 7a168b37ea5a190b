"""
The ports of C{vhci_hcd}, the virtual host controllers that devices of other machines are attached
to (C{drivers/usb/usbip/vhci_sysfs.c}).
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Iterator

import msgspec

from usbip_server.kernel.system import ISystem
from usbip_server.model.errors import LocalTrouble

FOLDER = "devices/platform/vhci_hcd.0"
"""The folder with the attributes of all controllers."""

MODULE = "vhci-hcd"

SUPER_SPEED = 5
"""C{USB_SPEED_SUPER}: devices of this speed and faster need a port of the SuperSpeed hub."""

SUPER_MBIT = 5000
"""The C{speed} of such a hub in sysfs."""


class PortState(enum.IntEnum):
    """
    The state of a port (C{enum usbip_device_status}, C{include/uapi/linux/usbip.h}).
    """

    FREE = 4
    INITIALISING = 5
    USED = 6
    ERROR = 7


class Port(msgspec.Struct, frozen=True, kw_only=True):
    """
    A port at one moment.

    @ivar number: the number that C{usbip port} prints.
    @ivar controller: the number of its controller.
    @ivar isSuper: whether it is for devices of 5 Gbit/s and more, or for slower ones.
    @ivar place: its number on its hub, from 1.
    @ivar deviceId: the device's bus and device number at its server.
    @ivar busId: the bus id of the device on this machine; C{None}: there is none yet.
    """

    number: int
    controller: int
    isSuper: bool
    place: int
    state: PortState
    speed: int = 0
    deviceId: int = 0
    busId: str | None = None


class Vhci:
    """
    The ports of all controllers. All calls may block: make them in a thread.
    """

    def __init__(self, system: ISystem) -> None:
        self._system = system

    def require(self) -> None:
        """
        Check that devices can be attached, and load the module if necessary.

        @raise LocalTrouble: the module cannot be loaded, or this process may not attach devices.
        """
        self._requireModule()
        self._write("attach", b"")  # opens it, and writes nothing (sysfs_kf_write)

    def ports(self) -> tuple[Port, ...]:
        """
        All ports as they are now.

        @raise LocalTrouble: the module cannot be loaded, or the format of the kernel's list is
            unknown.
        """
        return tuple(self._ports())

    def port(self, number: int) -> Port | None:
        """
        One port as it is now; C{None} if there is none. Errors are those of L{ports}.
        """
        return next((port for port in self._ports() if port.number == number), None)

    def candidates(self, speed: int) -> Iterator[Port]:
        """
        The free ports for a device, except those where the kernel is still removing an earlier
        device: to attach there can dead-lock it. Each port is read when it is taken from the
        iterator.

        @param speed: as in L{usbip_server.model.usbip.Exported}.
        @raise LocalTrouble: as in L{ports}.
        """
        isSuper = speed >= SUPER_SPEED
        old: set[int] = set()
        controller = None
        for port in self._ports():
            if port.controller != controller:
                controller = port.controller
                old = self._occupied(controller, isSuper)
            if port.state is PortState.FREE and port.isSuper is isSuper and port.place not in old:
                yield port

    def attach(self, port: Port, descriptor: int, deviceId: int, speed: int) -> bool:
        """
        Attach a device.

        @param descriptor: that of the connection to its server. The kernel takes a reference.
        @return: C{False} if the port is not free any more.
        @raise LocalTrouble: the kernel refuses.
        """
        # Most kernels and their hubs support nothing faster (valid_args).
        line = f"{port.number} {descriptor} {deviceId} {min(speed, SUPER_SPEED)}"
        return self._write("attach", line.encode(), errno.EBUSY)

    def detach(self, number: int) -> bool:
        """
        Detach the device at a port.

        @return: whether there was one.
        @raise LocalTrouble: the kernel refuses.
        """
        self._requireModule()
        return self._write("detach", b"%d" % number, errno.EINVAL)

    def folderOf(self, port: Port) -> str | None:
        """
        The path below C{/sys} of the device at a port; C{None} if there is none.
        """
        for path, number, isSuper in self._hubs(port.controller):
            busId = f"{number}-{port.place}"
            if isSuper is port.isSuper and busId in self._directories(path):
                return f"{path}/{busId}"
        return None

    def _ports(self) -> Iterator[Port]:
        self._requireModule()
        for controller in range(self._controllers()):
            yield from self._portsOf(controller)

    def _occupied(self, controller: int, isSuper: bool) -> set[int]:
        """
        The places on a hub with devices, including those that are being removed, whose ports are
        free already.
        """
        return {
            int(name.removeprefix(f"{number}-"))
            for path, number, isHubSuper in self._hubs(controller)
            if isHubSuper is isSuper
            for name in self._directories(path)
            if name.removeprefix(f"{number}-").isdecimal()
        }

    def _hubs(self, controller: int) -> Iterator[tuple[str, int, bool]]:
        """
        The root hubs of a controller, C{usb3} and C{usb4}: the path, the bus number, and whether
        it is for devices of 5 Gbit/s and more.
        """
        folder = f"devices/platform/vhci_hcd.{controller}"
        for name in self._directories(folder):
            number = name.removeprefix("usb")
            if number != name and number.isdecimal():
                path = f"{folder}/{name}"
                try:
                    isSuper = int(self._system.read(f"{path}/speed")) >= SUPER_MBIT
                except (OSError, ValueError):
                    continue
                yield path, int(number), isSuper

    def _directories(self, path: str) -> list[str]:
        try:
            return self._system.directories(path)
        except OSError:
            return []

    def _requireModule(self) -> None:
        if "attach" in self._names():
            return
        try:
            self._system.loadModule(MODULE)
        except OSError as error:
            raise LocalTrouble(
                f"the kernel's {MODULE} driver is not loaded and cannot be ({error}): "
                f"sudo modprobe {MODULE} (in a container: on its host)"
            ) from error
        if "attach" not in self._names():
            raise LocalTrouble(f"{MODULE} is loaded, but there is no /sys/{FOLDER}/attach")

    def _names(self) -> list[str]:
        try:
            return self._system.list(FOLDER)
        except OSError:
            return []

    def _controllers(self) -> int:
        return sum(1 for name in self._names() if name.partition(".")[0] == "status")

    def _portsOf(self, controller: int) -> Iterator[Port]:
        """
        Parse lines of C{hub port sta spd dev sockfd local_busid}, which follow a line with these
        words (C{status_show_vhci}).
        """
        name = f"{FOLDER}/status" + (f".{controller}" if controller else "")
        places = {True: 0, False: 0}
        try:
            lines = self._system.read(name).decode("ascii").splitlines()[1:]
            for line in lines:
                hub, number, state, speed, deviceId, _, busId = line.split()
                isSuper = hub == "ss"
                places[isSuper] += 1
                yield Port(
                    number=int(number),
                    controller=controller,
                    isSuper=isSuper,
                    place=places[isSuper],
                    state=PortState(int(state)),
                    speed=int(speed),
                    deviceId=int(deviceId, 16),
                    busId=None if busId == "0-0" else busId,
                )
        except (OSError, ValueError) as error:
            raise LocalTrouble(f"/sys/{name} is not understood: {error}") from error

    def _write(self, name: str, data: bytes, benign: int = 0) -> bool:
        """
        @param benign: an errno that is not an error.
        @return: C{False} if the write has failed with that errno.
        @raise LocalTrouble: the write has failed with another one.
        """
        try:
            self._system.write(f"{FOLDER}/{name}", data)
        except OSError as error:
            if error.errno == benign:
                return False
            raise _refused(name, error) from error
        return True


def _refused(verb: str, error: OSError) -> LocalTrouble:
    if error.errno in (errno.EACCES, errno.EPERM):
        return LocalTrouble(
            f"no permission to {verb}: only root may write to /sys/{FOLDER}/{verb}, so call it "
            "with sudo"
        )
    if error.errno == errno.EROFS:
        return LocalTrouble(
            f"/sys is read-only here: a container, or a unit with ProtectKernelTunables=, "
            f"so there is nothing to {verb}"
        )
    return LocalTrouble(f"the kernel refuses to {verb}: {error.strerror or error}")
