"""
From the bytes of a request to the bytes of its answer, the same for every protocol.
"""

from __future__ import annotations

import msgspec
from twisted.logger import Logger

from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import NotAllowed, ShareError, SnapshotNeeded
from usbip_server.model.replies import Devices, Reply, Status, encodeDevices, failed
from usbip_server.model.requests import Command, WatchDevices, decode
from usbip_server.net.caller import Caller
from usbip_server.protocols.interfaces import Response, refusal
from usbip_server.server.core import Sharing


class Responder:
    """
    Answers requests with the help of a L{Sharing}.
    """

    _log = Logger()

    def __init__(self, sharing: Sharing) -> None:
        self._sharing = sharing
        self._lists: dict[tuple[bool, bool], tuple[tuple[UsbDevice, ...], Response]] = {}

    async def to(self, raw: bytes, caller: Caller, token: str | None = None) -> Response:
        """
        Answer one request. Never fails: whatever goes wrong is an answer too.

        @param token: counts if there is none in the request.
        """
        command: Command | None = None
        try:
            command = decode(raw)
            if token is not None and command.token is None:
                command = msgspec.structs.replace(command, token=token)
            if isinstance(command, WatchDevices):
                return await self._watch(command, caller)
            return self._success(await self._sharing.perform(command, caller), command)
        except Exception as error:
            return self._failure(error, command, raw, caller)

    def atOnce(self, raw: bytes, caller: Caller) -> Response | None:
        """
        The same for a request whose answer needs no waiting.

        @return: C{None} if it needs some: use C{to}.
        """
        command: Command | None = None
        try:
            command = decode(raw)
            devices = self._sharing.atOnce(command, caller)
            return None if devices is None else self._success(devices, command)
        except Exception as error:
            return self._failure(error, command, raw, caller)

    async def watch(self, command: WatchDevices, caller: Caller) -> Response:
        """
        The same for a request to watch that came as something else than JSON. One that
        wants to go on where that is not possible begins anew.
        """
        try:
            try:
                return await self._watch(command, caller)
            except SnapshotNeeded:
                return await self._watch(msgspec.structs.replace(command, since=None), caller)
        except Exception as error:
            return self._failure(error, command, b"watch", caller)

    def heartbeat(self) -> bytes:
        """A line that says that we are still there, and where the events stand."""
        return self._sharing.heartbeat().encode()

    async def _watch(self, command: WatchDevices, caller: Caller) -> Response:
        await self._sharing.ready()
        reply, stream = self._sharing.watch(command, caller)
        return Response(status=reply.status, encoded=reply.encode(), keepAlive=True, stream=stream)

    def _success(self, devices: Devices, command: Command) -> Response:
        """
        A list's answer is made once for each state of the inventory, which hands out the
        same tuple until something changes.
        """
        if not isinstance(devices, tuple) or (command.detail and any(d.holder for d in devices)):
            return self._answer(devices, command)
        wanted = bool(command.detail), bool(command.keep_alive)
        known = self._lists.get(wanted)
        if known is None or known[0] is not devices:
            known = self._lists[wanted] = (devices, self._answer(devices, command))
        return known[1]

    def _answer(self, devices: Devices, command: Command) -> Response:
        data = encodeDevices(devices, bool(command.detail), self._sharing.traffic)
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
        return Response(
            status=reply.status,
            encoded=reply.encode(),
            keepAlive=command is not None and bool(command.keep_alive),
            forbidden=isinstance(error, NotAllowed),
        )


def tokenless(command: Command | None, raw: bytes) -> str:
    """
    A request for the log, which no token may stand in.
    """
    if command is None:
        return f"a request of {len(raw)} bytes"
    return repr(msgspec.structs.replace(command, token=None))
