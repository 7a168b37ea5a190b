"""
What a gateway asks of one server: to do something to a device, or to look at it.

Each time a connection of its own::

    gateway: find        is it still the device that is meant?
    gateway: attach      again, as long as it is said to take longer
    gateway: watch       how it is now, and which event that is from

"""

from __future__ import annotations

from typing import Any

from usbip_server.backends.remote.watch import RemoteFollowing
from usbip_server.client.conversation import Conversation, converse
from usbip_server.client.devices import deviceIn
from usbip_server.client.servers import Server
from usbip_server.client.watch import SECONDS
from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import ShareError, Unreachable
from usbip_server.model.replies import ReceivedReply, Status


class NotThere(ShareError):
    """
    The device that is meant is gone, or another one is in its place.
    """


class NotDoneThere(ShareError):
    """
    A server has not done what was asked; the text is what it says.

    @ivar device: as it is after it; C{None}: it is gone.
    """

    def __init__(self, message: str, device: UsbDevice | None = None) -> None:
        super().__init__(message)
        self.device = device


class RemoteRequests:
    """
    To one server. Devices have the bus ids they have there.
    """

    def __init__(self, server: Server, reactor: Any, following: RemoteFollowing) -> None:
        """
        @param following: learns what is seen.
        """
        self._server = server
        self._reactor = reactor
        self._following = following

    async def look(self, busId: str) -> UsbDevice | None:
        """
        What is at a bus id now.

        @raise Unreachable: the server does not tell.
        """
        conversation = await self._converse()
        try:
            return await self._seen(conversation, busId)
        finally:
            conversation.close()

    async def require(self, device: UsbDevice) -> UsbDevice:
        """
        A device, as it is now.

        @raise NotThere: it is gone.
        @raise Unreachable: as C{look}.
        """
        return self._same(device, await self.look(device.busId))

    async def perform(self, verb: str, device: UsbDevice, seconds: float) -> UsbDevice:
        """
        Do something to a device. Goes on as long as the server says that it does.

        @param verb: C{attach}, C{detach} or C{kick}.
        @param seconds: how long an answer may take, at least.
        @return: the device after it.
        @raise NotThere: it is gone.
        @raise NotDoneThere: it was refused, or went wrong.
        @raise Unreachable: as C{look}; nobody knows what was done.
        """
        conversation = await self._converse()
        try:
            await self._find(conversation, device)
            while True:
                answer = await conversation.ask(
                    {"command": verb, "bus": device.busId}, max(seconds, SECONDS)
                )
                if not answer.isPending:
                    break
            now = await self._seen(conversation, device.busId)
        finally:
            conversation.close()
        if answer.status is not Status.SUCCESS:
            raise NotDoneThere(answer.message, now)
        return self._same(device, now)

    async def _converse(self) -> Conversation:
        return await converse(self._reactor, self._server, SECONDS)

    async def _find(self, conversation: Conversation, device: UsbDevice) -> None:
        answer = await conversation.ask(
            {"command": "find", "bus": device.busId, "detail": True}, SECONDS
        )
        if answer.status is Status.NOT_FOUND:
            raise self._gone(device)
        if answer.status is not Status.SUCCESS:
            raise NotDoneThere(answer.message, device)
        self._same(device, deviceIn(self._server, answer.data))

    async def _seen(self, conversation: Conversation, busId: str) -> UsbDevice | None:
        answer = await conversation.ask({"command": "watch", "bus": busId, "detail": True}, SECONDS)
        if answer.status is not Status.SUCCESS or answer.seq is None:
            raise self._trouble(answer)
        if not isinstance(answer.data, list) or len(answer.data) > 1:
            raise self._trouble(answer)
        data = answer.data[0] if answer.data else None
        self._following.learn(busId, answer.seq, data)
        return None if data is None else deviceIn(self._server, data)

    def _same(self, device: UsbDevice, now: UsbDevice | None) -> UsbDevice:
        if now is None or now.deviceNumber != device.deviceNumber:
            raise self._gone(device)
        return now

    def _gone(self, device: UsbDevice) -> NotThere:
        return NotThere(f"{device.busId} is gone at {self._server}: it was unplugged")

    def _trouble(self, answer: ReceivedReply) -> Unreachable:
        why = answer.message or "its answer is not understood"
        return Unreachable(f"{self._server.called(self._server.address)}: {why}")
