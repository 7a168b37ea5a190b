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
from twisted.logger import Logger

from usbip_server.client.core.answers import Notice, Refused
from usbip_server.client.core.asking import askToTheEnd
from usbip_server.client.core.attaching import Attached, Attaching
from usbip_server.client.core.devices import Found
from usbip_server.client.core.servers import Server
from usbip_server.device import DeviceState
from usbip_server.errors import LocalTrouble, ShareError, Unreachable
from usbip_server.keepalive import KeepAlive
from usbip_server.opcodec import NotGiven
from usbip_server.replies import Status
from usbip_server.threads import BlockingCalls, StillOut, TookTooLong

NODES_SECONDS = 10.0
"""For nodes to appear, and for threads to have their turn."""

DETACH_SECONDS = 10.0

Result = tuple[Attached, socket.socket]


class CannotPlug(ShareError):
    """
    A device could not be plugged in, or not be pulled out. The text says why.
    """


class Plugging:
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
        self._bound: set[tuple[str, str]] = set()
        self._looking = DeferredLock()

    async def claim(
        self, found: Found, asked: dict[str, Any], told: Callable[[Notice], None]
    ) -> Found:
        """
        Have a device bound as somebody asks for it: when it is to be had, with a lease, by force.

        @param asked: that, with the contract's keys.
        @param told: called with what its server says meanwhile.
        @return: the device, bound.
        @raise CannotPlug: it is not to be had.
        @raise Unreachable: its server is not there.
        """
        device = found.device
        try:
            await self._ask(found.server, "attach", device.busId, told, **asked)
        except Unreachable:
            raise
        except ShareError as error:
            raise CannotPlug(str(error)) from error
        if device.state is not DeviceState.BOUND:
            self._bound.add((found.server.name, device.busId))
        bound = msgspec.structs.replace(device, state=DeviceState.BOUND, holder=None, lease=None)
        return msgspec.structs.replace(found, device=bound)

    async def renew(self, found: Found, lease: dict[str, Any]) -> None:
        """
        Let a lease last longer.

        @raise CannotPlug: there is none.
        """
        try:
            await self._ask(found.server, "renew", found.device.busId, lease=lease)
        except ShareError as error:
            raise CannotPlug(str(error)) from error

    async def plugIn(
        self, found: Found, isOurs: bool = False, owner: str | None = None
    ) -> tuple[Attached, Any, bool]:
        """
        Have a device bound, fetch it and plug it in.

        @param isOurs: is whoever has it ourselves, by a connection that is dead?
        @param owner: who has leased it.
        @return: what has become of it, a duplicate of its connection, and was it bound for us?
        @raise CannotPlug: that is not possible.
        """
        server, busId = found.server, found.device.busId
        device = found.device
        bind = device.state not in (DeviceState.BOUND, DeviceState.IN_USE)
        isTheirs = device.state is DeviceState.IN_USE or (device.lease and owner is None)
        try:
            if isOurs:
                await self._ask(server, "kick", busId, **_owned(owner))
            elif bind or isTheirs:  # then the answer says whose it is
                await self._ask(server, "attach", busId)
                if bind:
                    self._bound.add((server.name, busId))
            attached, kept = await self._attach(server, busId)
        except (ShareError, NotGiven, TookTooLong, StillOut, RuntimeError) as error:
            raise CannotPlug(_text(error)) from error
        return attached, kept, (server.name, busId) in self._bound

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
            await self._ask(server, "detach", busId, **_owned(owner))
            self._bound.discard((server.name, busId))
        except ShareError as error:
            self._log.warn(
                "{busId} stays bound at {server}: {error}",
                busId=busId,
                server=str(server),
                error=str(error),
            )

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
        told: Callable[[Notice], None] = lambda notice: None,
        **asked: Any,
    ) -> None:
        request = {"command": command, "bus": busId, **asked}
        answer = await askToTheEnd(self._reactor, server, request, self.answerSeconds, told)
        if answer.status is not Status.SUCCESS:
            raise Refused(answer.status, answer.message)

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


def _text(error: BaseException) -> str:
    """
    For a person.
    """
    if isinstance(error, TookTooLong):
        return "it takes too long: see dmesg"
    if isinstance(error, StillOut):
        return "the kernel is still busy with an earlier try"
    return str(error)
