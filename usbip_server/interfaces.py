"""
The contract between a backend and the rest.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from zope.interface import Attribute, Interface

from usbip_server.model.device import Holder, Traffic, UsbDevice


class IUsbBackend(Interface):
    """
    A source of USB devices that can be shared.

    L{usbip_server.testing.BackendConformance} tests what is said here on any backend.
    """

    inventory = Attribute(
        """
        The devices known now (L{usbip_server.model.inventory.Inventory}), in bus order, kept
        current by the backend from C{start} to C{stop}. No hubs, and no devices that this
        machine has itself imported from another server.
        """
    )

    async def start() -> None:
        """
        Look at the devices and begin to follow what happens to them.

        Returns when the inventory is true. Where there can be no devices at present it
        says so in C{inventory.trouble} and returns. Called once.
        """

    async def stop() -> None:
        """
        End what C{start} began. Leaves every device as it is. Never waits for a device,
        and may be called without C{start}.
        """

    async def bind(device: UsbDevice, deadline: float, allowMounted: bool = False) -> UsbDevice:
        """
        Make a device importable.

        A device that is bound already is returned as it is, and nobody is disturbed. A
        bind that fails leaves the device with the driver it had.

        Never called twice at the same time for one bus id.

        @param device: as found in the inventory. If another one is at its bus id now,
            that is a failure.
        @param deadline: seconds after which this ends, whatever the device does.
        @param allowMounted: bind it even if it is a disk that this machine uses itself.
        @return: the device after it, as the inventory has it then.
        @raise usbip_server.model.errors.DeviceMounted: it is such a disk.
        @raise usbip_server.model.errors.DeviceInUse: a client has imported it.
        @raise usbip_server.model.errors.OperationTimedOut: it did not end within the deadline;
            the device's state is C{error} until it does.
        @raise usbip_server.model.errors.OperationFailed: anything else; the message says what
            to do.
        """

    async def unbind(device: UsbDevice, deadline: float) -> UsbDevice:
        """
        Give a device back to this machine's own drivers; a client that has imported it
        loses it.

        A device that is not bound is returned as it is. Parameters, result and errors are
        those of C{bind}, but for C{DeviceInUse} and C{DeviceMounted}.
        """

    async def release(device: UsbDevice, deadline: float) -> UsbDevice:
        """
        End the session of the client that has imported a device; the device stays bound,
        and another client may import it when this returns.

        A device that nobody has imported is returned as it is. Parameters, result and
        errors are those of C{unbind}.
        """

    async def export(
        device: UsbDevice, connection: socket.socket, holder: Holder, deadline: float
    ) -> UsbDevice:
        """
        Give a bound device to a client: what comes over its connection from now on is USB/IP
        traffic. The client has not been answered yet, and says nothing until it is.

        The backend takes a reference to the connection of its own. The caller keeps
        C{connection}, reads nothing from it and writes at most its answer; that the session
        has ended shows in the connection's being shut down.

        @param holder: whose connection it is; shown until the session has ended.
        @return: the device after it, as the inventory has it then.
        @raise usbip_server.model.errors.DeviceInUse: another client has it, or had it until now and
            it is not ready yet.
        @raise usbip_server.model.errors.OperationTimedOut: as with C{bind}.
        @raise usbip_server.model.errors.OperationFailed: it is not bound, or anything else.
        """

    async def refresh(device: UsbDevice) -> None:
        """
        Look at a device now: something has happened to it, such as the end of a session.
        """

    def traffic(device: UsbDevice) -> Traffic | None:
        """
        What the session of a device's holder has moved so far; when it has ended, what it
        had moved, until the next one begins. C{None} where that is not known. Never blocks.
        """


class IUsbBackendMaker(Interface):
    """
    A Twisted plugin that makes backends of one type.
    """

    name = Attribute("What C{backend: {type: ...}} calls it (C{str}).")

    description = Attribute("One line for C{--help} (C{str}).")

    def makeBackend(options: Mapping[str, Any], reactor: Any) -> IUsbBackend:
        """
        Make a backend, without side effects: all work waits for C{start}.

        @param options: what C{backend:} in the configuration holds beside C{type}.
        @param reactor: the reactor to use.
        @raise usbip_server.model.options.InvalidOption: an option is wrong; its path begins at
            C{options}.
        """
