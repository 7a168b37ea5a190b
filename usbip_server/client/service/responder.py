"""
From the bytes of a local program's request to the bytes of its reply
(docs/reference/client_service_api.md).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from twisted.logger import Logger

from usbip_server.client.attach import Attached
from usbip_server.client.devices import RemoteDevice
from usbip_server.client.service.acquisition import Acquisition, Release, RequestFailed
from usbip_server.client.service.authorization import SocketAuthorizer
from usbip_server.client.service.devices.events import ServiceEvent, ServiceEvents
from usbip_server.client.service.devices.operations import Operations
from usbip_server.client.service.devices.view import DeviceView
from usbip_server.client.service.messages import (
    LocalAttach,
    LocalCommand,
    LocalDetach,
    LocalFind,
    LocalList,
    LocalPorts,
    LocalReply,
    LocalWatch,
    decode,
    deviceReply,
    errorReply,
    listItem,
)
from usbip_server.model.criteria import describe, given
from usbip_server.model.errors import InvalidRequest, NotAllowed, ShareError, SnapshotNeeded
from usbip_server.model.policy import Principal
from usbip_server.model.replies import Status
from usbip_server.model.requests import DeviceRequest, WatchDevices
from usbip_server.net.caller import Caller
from usbip_server.protocols.interfaces import Response, refusal
from usbip_server.runtime.eventlog import Subscription

HINT = b"""\
usbipshare's client service attaches USB devices of other machines to this one. Use POST:

    curl --unix-socket /run/usbipshare/client.sock http://localhost -d '{"command":"list"}'
    curl -N --unix-socket /run/usbipshare/client.sock http://localhost/events

