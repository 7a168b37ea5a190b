"""
Adopts devices that are attached to this machine already: by an earlier process of the service,
which leaves them attached, or by other programs.
"""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger

from usbip_server.client.attach import Attached
from usbip_server.client.devices import RemoteDevice
from usbip_server.client.service.devices.attachments import Attachment, deviceId
from usbip_server.client.service.devices.desiredstate import DesiredAttachment
from usbip_server.client.service.devices.notifier import Notifier
from usbip_server.client.service.devices.operations import Operations
from usbip_server.client.service.devices.servers import ServerConnection
from usbip_server.client.service.devices.view import DeviceView
from usbip_server.model.device import DeviceState, UsbDevice
from usbip_server.model.errors import LocalTrouble

GRACE_SECONDS = 10.0
"""For a server to report whether a device attached at start is a desired one; after that the
device of another server is attached instead."""


class Adoption:
    """
    The devices attached at start that no server has identified yet; and a way to adopt others.

    @ivar until: when to stop waiting for servers, in seconds of the reactor's clock.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, view: DeviceView, operations: Operations, notifier: Notifier
    ) -> None:
        """
        @param reactor: provides C{IReactorTime}.
        """
        self.until = 0.0
        self._reactor = reactor
        self._view = view
        self._operations = operations
        self._notifier = notifier
        self._unidentified: list[Attached] = []

    async def start(self) -> None:
        """Find what is attached at start."""
        try:
            ports = await self._operations.ports()
            self._unidentified = [each for each in ports if each.deviceId and each.record]
        except LocalTrouble as error:
            self._log.warn("no device can be attached: {error}", error=str(error))
        self.until = self._reactor.seconds() + GRACE_SECONDS

    @property
    def isWaiting(self) -> bool:
        """May a server still identify one of them?"""
        return bool(self._unidentified) and self._reactor.seconds() < self.until

    def mayFulfil(self, desired: DesiredAttachment) -> bool:
        """May one of them turn out to be the desired device?"""
        if not self.isWaiting:
            return False
        origins = map(self._view.origin, self._unidentified)
        return any(
            origin is not None and (desired.servers is None or origin.server in desired.servers)
            for origin in origins
        )

    def identify(self) -> None:
        """Adopt those that servers identify as desired by now."""
        for attached in tuple(self._unidentified):
            origin = self._view.origin(attached)
            if origin is None:  # it is from no configured server
                self._unidentified.remove(attached)
            elif origin.isUp:
                self._unidentified.remove(attached)
                self._identify(attached, origin)

    async def portOf(self, found: RemoteDevice) -> Attached | None:
        """
        The port where another program has attached a device, if the kernel reports it.
        """
        try:
            ports = await self._operations.ports()
        except LocalTrouble:
            return None
        for attached in ports:
            origin = self._view.origin(attached)
            isOurs = any(each.isAt(attached) for each in self._view.attachments)
            if origin is None or isOurs or origin.server != found.server:
                continue
            if _isIt(attached, origin.inventory.same(found.device)):
                return attached
        return None

    def adopt(self, attached: Attached, found: RemoteDevice, desired: DesiredAttachment) -> None:
        """Keep a device attached that is attached already."""
        attachment = Attachment(
            desired=desired,
            server=found.server,
            device=found.device,
            attached=attached,
            since=self._reactor.seconds(),
            holder=found.device.holder,
        )
        self._view.attachments.add(attachment)
        self._notifier.adopted(attachment)

    def _identify(self, attached: Attached, origin: ServerConnection) -> None:
        assert attached.record is not None
        device = origin.inventory.get(attached.record.busId)
        if device is None or not _isIt(attached, device):
            return  # its session has ended, which the kernel will notice
        found = RemoteDevice(server=origin.server, device=device, raw={})
        for desired in self._view.desired:
            isFree = self._view.attachments.of(desired.name) is None
            if isFree and desired.matches(found) and desired.mayAttach(device):
                self.adopt(attached, found, desired)
                return


def _isIt(attached: Attached, device: UsbDevice | None) -> bool:
    """
    Is what is attached this device? Its server and bus id are known to be the same.
    """
    if device is None or attached.record is None or device.state is not DeviceState.IN_USE:
        return False
    return (attached.record.busId, attached.deviceId) == (device.busId, deviceId(device))
