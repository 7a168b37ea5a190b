"""
Requests to one server about one device. Each uses a connection of its own::

    gateway: find        is it still the same device?
    gateway: attach      again, as long as the server answers that it takes longer
    gateway: watch       its state now, and the number of the last event that it includes
"""

from __future__ import annotations

import contextlib
from typing import Any

from twisted.internet.task import deferLater

from usbip_server.backends.remote.watch import RemoteWatch
from usbip_server.client.conversation import Conversation, converse
from usbip_server.client.devices import deviceIn, messageIn
from usbip_server.client.jsonclient import unreachable
from usbip_server.client.servers import Server
from usbip_server.client.watch import SECONDS
from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import ClientError, ShareError, Unreachable
from usbip_server.model.replies import ReceivedReply, Status

PAUSE_SECONDS = 0.2
"""The least time between two requests for an operation that has not ended."""

LONGEST_SECONDS = 600.0
"""For an operation: then its outcome is not waited for any longer."""


class DeviceGone(ClientError):
    """
    The device is gone, or another one has its bus id.
    """


class RefusedThere(ClientError):
    """
    A server has refused a request, or its operation has failed; the text is the server's.
    """


class RemoteRequests:
    """
    The requests to one server. Devices have the bus ids they have there.
    """

    def __init__(self, server: Server, reactor: Any, watch: RemoteWatch) -> None:
        """
        @param watch: receives each state that is seen.
        """
        self._server = server
        self._reactor = reactor
        self._watch = watch

    async def look(self, busId: str) -> UsbDevice | None:
        """
        The device with a bus id.

        @raise Unreachable: the server does not answer.
        """
        conversation = await self._converse()
        try:
            return await self._look(conversation, busId)
        finally:
            conversation.close()

    async def require(self, device: UsbDevice) -> UsbDevice:
        """
        The present state of a device.

        @raise DeviceGone: it is gone.
        @raise Unreachable: the server does not answer.
        """
        return self._same(device, await self.look(device.busId))

    async def perform(self, command: str, device: UsbDevice, seconds: float) -> UsbDevice:
        """
        Carry out a command, as long as it takes the server.

        @param command: C{attach}, C{detach} or C{kick}.
        @param seconds: the least time for each answer.
        @return: the device after it.
        @raise DeviceGone: it is gone.
        @raise RefusedThere: it was refused, or has failed.
        @raise Unreachable: the server does not answer, and may have carried it out.
        """
        conversation = await self._converse()
        end = self._reactor.seconds() + LONGEST_SECONDS
        try:
            await self._check(conversation, device)
            while True:
                soonest = self._reactor.seconds() + PAUSE_SECONDS
                request = {"command": command, "bus": device.busId, "detail": True}
                reply = await conversation.ask(request, max(seconds, SECONDS))
                if not reply.isPending:
                    break
                if self._reactor.seconds() > end:
                    why = f"it has not ended the {command} within {LONGEST_SECONDS:g} s"
                    raise unreachable(self._server, why)
                await deferLater(self._reactor, max(0.0, soonest - self._reactor.seconds()))
            if reply.status is Status.SUCCESS:
                return self._same(device, await self._look(conversation, device.busId))
        finally:
            conversation.close()
        with contextlib.suppress(ShareError):
            await self.look(device.busId)  # the server may have closed the connection
        raise RefusedThere(messageIn(reply.message))

    async def _converse(self) -> Conversation:
        return await converse(self._reactor, self._server, SECONDS)

    async def _check(self, conversation: Conversation, device: UsbDevice) -> None:
        request = {"command": "find", "bus": device.busId, "detail": True}
        reply = await conversation.ask(request, SECONDS)
        if reply.status is Status.NOT_FOUND:
            raise self._gone(device)
        if reply.status is not Status.SUCCESS:
            raise RefusedThere(messageIn(reply.message))
        self._same(device, deviceIn(self._server, reply.data))

    async def _look(self, conversation: Conversation, busId: str) -> UsbDevice | None:
        request = {"command": "watch", "bus": busId, "detail": True}
        reply = await conversation.ask(request, SECONDS)
        if reply.status is not Status.SUCCESS or reply.seq is None:
            raise self._invalid(reply)
        if not isinstance(reply.data, list) or len(reply.data) > 1:
            raise self._invalid(reply)
        data = reply.data[0] if reply.data else None
        self._watch.learn(busId, reply.seq, data)
        return None if data is None else deviceIn(self._server, data)

    def _same(self, device: UsbDevice, now: UsbDevice | None) -> UsbDevice:
        if now is None or now.deviceNumber != device.deviceNumber:
            raise self._gone(device)
        return now

    def _gone(self, device: UsbDevice) -> DeviceGone:
        return DeviceGone(f"{device.busId} is gone at {self._server}: it was unplugged")

    def _invalid(self, reply: ReceivedReply) -> Unreachable:
        return unreachable(self._server, messageIn(reply.message) or "its answer is not understood")