Commands: list, find, attach, detach, ports. "find", "attach" and "detach" select a device by "id",
"bus", "serial", "desc" or "path". /events sends the events of devices.
"""

FIRST_SECONDS = 1.8
"""For servers to be connected to, when the service has just started."""

WRITTEN_SECONDS = 1.0
"""For a change to be in the state file, before the reply to the request that caused it."""

Method = Callable[[Any, Caller], Awaitable[LocalReply]]


class LocalResponder:
    """
    Implements L{usbip_server.protocols.interfaces.IResponder}: authorizes, dispatches, replies.
    """

    _log = Logger()

    def __init__(
        self,
        view: DeviceView,
        acquisition: Acquisition,
        release: Release,
        operations: Operations,
        events: ServiceEvents,
        authorizer: SocketAuthorizer,
    ) -> None:
        self._view = view
        self._acquisition = acquisition
        self._release = release
        self._operations = operations
        self._events = events
        self._authorizer = authorizer
        self._methods: dict[type[Any], Method] = {
            LocalList: self._list,
            LocalFind: self._find,
            LocalAttach: self._attach,
            LocalDetach: self._detach,
            LocalPorts: self._ports,
        }

    async def to(self, raw: bytes, caller: Caller, token: str | None = None) -> Response:
        """
        @param token: ignored: the socket identifies the caller.
        """
        command: LocalCommand | None = None
        try:
            self._authorizer.check(caller.principal)
            command = decode(raw)
            await self._view.servers.tried(FIRST_SECONDS)
            if isinstance(command, LocalWatch):
                return self._watch(command)
            reply = await self._methods[type(command)](command, caller)
            if isinstance(command, LocalAttach | LocalDetach):
                await self._view.desired.written(WRITTEN_SECONDS)
            self._audit(command, reply, caller)
            return _response(reply, bool(command.keep_alive))
        except Exception as error:
            return self._failure(error, command)

    def atOnce(self, raw: bytes, caller: Caller) -> Response | None:
        return None

    async def watch(self, command: WatchDevices, caller: Caller) -> Response:
        """
        C{GET /events}. A client that cannot resume gets a new snapshot.
        """
        try:
            self._authorizer.check(caller.principal)
            await self._view.servers.tried(FIRST_SECONDS)
            assert isinstance(command, LocalWatch)
            try:
                return self._watch(command)
            except SnapshotNeeded:
                return self._watch(msgspec.structs.replace(command, since=None))
        except Exception as error:
            return self._failure(error, None)

    def refuse(self, error: NotAllowed, caller: Caller) -> Response:
        return self._failure(error, None)

    def hasRights(self, principal: Principal) -> bool:
        try:
            self._authorizer.check(principal)
        except NotAllowed:
            return False
        return True

    def heartbeat(self, isNumbered: bool = True) -> bytes:
        return self._events.heartbeat(isNumbered)

    async def _list(self, command: LocalList, caller: Caller) -> LocalReply:
        return self._listReply(self._view.devices(command.host), bool(command.detail))

    async def _find(self, command: LocalFind, caller: Caller) -> LocalReply:
        devices = self._view.devices(command.host)
        return self._deviceReply(command, self._view.select(command, command.host, devices))

    async def _attach(self, command: LocalAttach, caller: Caller) -> LocalReply:
        try:
            return self._deviceReply(command, await self._acquisition.attach(command, caller))
        except RequestFailed as error:
            return self._deviceReply(command, error.found, error)

    async def _detach(self, command: LocalDetach, caller: Caller) -> LocalReply:
        try:
            return self._deviceReply(command, await self._release.detach(command))
        except RequestFailed as error:
            return self._deviceReply(command, error.found, error)

    async def _ports(self, command: LocalPorts, caller: Caller) -> LocalReply:
        servers = self._view.serversAt(command.host)
        names = None if servers is None else {server.name for server in servers}
        ports = [self._port(attached) for attached in await self._operations.ports()]
        data = [port for port in ports if names is None or port["server"] in names]
        return LocalReply(status=Status.SUCCESS, data=data)

    def _port(self, attached: Attached) -> dict[str, Any]:
        record = attached.record
        origin = self._view.origin(attached)
        address = record and f"{record.host}:{record.service}"
        attachment = next((each for each in self._view.attachments if each.isAt(attached)), None)
        return {
            "port": attached.port,
            "local_bus_id": attached.localBusId,
            "server": address if origin is None else origin.server.name,
            "bus_id": record and record.busId,
            "local_devices": attached.nodes,
            "kept": attachment is not None,
            "rule": attachment and attachment.desired.rule,
        }

    def _watch(self, command: LocalWatch) -> Response:
        servers = self._view.serversAt(command.host)
        stream = self._events.subscribe(command, servers)
        if stream.goesOn:
            reply = LocalReply(status=Status.SUCCESS, seq=stream.seq)
            return _response(reply, True, stream)
        devices = self._view.devices(command.host)
        selected = tuple(each for each in devices if command.selector.matches(each.device))
        reply = self._listReply(selected, bool(command.detail))
        return _response(msgspec.structs.replace(reply, seq=stream.seq), True, stream)

    def _listReply(self, devices: tuple[RemoteDevice, ...], detail: bool) -> LocalReply:
        data = [
            listItem(each.device, each.server.name, self._view.nodes(each), detail)
            for each in devices
        ]
        return LocalReply(status=Status.SUCCESS, data=data)

    def _deviceReply(
        self, command: DeviceRequest, found: RemoteDevice, error: ShareError | None = None
    ) -> LocalReply:
        device = self._view.at(found) if error is None else found.device
        nodes = self._view.nodes(found)
        return deviceReply(device, found.server.name, nodes, bool(command.detail), error)

    def _audit(self, command: LocalCommand, reply: LocalReply, caller: Caller) -> None:
        if isinstance(command, LocalAttach | LocalDetach):
            self._log.info(
                "{principal} requested {command} of {device}: {status}",
                principal=str(caller.principal),
                command="attach" if isinstance(command, LocalAttach) else "detach",
                device=describe(given(command)),
                status=reply.status.value,
                server=reply.server,
            )

    def _failure(self, error: Exception, command: LocalCommand | None) -> Response:
        if not isinstance(error, ShareError):
            self._log.failure("bug while carrying out a request")
            return refusal("the service failed on this request: see its log", broken=True)
        keepAlive = command is not None and bool(command.keep_alive)
        response = _response(errorReply(error), keepAlive)
        forbidden = isinstance(error, NotAllowed)
        last = forbidden or isinstance(error, InvalidRequest)
        return msgspec.structs.replace(response, forbidden=forbidden, last=last)


def _response(
    reply: LocalReply, keepAlive: bool, stream: Subscription[ServiceEvent] | None = None
) -> Response:
    return Response(status=reply.status, encoded=reply.encode(), keepAlive=keepAlive, stream=stream)
