"""
From the bytes of a request to the bytes of its reply, for every protocol.
"""

from __future__ import annotations

import msgspec
from twisted.logger import Logger

from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import InvalidRequest, NotAllowed, ShareError, SnapshotNeeded
from usbip_server.model.policy import Principal
from usbip_server.model.replies import Devices, Reply, Status, encodeDevices, failed
from usbip_server.model.requests import Command, WatchDevices, decode
from usbip_server.net.caller import Caller
from usbip_server.protocols.interfaces import Response, refusal
from usbip_server.server.dispatcher import Dispatcher, Result, Watch
from usbip_server.server.metrics import RequestMetrics


class Responder:
    """
    Decodes requests, passes them to a L{Dispatcher}, and encodes the results; see
    L{usbip_server.protocols.interfaces.IResponder}.
    """

    _log = Logger()

    def __init__(self, dispatcher: Dispatcher, metrics: RequestMetrics) -> None:
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._lists: dict[object, tuple[tuple[UsbDevice, ...], Response]] = {}

    async def to(self, raw: bytes, caller: Caller, token: str | None = None) -> Response:
        """
        Reply to a request. Never fails: an error is a reply too.

        @param token: the token, if there is none in the request.
        """
        begin = self._metrics.seconds()
        command: Command | None = None
        try:
            command = decode(raw)
            if token is not None and command.token is None:
                command = msgspec.structs.replace(command, token=token)
            return self._success(await self._dispatcher.perform(command, caller), command)
        except Exception as error:
            return self._failure(error, command, raw, caller)
        finally:
            kind = None if command is None else type(command)
            self._metrics.took(kind, self._metrics.seconds() - begin)

    def atOnce(self, raw: bytes, caller: Caller) -> Response | None:
        """
        Reply to a request that needs no waiting.

        @return: C{None} if the request has to wait: call C{to}.
        """
        command: Command | None = None
        try:
            command = decode(raw)
            result = self._dispatcher.atOnce(command, caller)
            return None if result is None else self._success(result, command)
        except Exception as error:
            return self._failure(error, command, raw, caller)

    async def watch(self, command: WatchDevices, caller: Caller) -> Response:
        """
        Reply to a watch command that did not come as JSON. If the events since
        C{command.since} are not remembered, the watch begins with all devices.
        """
        try:
            try:
                return self._success(await self._dispatcher.perform(command, caller), command)
            except SnapshotNeeded:
                command = msgspec.structs.replace(command, since=None)
                return self._success(await self._dispatcher.perform(command, caller), command)
        except Exception as error:
            return self._failure(error, command, b"watch", caller)

    def refuse(self, error: NotAllowed, caller: Caller) -> Response:
        """Reply to a request that was refused before it was read."""
        self._dispatcher.refused(error, caller)
        return self._failure(error, None, b"", caller)

    def hasRights(self, principal: Principal) -> bool:
        """Whether a client has any rights, without a token."""
        return self._dispatcher.hasRights(principal)

    def heartbeat(self, isNumbered: bool = True) -> bytes:
        """
        The line for a client that watches or waits.

        @param isNumbered: with the number of the last event?
        """
        notice = self._dispatcher.heartbeat()
        return (notice if isNumbered else msgspec.structs.replace(notice, seq=None)).encode()

    def _success(self, result: Result, command: Command) -> Response:
        self._metrics.succeeded(type(command))
        if isinstance(result, tuple):
            return self._list(result, command)
        if isinstance(result, Watch):
            return Response(
                status=result.reply.status,
                encoded=result.reply.encode(),
                keepAlive=True,
                stream=result.subscription,
            )
        return self._encode(result, command)

    def _list(self, devices: tuple[UsbDevice, ...], command: Command) -> Response:
        """Encode a list once: the view returns the same tuple until something changes."""
        key = command.detail, command.keep_alive, getattr(command, "away", False)
        known = self._lists.get(key)
        if known is not None and known[0] is devices:
            return known[1]
        response = self._encode(devices, command)
        if not (command.detail and any(device.holder for device in devices)):  # their traffic
            self._lists[key] = devices, response
        return response

    def _encode(self, devices: Devices, command: Command) -> Response:
        data = encodeDevices(devices, bool(command.detail), self._dispatcher.traffic)
        reply = Reply(status=Status.SUCCESS, data=data)
        return Response(
            status=reply.status, encoded=reply.encode(), keepAlive=bool(command.keep_alive)
        )

    def _failure(
        self, error: Exception, command: Command | None, raw: bytes, caller: Caller
    ) -> Response:
        if not isinstance(error, ShareError):
            self._log.failure(
                "a bug in answering {command} from {principal}",
                command=tokenless(command, raw),
                principal=str(caller.principal),
            )
            return refusal("the daemon failed on this request: its log says more", broken=True)
        reply = failed(error, command is not None and bool(command.detail))
        kind = None if command is None else type(command)
        self._metrics.answered(kind, reply.status, isinstance(error, NotAllowed))
        return Response(
            status=reply.status,
            encoded=reply.encode(),
            keepAlive=command is not None and bool(command.keep_alive),
            forbidden=isinstance(error, NotAllowed),
            last=isinstance(error, NotAllowed | InvalidRequest),
        )


def tokenless(command: Command | None, raw: bytes) -> str:
    """A request for the log, without its token."""
    if command is None:
        return f"a request of {len(raw)} bytes"
    return repr(msgspec.structs.replace(command, token=None))
