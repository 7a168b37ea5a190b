"""
What was plugged in already when the service began: by an earlier one, mostly, which does not
take its devices with it.
"""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger

from usbip_server.client.attach import Attached
from usbip_server.client.devices import RemoteDevice
from usbip_server.client.service.devices.attachments import Attachment, Attachments, deviceId
from usbip_server.client.service.devices.desired import DesiredAttachment, DesiredAttachments
from usbip_server.client.service.devices.notifier import Notifier
from usbip_server.client.service.devices.operations import Operations
from usbip_server.client.service.devices.servers import ServerConnection, ServerPool
from usbip_server.model.device import DeviceState, UsbDevice
from usbip_server.model.errors import LocalTrouble

GRACE = 10.0
"""Seconds for a server to say whether what is plugged in is what is wanted; then another one's
device is taken."""


class Adoption:
    """
    All of them, until it is known whose they are; and what others plug in later.

    @ivar until: how long it is waited for that, by the reactor's clock.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        plugging: Operations,
        links: ServerPool,
        wants: DesiredAttachments,
        plugs: Attachments,
        telling: Notifier,
    ) -> None:
        """
        @param reactor: provides C{IReactorTime}.
        """
        self.until = 0.0
        self._reactor = reactor
        self._plugging = plugging
        self._links = links
        self._wants = wants
        self._plugs = plugs
        self._telling = telling
        self._orphans: list[Attached] = []

    async def find(self) -> None:
        """
        See what there is.
        """
        try:
            ports = await self._plugging.attached()
            self._orphans = [each for each in ports if each.deviceId and each.record]
        except LocalTrouble as error:
            self._log.warn("nothing can be plugged in: {error}", error=str(error))
        self.until = self._reactor.seconds() + GRACE

    def look(self) -> None:
        """Adopt those that are known by now to be what is wanted."""
        for orphan in tuple(self._orphans):
            link = linkOf(orphan, self._links)
            if link is None:
                self._orphans.remove(orphan)  # of no server of ours
            elif link.isUp:
                self._orphans.remove(orphan)
                self._know(orphan, link)

    @property
    def isWaiting(self) -> bool:
        """Is it waited for what a server says of one?"""
        return bool(self._orphans) and self._reactor.seconds() < self.until

    def mayHave(self, want: DesiredAttachment) -> bool:
        """May one of them be what is wanted?"""
        if not self.isWaiting:
            return False
        links = [linkOf(orphan, self._links) for orphan in self._orphans]
        return any(
            link is not None and (want.servers is None or link.server in want.servers)
            for link in links
        )

    async def at(self, found: RemoteDevice) -> Attached | None:
        """
        Where a device is plugged in, if that was somebody else, and as far as the kernel tells.
        """
        try:
            ports = await self._plugging.attached()
        except LocalTrouble:
            return None
        for attached in ports:
            link = linkOf(attached, self._links)
            isOurs = any(plug.isAt(attached) for plug in self._plugs)
            if link is None or isOurs or link.server != found.server:
                continue
            if _isIt(attached, link.inventory.same(found.device)):
                return attached
        return None

    def adopt(self, attached: Attached, found: RemoteDevice, want: DesiredAttachment) -> None:
        """Keep what is plugged in already."""
        now = self._reactor.seconds()
        plug = Attachment(want, found.server, found.device, attached, None, False, now)
        self._plugs.add(plug)
        self._telling.adopted(plug)

    def _know(self, orphan: Attached, link: ServerConnection) -> None:
        """
        Now that its server is there.
        """
        assert orphan.record is not None
        device = link.inventory.get(orphan.record.busId)
        if device is None or not _isIt(orphan, device):
            return  # its session has ended, and this machine will notice
        found = RemoteDevice(server=link.server, device=device, raw={})
        for want in self._wants:
            isFor = want.isFor(found) and want.mayHave(device)
            if isFor and self._plugs.of(want.name) is None:
                self.adopt(orphan, found, want)
                return


def linkOf(attached: Attached, links: ServerPool) -> ServerConnection | None:
    """
    To the server that something came from, as the note about it has it.
    """
    record = attached.record
    return None if record is None else links.at(record.host, record.service)


def _isIt(attached: Attached, device: UsbDevice | None) -> bool:
    """
    Is something that came from a device's server, and place there, this device?
    """
    if device is None or attached.record is None or device.state is not DeviceState.IN_USE:
        return False
    return (attached.record.busId, attached.deviceId) == (device.busId, deviceId(device))
