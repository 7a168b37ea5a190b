"""
From the bytes of a request of this machine's programs to the bytes of its answer
(docs/reference/client_service_api.md).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from twisted.logger import Logger

from usbip_server.client.attach import Attached
from usbip_server.client.devices import RemoteDevice
from usbip_server.client.service.acquisition import Acquisition, NotHad
from usbip_server.client.service.authorization import SocketAuthorizer
from usbip_server.client.service.devices.adoption import Adoption, linkOf
from usbip_server.client.service.devices.attachments import Attachments, placeOf
from usbip_server.client.service.devices.desired import DesiredAttachments
from usbip_server.client.service.devices.events import Item, ServiceEvents
from usbip_server.client.service.devices.operations import CannotPlug, Operations
from usbip_server.client.service.devices.reconciler import Reconciler
from usbip_server.client.service.devices.servers import Lookup, ServerPool
from usbip_server.client.service.messages import (
    LocalAttach,
    LocalCommand,
    LocalDetach,
    LocalFind,
    LocalList,
    LocalPorts,
    LocalReply,
    LocalWatch,
    aboutOne,
    decode,
    deviceFields,
    refused,
    wentWrong,
)
from usbip_server.model.errors import NotAllowed, ShareError, SnapshotNeeded
from usbip_server.model.replies import Status
from usbip_server.model.requests import DeviceRequest, WatchDevices
from usbip_server.model.selector import describe, given, matching
from usbip_server.net.caller import Caller
from usbip_server.protocols.interfaces import Response, refusal
from usbip_server.runtime.eventlog import Subscription

HINT = b"""\
usbipshare's client service plugs USB devices of other machines into this one. Ask it with a POST:

    curl --unix-socket /run/usbipshare/client.sock http://localhost -d '{"command":"list"}'
    curl -N --unix-socket /run/usbipshare/client.sock http://localhost/events

