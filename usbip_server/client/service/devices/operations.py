"""
Plugging in and pulling out: both halves, that at the server and that here, each with its
deadline.
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
from usbip_server.client.service.devices.desired import isLeasedBy
from usbip_server.model.device import DeviceState, UsbDevice
from usbip_server.model.errors import LocalTrouble, ShareError, Unreachable
from usbip_server.model.replies import ReceivedNotice, Refused, Status
from usbip_server.model.usbip import NotGiven
from usbip_server.net.keepalive import KeepAlive
from usbip_server.runtime.threads import BlockingCalls, StillOut, TookTooLong

NODES_SECONDS = 10.0
"""For nodes to appear, and for threads to have their turn."""

DETACH_SECONDS = 10.0

BIND_SECONDS = 60.0
"""In which a server has bound a device, or given it up."""

AGAIN = 1.0
"""Seconds between questions whether it has."""

Result = tuple[Attached, socket.socket]


class CannotPlug(ShareError):
    """
    A device could not be plugged in, or not be pulled out. The text says why.
    """


class Operations:
    """
    Does it.

    @ivar answerSeconds: for a server to answer.
    @ivar attachSeconds: for a device to be fetched and plugged in.
    @ivar keepAlive: how it is noticed that a server has vanished.
    """

    _log = Logger()

    def __init__(self, reactor: Any, attaching: Attaching, calls: BlockingCalls) -> None:
        self.answerSeconds = 5.0
        self.attachSeconds = 15.0
        self.keepAlive = KeepAlive()
        self._reactor = reactor
        self._attaching = attaching
        self._calls = calls
        self._bound: set[tuple[str, str, str | None]] = set()
        self._looking = DeferredLock()

    async def claim(
        self, found: RemoteDevice, asked: dict[str, Any], told: Callable[[ReceivedNotice], None]
    ) -> RemoteDevice:
        """
        Have a device bound as somebody asks for it: when it is to be had, with a lease, by force.

        @param asked: that, with the contract's keys.
        @param told: called with what its server says meanwhile.
        @return: the device, bound.
        @raise CannotPlug: it is not to be had.
        @raise Unreachable: its server is not there.
        """
        device = found.device
        owner = asked["lease"]["owner"] if "lease" in asked else None
        mine = found.server.name, device.busId, owner
        if owner is not None or device.state not in (DeviceState.BOUND, DeviceState.IN_USE):
            self._bound.add(mine)  # it may be from now on, also if there is no answer
        try:
            await self._ask(found.server, "attach", device.busId, told, **asked)
        except Unreachable:
            raise
        except ShareError as error:
            self._bound.discard(mine)
            raise CannotPlug(str(error)) from error
        if device.state is not DeviceState.BOUND:
            self._bound.add(mine)
        bound = msgspec.structs.replace(device, state=DeviceState.BOUND, holder=None, lease=None)
        return msgspec.structs.replace(found, device=bound)

    async def renew(self, found: RemoteDevice, lease: dict[str, Any]) -> None:
        """
        Let a lease last longer.

        @raise CannotPlug: there is none.
        """
        try:
            await self._ask(found.server, "renew", found.device.busId, lease=lease)
        except ShareError as error:
            raise CannotPlug(str(error)) from error

    async def plugIn(
        self, found: RemoteDevice, isOurs: bool = False, owner: str | None = None
    ) -> tuple[Attached, Any, bool]:
        """
        Have a device bound, fetch it and plug it in.

        @param isOurs: is whoever has it ourselves, by a connection that is dead?
        @param owner: who has leased it.
        @return: what has become of it, a duplicate of its connection, and was it bound for us?
        @raise CannotPlug: that is not possible.
        """
        server, busId = found.server, found.device.busId
        mine = server.name, busId, owner
        device = found.device
        bind = device.state not in (DeviceState.BOUND, DeviceState.IN_USE)
        isTheirs = device.state is DeviceState.IN_USE or (device.lease and owner is None)
        try:
            if isOurs:
                await self._ask(server, "kick", busId, **_owned(owner))
            elif bind or isTheirs:  # then the answer says whose it is
                await self._ask(server, "attach", busId)
                if bind:
                    self._bound.add(mine)
            attached, kept = await self._attach(server, busId)
        except (ShareError, NotGiven, TookTooLong, StillOut, RuntimeError) as error:
            raise CannotPlug(_text(error)) from error
        bound = mine in self._bound
        if owner is not None:
            self._bound.discard(mine)  # from now on its lease tells
        return attached, kept, bound

    async def pullOut(
        self, server: Server, busId: str, port: int, unbind: bool, owner: str | None = None
    ) -> None:
        """
        Pull a device out.

        @param unbind: have its server unbind it as well. That this fails is only logged.
        @param owner: who has leased it.
        @raise CannotPlug: it is still there.
        """
        await self._free(port)
        if unbind:
            await self.release(server, busId, owner)

    async def release(self, server: Server, busId: str, owner: str | None) -> None:
        """
        Have a server unbind a device. Parameters are those of C{pullOut}.
        """
        try:
            await self._unbind(server, busId, owner)
        except ShareError as error:
            self._staysBound(server, busId, error)

    async def giveBack(self, found: RemoteDevice, owner: str | None) -> None:
        """
        Have a server unbind a device that it has bound for somebody who cannot have it now, or
        may have: there was no answer. Who else has it by now is not disturbed.

        @param owner: who would have leased it.
        """
        server, busId = found.server, found.device.busId
        if (server.name, busId, owner) not in self._bound:
            return
        until = self._reactor.seconds() + BIND_SECONDS
        while True:
            try:
                shown = await self._ask(server, "find", busId, detail=True)
                if _isFor(owner, deviceIn(server, shown)):
                    await self._unbind(server, busId, owner)
                break
            except ShareError as error:
                # What it is just at cannot be undone yet.
                isAtIt = isinstance(error, Refused) and error.status is Status.ERROR
                if not isAtIt or self._reactor.seconds() >= until:
                    self._staysBound(server, busId, error)
                    break
            await deferLater(self._reactor, AGAIN)
        if owner is not None:
            self._bound.discard((server.name, busId, owner))

    async def attached(self) -> tuple[Attached, ...]:
        """
        What is plugged in now, by whomever.

        @raise LocalTrouble: the kernel does not tell.
        """
        async with self._looking:  # several may want to know at the same time
            try:
                return await self._calls.call("ports", DETACH_SECONDS, self._attaching.attached)
            except (TookTooLong, StillOut, RuntimeError) as error:
                raise LocalTrouble(_text(error)) from error

    async def _ask(
        self,
        server: Server,
        command: str,
        busId: str,
        told: Callable[[ReceivedNotice], None] = lambda notice: None,
        **asked: Any,
    ) -> Any:
        request = {"command": command, "bus": busId, **asked}
        answer = await askToTheEnd(self._reactor, server, request, self.answerSeconds, told)
        if answer.status is not Status.SUCCESS:
            raise Refused(answer.status, answer.message)
        return answer.data

    async def _unbind(self, server: Server, busId: str, owner: str | None) -> None:
        await self._ask(server, "detach", busId, **_owned(owner))
        self._bound.discard((server.name, busId, owner))
        self._bound.discard((server.name, busId, None))

    def _staysBound(self, server: Server, busId: str, error: ShareError) -> None:
        self._log.warn(
            "{busId} stays bound at {server}: {error}",
            busId=busId,
            server=str(server),
            error=str(error),
        )

    async def _attach(self, server: Server, busId: str) -> Result:
        results: list[Result] = []

        def attach() -> None:
            result = self._attaching.attach(server, busId, self.attachSeconds, self.keepAlive)
            results.append(result)

        def late() -> None:
            for attached, kept in results:
                Deferred.fromCoroutine(self._undo(attached, kept))

        seconds = self.attachSeconds + NODES_SECONDS
        await self._calls.call((server.name, busId), seconds, attach, late)
        return results[0]

    async def _undo(self, attached: Attached, kept: socket.socket) -> None:
        """
        It was plugged in after all, when nobody waited for it any longer.
        """
        with kept, contextlib.suppress(OSError):
            kept.shutdown(socket.SHUT_RDWR)
        try:
            await self._free(attached.port)
        except CannotPlug as error:
            self._log.warn(
                "port {port} is still in use: {error}", port=attached.port, error=str(error)
            )

    async def _free(self, port: int) -> None:
        try:
            await self._calls.call(
                ("port", port), DETACH_SECONDS, partial(self._attaching.detach, port)
            )
        except (LocalTrouble, TookTooLong, StillOut, RuntimeError) as error:
            raise CannotPlug(_text(error)) from error


def _owned(owner: str | None) -> dict[str, Any]:
    return {} if owner is None else {"owner": owner}


def _isFor(owner: str | None, device: UsbDevice) -> bool:
    """
    Is a device still bound for nobody else?
    """
    if owner is not None:
        return isLeasedBy(owner, device)
    return device.lease is None and device.state is not DeviceState.IN_USE


def _text(error: BaseException) -> str:
    """
    For a person.
    """
    if isinstance(error, TookTooLong):
        return "it takes too long: see dmesg"
    if isinstance(error, StillOut):
        return "the kernel is still busy with an earlier try"
    return str(error)
