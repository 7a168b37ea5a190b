"""
The operations on one device, each with a deadline: requests to its server, and attaching it to
vhci_hcd in a thread.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.task import deferLater
from twisted.logger import Logger

from usbip_server.client.attach import Attached, Attaching
from usbip_server.client.conversation import askToTheEnd
from usbip_server.client.devices import RemoteDevice, deviceIn
from usbip_server.client.servers import Server
from usbip_server.client.service.config import LiveSettings
from usbip_server.client.service.devices.attachments import Attachment
from usbip_server.client.service.devices.desiredstate import isLeasedBy
from usbip_server.model.device import DeviceState, UsbDevice
from usbip_server.model.errors import ClientError, LocalTrouble, ShareError, Unreachable
from usbip_server.model.replies import Code, ReceivedNotice, Refused, Status
from usbip_server.model.usbip import NotGiven
from usbip_server.runtime.threads import BlockingCalls, CallPending, CallTimedOut

NODES_SECONDS = 10.0
"""For device nodes to appear, on top of C{timeouts.attach}."""

PORT_SECONDS = 10.0
"""For the kernel to detach a port, or to list its ports."""

UNBIND_SECONDS = 60.0
"""For a server to end a bind, so that it can be undone."""

UNBIND_PAUSE = 1.0
"""Seconds between questions whether it has."""

TEMPORARY = (Code.BUSY.value, Code.UNAVAILABLE.value)

BOUND = (DeviceState.BOUND, DeviceState.IN_USE)

Result = tuple[Attached, socket.socket]

_ERRORS = (ShareError, NotGiven, CallTimedOut, CallPending, RuntimeError)


class AttachFailed(ClientError):
    """
    A device could not be attached, or not be detached.
    """


class Operations:
    """
    Carries them out, and keeps account of what servers have bound at our request.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, settings: LiveSettings, attaching: Attaching, calls: BlockingCalls
    ) -> None:
        """
        @param reactor: provides C{IReactorTime} and what connections need.
        """
        self._reactor = reactor
        self._settings = settings
        self._attaching = attaching
        self._calls = calls
        self._bound: set[tuple[str, str, str | None]] = set()  # server, bus id, lease's owner
        self._listing = DeferredLock()

    async def bind(
        self, found: RemoteDevice, request: dict[str, Any], told: Callable[[ReceivedNotice], None]
    ) -> RemoteDevice:
        """
        Ask a server to C{attach} with C{wait}, C{lease} and C{force}, as a program has asked. The
        connection lasts until the answer: cancelling this gives up the place in the queue.

        @param request: the keys of the request besides C{command} and C{bus}.
        @param told: called with the notices of the server before its answer.
        @return: the device, bound.
        @raise AttachFailed: the server refuses.
        @raise Unreachable: the server does not answer.
        """
        device = found.device
        owner = request["lease"]["owner"] if "lease" in request else None
        key = found.server.name, device.busId, owner
        if owner is not None or device.state not in BOUND:
            self._bound.add(key)  # it may become bound even if the answer is lost
        try:
            await self._ask(found.server, "attach", device.busId, told, **request)
        except Unreachable:
            raise
        except ShareError as error:
            self._bound.discard(key)
            raise AttachFailed(str(error)) from error
        if device.state is not DeviceState.BOUND:
            self._bound.add(key)
        bound = msgspec.structs.replace(device, state=DeviceState.BOUND, holder=None, lease=None)
        return msgspec.structs.replace(found, device=bound)

    async def renew(self, found: RemoteDevice, lease: dict[str, Any]) -> None:
        """
        Extend a lease.

        @raise AttachFailed: the server refuses, or does not answer.
        """
        try:
            await self._ask(found.server, "renew", found.device.busId, lease=lease)
        except ShareError as error:
            raise AttachFailed(str(error)) from error

    async def attach(
        self, found: RemoteDevice, owner: str | None, isDeadSession: bool
    ) -> tuple[Attached, socket.socket, bool]:
        """
        Bind a device if it is not bound, import it and attach it to vhci_hcd.

        @param owner: the owner of its lease.
        @param isDeadSession: is it in use by a dead session of this machine? That is ended first.
        @return: where it is attached, a duplicate of its connection, and whether its server has
            bound it at our request.
        @raise AttachFailed: that is not possible.
        """
        server, device = found.server, found.device
        busId, key = device.busId, (server.name, device.busId, owner)
        isOthers = device.state is DeviceState.IN_USE or (device.lease and owner is None)
        try:
            if isDeadSession:
                await self._ask(server, "kick", busId, **_ownerKey(owner))
            elif device.state not in BOUND:
                await self._ask(server, "attach", busId)
                self._bound.add(key)
            elif isOthers:
                await self._ask(server, "attach", busId)  # the refusal names the holder
            attached, connection = await self._attach(server, busId)
        except _ERRORS as error:
            raise AttachFailed(_reason(error)) from error
        isBound = key in self._bound
        if owner is not None:
            self._bound.discard(key)  # from now on its lease shows that
        return attached, connection, isBound

    async def detach(self, attachment: Attachment, unbind: bool) -> None:
        """
        Detach a device from vhci_hcd.

        @param unbind: then unbind it at its server. If that fails, a warning is logged.
        @raise AttachFailed: it is still attached.
        """
        await self._detachPort(attachment.attached.port)
        if unbind:
            busId = attachment.device.busId
            await self.unbind(attachment.server, busId, attachment.desired.owner)

    async def unbind(self, server: Server, busId: str, owner: str | None) -> None:
        """
        Unbind a device at its server. If that fails, a warning is logged.
        """
        try:
            await self._unbind(server, busId, owner)
        except ShareError as error:
            self._warnStillBound(server, busId, error)

    async def rollBack(self, found: RemoteDevice, owner: str | None) -> None:
        """
        Unbind a device that its server has bound, or may have bound, for a request that has
        failed; unless another client has leased or imported it by now.

        @param owner: the owner of the requested lease.
        """
        server, busId = found.server, found.device.busId
        key = server.name, busId, owner
        if key not in self._bound:
            return
        until = self._reactor.seconds() + UNBIND_SECONDS
        while True:
            try:
                device = deviceIn(server, await self._ask(server, "find", busId))
                if _isNobodyElses(device, owner):
                    await self._unbind(server, busId, owner)
                break
            except ShareError as error:
                # A bind in progress cannot be undone yet; a daemon may just be starting.
                isTemporary = isinstance(error, Refused) and error.code in TEMPORARY
                if not isTemporary or self._reactor.seconds() >= until:
                    self._warnStillBound(server, busId, error)
                    break
            await deferLater(self._reactor, UNBIND_PAUSE)
        if owner is not None:
            self._bound.discard(key)

    async def ports(self) -> tuple[Attached, ...]:
        """
        List what is attached to this machine, also by other programs.

        @raise LocalTrouble: the kernel does not report it.
        """
        async with self._listing:  # one call at a time
            try:
                return await self._calls.call("ports", PORT_SECONDS, self._attaching.attached)
            except (CallTimedOut, CallPending, RuntimeError) as error:
                raise LocalTrouble(_reason(error)) from error

    async def _ask(
        self,
        server: Server,
        command: str,
        busId: str,
        told: Callable[[ReceivedNotice], None] = lambda notice: None,
        **keys: Any,
    ) -> Any:
        seconds = self._settings.config.timeouts.server
        request = {"command": command, "bus": busId, "detail": True, **keys}
        reply = await askToTheEnd(self._reactor, server, request, seconds, told)
        if reply.status is not Status.SUCCESS:
            raise Refused(reply.status, reply.message, reply.code)
        return reply.data

    async def _unbind(self, server: Server, busId: str, owner: str | None) -> None:
        await self._ask(server, "detach", busId, **_ownerKey(owner))
        self._bound -= {(server.name, busId, owner), (server.name, busId, None)}

    def _warnStillBound(self, server: Server, busId: str, error: ShareError) -> None:
        self._log.warn(
            "{busId} is still bound at {server}: {error}",
            busId=busId,
            server=str(server),
            error=str(error),
        )

    async def _attach(self, server: Server, busId: str) -> Result:
        config = self._settings.config
        seconds = config.timeouts.attach
        results: list[Result] = []

        def attach() -> None:
            results.append(self._attaching.attach(server, busId, seconds, config.keepalive))

        def late() -> None:
            for attached, connection in results:
                Deferred.fromCoroutine(self._undo(attached, connection))

        await self._calls.call((server.name, busId), seconds + NODES_SECONDS, attach, late)
        return results[0]

    async def _undo(self, attached: Attached, connection: socket.socket) -> None:
        """
        Detach a device that was attached after its deadline.
        """
        with connection, contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        try:
            await self._detachPort(attached.port)
        except AttachFailed as error:
            self._log.warn(
                "port {port} is still in use: {error}", port=attached.port, error=str(error)
            )

    async def _detachPort(self, port: int) -> None:
        detach = partial(self._attaching.detach, port)
        try:
            await self._calls.call(("port", port), PORT_SECONDS, detach)
        except (LocalTrouble, CallTimedOut, CallPending, RuntimeError) as error:
            raise AttachFailed(_reason(error)) from error


def _ownerKey(owner: str | None) -> dict[str, Any]:
    return {} if owner is None else {"owner": owner}


def _isNobodyElses(device: UsbDevice, owner: str | None) -> bool:
    if owner is not None:
        return isLeasedBy(owner, device)
    return device.lease is None and device.state is not DeviceState.IN_USE


def _reason(error: BaseException) -> str:
    if isinstance(error, CallTimedOut):
        return "the kernel takes too long: see dmesg"
    if isinstance(error, CallPending):
        return "the kernel is still busy with an earlier attempt: see dmesg"
    return str(error)