Commands: list, find, attach, detach, ports. All but the first and the last say which device with
"id", "bus", "serial" or "desc". /events tells what happens to devices, as it happens.
"""

Method = Callable[[Any, Caller], Awaitable[LocalReply]]


class LocalResponder:
    """
    Answers: see L{usbip_server.protocols.interfaces.IResponder}.

    @ivar patience: seconds for servers to be there, when the service has only just begun.
    """

    _log = Logger()

    def __init__(
        self,
        links: ServerPool,
        wants: DesiredAttachments,
        plugs: Attachments,
        keeping: Reconciler,
        plugging: Operations,
        orphans: Adoption,
        claiming: Acquisition,
        news: ServiceEvents,
        doorkeeper: SocketAuthorizer,
        save: Callable[[], None],
    ) -> None:
        """
        @param save: called when something else is wanted than before.
        """
        self.patience = 1.8
        self._links = links
        self._lookup = Lookup(links)
        self._wants = wants
        self._plugs = plugs
        self._keeping = keeping
        self._plugging = plugging
        self._orphans = orphans
        self._claiming = claiming
        self._news = news
        self._doorkeeper = doorkeeper
        self._save = save
        self._methods: dict[type[Any], Method] = {
            LocalList: self._list,
            LocalFind: self._find,
            LocalAttach: self._attach,
            LocalDetach: self._detach,
            LocalPorts: self._ports,
        }

    async def to(self, raw: bytes, caller: Caller, token: str | None = None) -> Response:
        """
        Answer one request. Never fails: whatever goes wrong is an answer too.

        @param token: of no meaning here.
        """
        command: LocalCommand | None = None
        try:
            self._doorkeeper.check(caller.principal)
            command = decode(raw)
            await self._links.settled(self.patience)
            if isinstance(command, LocalWatch):
                return self._watched(command)
            reply = await self._methods[type(command)](command, caller)
            self._note(command, reply, caller)
            return _answer(reply, bool(command.keep_alive))
        except Exception as error:
            return self._failure(error, command)

    def atOnce(self, raw: bytes, caller: Caller) -> Response | None:
        """There is nothing that needs no waiting."""
        return None

    async def watch(self, command: WatchDevices, caller: Caller) -> Response:
        """
        The same for a request to watch that came over HTTP. One that wants to go on where that
        is not possible begins anew.
        """
        try:
            self._doorkeeper.check(caller.principal)
            await self._links.settled(self.patience)
            assert isinstance(command, LocalWatch)
            try:
                return self._watched(command)
            except SnapshotNeeded:
                return self._watched(msgspec.structs.replace(command, since=None))
        except Exception as error:
            return self._failure(error, None)

    def heartbeat(self) -> bytes:
        """A line that says that we are still there, and where the events stand."""
        return self._news.heartbeat()

    async def _list(self, command: LocalList, caller: Caller) -> LocalReply:
        return self._several(self._lookup.there(command.host), bool(command.detail))

    async def _find(self, command: LocalFind, caller: Caller) -> LocalReply:
        found = self._lookup.chosen(command, command.host, self._lookup.there(command.host))
        return self._aboutOne(found, command)

    async def _attach(self, command: LocalAttach, caller: Caller) -> LocalReply:
        try:
            found = await self._claiming.attach(command, caller)
        except NotHad as error:
            return self._wentWrong(error, error.found, command)
        return self._aboutOne(found, command)

    async def _detach(self, command: LocalDetach, caller: Caller) -> LocalReply:
        servers = self._lookup.servers(command.host)
        mine = [
            RemoteDevice(server=plug.server, device=plug.device, raw={}) for plug in self._plugs
        ]
        mine += self._wants.remembered()
        there = {placeOf(each): each for each in self._links.found()}
        for each in mine:
            there.setdefault(placeOf(each), each)
        among = tuple(each for each in there.values() if servers is None or each.server in servers)
        found = self._lookup.chosen(command, command.host, among)
        plug = self._plugs.at(placeOf(found))
        requested = self._wants.requested(found)
        if plug is None and requested is None:
            others = await self._orphans.at(found)
            return self._wentWrong(CannotPlug(_notOurs(others)), found, command)
        wants = [want for want in (requested, None if plug is None else plug.want) if want]
        for want in wants:
            if want.owner not in (None, command.owner) and not command.force:
                return self._wentWrong(self._claiming.leased(want, found), found, command)
        for name in dict.fromkeys(want.name for want in wants):
            self._wants.withdraw(name)
            await self._keeping.finished(name)
        self._save()
        plug = self._plugs.at(placeOf(found))
        if plug is not None:
            try:
                await self._keeping.letGo(plug)
            except CannotPlug as error:
                return self._wentWrong(error, found, command)
        elif requested is not None and requested.owner is not None:
            await self._plugging.release(found.server, found.device.busId, requested.owner)
        return self._aboutOne(found, command)

    async def _ports(self, command: LocalPorts, caller: Caller) -> LocalReply:
        servers = self._lookup.servers(command.host)
        data = []
        for attached in await self._plugging.attached():
            fields = self._port(attached)
            if servers is None or fields["server"] in {server.name for server in servers}:
                data.append(fields)
        return LocalReply(status=Status.SUCCESS, data=data)

    def _port(self, attached: Attached) -> dict[str, Any]:
        record = attached.record
        link = linkOf(attached, self._links)
        plug = next((plug for plug in self._plugs if plug.isAt(attached)), None)
        return {
            "port": attached.port,
            "local_bus_id": attached.localBusId,
            "server": link.server.name if link else record and f"{record.host}:{record.service}",
            "bus_id": record and record.busId,
            "local_devices": attached.nodes,
            "kept": plug is not None,
            "rule": plug and plug.want.rule,
        }

    def _watched(self, command: LocalWatch) -> Response:
        servers = self._lookup.servers(command.host)
        stream = self._news.stream(command, servers)
        if stream.goesOn:
            return _answer(LocalReply(status=Status.SUCCESS, seq=stream.seq), True, stream)
        there = self._lookup.there(command.host)
        found = tuple(each for each in there if matching(command, (each.device,)))
        reply = self._several(found, bool(command.detail))
        return _answer(msgspec.structs.replace(reply, seq=stream.seq), True, stream)

    def _several(self, found: tuple[RemoteDevice, ...], detail: bool) -> LocalReply:
        return LocalReply(
            status=Status.SUCCESS,
            data=[
                deviceFields(each.device, each.server.name, self._nodes(each), detail)
                for each in found
            ],
        )

    def _aboutOne(self, found: RemoteDevice, command: DeviceRequest) -> LocalReply:
        link = self._links.of(found.server)
        now = link and link.inventory.get(found.device.busId)
        return aboutOne(
            now or found.device, found.server.name, self._nodes(found), bool(command.detail)
        )

    def _wentWrong(
        self, error: ShareError, found: RemoteDevice, command: DeviceRequest
    ) -> LocalReply:
        detail, nodes = bool(command.detail), self._nodes(found)
        return wentWrong(error, found.device, found.server.name, nodes, detail)

    def _nodes(self, found: RemoteDevice) -> tuple[str, ...]:
        plug = self._plugs.at(placeOf(found))
        return () if plug is None else plug.nodes

    def _note(self, command: LocalCommand, reply: LocalReply, caller: Caller) -> None:
        """
        What was done for somebody is logged.
        """
        if isinstance(command, LocalAttach | LocalDetach):
            self._log.info(
                "{principal} has asked to {verb} {device}: {status}",
                principal=str(caller.principal),
                verb="attach" if isinstance(command, LocalAttach) else "detach",
                device=describe(given(command)),
                status=reply.status.value,
                server=reply.server,
            )

    def _failure(self, error: Exception, command: LocalCommand | None) -> Response:
        if not isinstance(error, ShareError):
            self._log.failure("a bug in answering a request")
            return refusal("the service failed on this request: its log says more", broken=True)
        keepAlive = command is not None and bool(command.keep_alive)
        answer = _answer(refused(error), keepAlive)
        return msgspec.structs.replace(answer, forbidden=isinstance(error, NotAllowed))


def _notOurs(attached: Attached | None) -> str:
    """
    Why something cannot be detached.
    """
    if attached is None:
        return "it is not plugged in here"
    return (
        f"it is plugged in here at port {attached.port}, but not by this service: attach it first, "
        "or pull it out by what has plugged it in"
    )


def _answer(
    reply: LocalReply, keepAlive: bool, stream: Subscription[Item] | None = None
) -> Response:
    return Response(status=reply.status, encoded=reply.encode(), keepAlive=keepAlive, stream=stream)
