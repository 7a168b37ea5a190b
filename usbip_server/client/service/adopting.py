"""
What was plugged in already when the service began: by an earlier one, mostly, which does not
take its devices with it.
"""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.logger import Logger

from usbip_server.client.core.attaching import Attached
from usbip_server.client.core.devices import Found
from usbip_server.client.service.link import Link
from usbip_server.client.service.links import Links
from usbip_server.client.service.plugs import PATIENCE, Plug, Plugs, deviceId, isUsed
from usbip_server.client.service.telling import Telling
from usbip_server.client.service.wanted import Want, Wants
from usbip_server.device import DeviceState
from usbip_server.errors import LocalTrouble
from usbip_server.kernel.nodes import Nodes
from usbip_server.kernel.vhci import Vhci
from usbip_server.kernel.vhcirecords import Record, Records
from usbip_server.threads import BlockingCalls, TookTooLong

GRACE = 10.0
"""Seconds for a server to say whether what is plugged in is what is wanted; then another one's
device is taken."""


class Orphan(msgspec.Struct, frozen=True, kw_only=True):
    """
    One of those.

    @ivar deviceId: what its server calls it.
    @ivar record: where it came from.
    """

    attached: Attached
    deviceId: int
    record: Record


class Orphans:
    """
    All of them, until it is known whose they are.

    @ivar until: how long it is waited for that, by the reactor's clock.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        vhci: Vhci,
        nodes: Nodes,
        records: Records,
        calls: BlockingCalls,
        links: Links,
        wants: Wants,
        plugs: Plugs,
        telling: Telling,
    ) -> None:
        """
        @param reactor: provides C{IReactorTime}.
        """
        self.until = 0.0
        self._reactor = reactor
        self._vhci = vhci
        self._nodes = nodes
        self._records = records
        self._calls = calls
        self._links = links
        self._wants = wants
        self._plugs = plugs
        self._telling = telling
        self._orphans: list[Orphan] = []

    async def find(self) -> None:
        """
        See what there is.
        """
        try:
            self._orphans = await self._calls.call("orphans", PATIENCE, self._found)
        except (LocalTrouble, TookTooLong, RuntimeError) as error:
            self._log.warn("nothing can be plugged in: {error}", error=str(error))
        self.until = self._reactor.seconds() + GRACE

    def look(self) -> None:
        """Adopt those that are known by now to be what is wanted."""
        for orphan in tuple(self._orphans):
            link = self._linkOf(orphan)
            if link is None:
                self._orphans.remove(orphan)  # of no server of ours
            elif link.isUp:
                self._orphans.remove(orphan)
                self._adopt(orphan, link)

    @property
    def isWaiting(self) -> bool:
        """Is it waited for what a server says of one?"""
        return bool(self._orphans) and self._reactor.seconds() < self.until

    def mayHave(self, want: Want) -> bool:
        """May one of them be what is wanted?"""
        if not self.isWaiting:
            return False
        links = [self._linkOf(orphan) for orphan in self._orphans]
        return any(
            link is not None and (want.servers is None or link.server in want.servers)
            for link in links
        )

    def _found(self) -> list[Orphan]:
        found = []
        for port in self._vhci.ports():
            record = self._records.of(port.number)
            if isUsed(port) and record is not None:
                folder = self._vhci.folderOf(port)
                nodes = () if folder is None else self._nodes.of(folder)
                attached = Attached(
                    port=port.number, localBusId=port.busId, nodes=nodes, record=record
                )
                found.append(Orphan(attached=attached, deviceId=port.deviceId, record=record))
        return found

    def _linkOf(self, orphan: Orphan) -> Link | None:
        return self._links.at(orphan.record.host, orphan.record.service)

    def _adopt(self, orphan: Orphan, link: Link) -> None:
        device = link.inventory.get(orphan.record.busId)
        if (
            device is None
            or device.state is not DeviceState.IN_USE
            or deviceId(device) != orphan.deviceId
        ):
            return  # its session has ended, and this machine will notice
        found = Found(server=link.server, device=device, raw={})
        for want in self._wants:
            if self._plugs.of(want.name) is None and want.isFor(found):
                plug = Plug(
                    want, link.server, device, orphan.attached, None, False, self._reactor.seconds()
                )
                self._plugs.add(plug)
                self._telling.adopted(plug)
                return
