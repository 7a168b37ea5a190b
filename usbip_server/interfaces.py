"""
The interface between a backend and the rest of the daemon.

L{usbip_server.testing.BackendConformance} is a test suite for this contract, for any backend.
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

    All methods are called in the reactor's thread. C{bind}, C{unbind} and C{release} are never
    called for a bus id while one of them is in progress for the same bus id; calls for different
    bus ids may overlap. Exceptions other than those listed are bugs.

    C{bind}, C{unbind}, C{release} and C{export} each return the device as it is afterwards, and the
    inventory contains that device then. Each has a deadline, in seconds: the call ends at the
    latest then, even if the device hangs. If the operation is still in progress, the call raises
    C{OperationTimedOut}, and the state of the device is C{error} until the operation has ended.
    """

    inventory = Attribute(
        """
        The devices that are present now (L{usbip_server.model.inventory.Inventory}). The backend
        updates it from C{start} to C{stop}. It contains no hubs, and no devices that this machine
        has imported from another server.
        """
    )

    async def start() -> None:
        """
        Read the devices, and begin to follow their changes. Called once.

        Returns when the inventory contains all devices. If there can be no devices at present, it
        sets C{inventory.trouble} to the reason, and returns.
        """

    async def stop() -> None:
        """
        End what C{start} has begun. The state of the devices is not changed.

        Never waits for a device. May be called without C{start}.
        """

    async def bind(device: UsbDevice, deadline: float, allowMounted: bool = False) -> UsbDevice:
        """
        Make a device importable.

        A device that is bound already is returned without being touched. If the bind fails, the
        device is given back to the driver that it had.

        @param device: the device as found in the inventory. If another device is at its bus id
            now, the call fails.
        @param deadline: in seconds.
        @param allowMounted: bind the device even if it is a disk or network adapter that this
            machine uses itself.
        @return: the device afterwards.
        @raise usbip_server.model.errors.DeviceMounted: the device is a disk that this machine uses
            itself; C{NetworkInUse}: a network adapter, which may be bound if the client insists.
        @raise usbip_server.model.errors.DeviceInUse: a client has imported the device.
        @raise usbip_server.model.errors.OperationTimedOut: the deadline has passed.
        @raise usbip_server.model.errors.OperationFailed: any other failure; the message states
            what the user can do.
        """

    async def unbind(device: UsbDevice, deadline: float) -> UsbDevice:
        """
        Give a device back to this machine's own drivers. The session of a client that has imported
        the device ends.

        A device that is not bound is returned without being touched. Parameters, result and errors
        are those of C{bind}, except for C{DeviceInUse} and C{DeviceMounted}.
        """

    async def release(device: UsbDevice, deadline: float) -> UsbDevice:
        """
        End the session of the client that has imported a device. The device stays bound, and can be
        imported again when this returns.

        A device that no client has imported is returned without being touched. Parameters, result
        and errors are those of C{unbind}.
        """

    async def export(
        device: UsbDevice, connection: socket.socket, holder: Holder, deadline: float
    ) -> UsbDevice:
        """
        Export a bound device to a client: all bytes on the client's connection are USB/IP traffic
        from now on.

        The client has not received a reply to its import request yet, and sends nothing before it.
        The backend duplicates the connection, or has the kernel take a reference. The caller may
        close C{connection} when this returns; until the session ends it reads nothing from the
        connection, and writes only the reply. The backend shuts the connection down when the
        session ends.

        @param device: as for C{bind}.
        @param connection: the connection of the client.
        @param holder: the client. Shown as C{UsbDevice.holder} until the session ends.
        @param deadline: in seconds.
        @return: the device afterwards.
        @raise usbip_server.model.errors.DeviceInUse: another client has imported the device, or its
            session has ended and the device is not ready yet.
        @raise usbip_server.model.errors.OperationTimedOut: the deadline has passed.
        @raise usbip_server.model.errors.OperationFailed: the device is not bound, or any other
            failure.
        """

    async def refresh(device: UsbDevice) -> None:
        """
        Read the state of a device now, and update the inventory: called when the state has changed
        without the backend noticing, as at the end of a session.
        """

    def traffic(device: UsbDevice) -> Traffic | None:
        """
        The bytes of the session of a device's holder; after the session has ended, those of the
        last session, until the next begins. C{None}: not known. Never blocks.
        """


class IHasSlots(Interface):
    """
    A backend that can bind only so many devices. Optional.
    """

    slots = Attribute("How many (C{int}).")

    async def usedSlots() -> int | None:
        """
        The number of places that are taken now; C{None}: not known.
        """


class IUsbBackendMaker(Interface):
    """
    A Twisted plugin that makes backends of one type. An installed package provides one in a module
    of C{twisted/plugins/}.
    """

    name = Attribute("The C{type} in the configuration: C{backend: {type: NAME}} (C{str}).")

    description = Attribute("One line for C{--help} (C{str}).")

    def makeBackend(options: Mapping[str, Any], reactor: Any) -> IUsbBackend:
        """
        Make a backend. Has no side effects: everything else is done by C{start}.

        @param options: the keys of C{backend:} in the configuration, without C{type}.
        @param reactor: the reactor to use.
        @raise usbip_server.model.options.InvalidOption: an option is wrong. Its path begins at
            C{options}.
        """
