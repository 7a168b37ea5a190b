"""
Following what happens at a server, through all its absences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import deferLater

from usbip_server.client.core.asking import Notice, Refused, converse
from usbip_server.client.core.backoff import BackOff, Pauses
from usbip_server.client.core.servers import Server
from usbip_server.errors import ShareError
from usbip_server.replies import Status

BACK_OFF = BackOff(first=1.0, longest=15.0)


class Following:
    """
    Told as it goes. Nothing that happens is left out: after an absence it goes on where it
    was, or, where the server does not know any more, with all its devices anew.
    """

    def __init__(
        self,
        server: Server,
        criteria: dict[str, Any],
        begun: Callable[[Server, list[Any]], None],
        told: Callable[[Server, Notice], None],
        lost: Callable[[Server, ShareError], None],
    ) -> None:
        """
        @param criteria: the devices that it is about, as in C{watch}.
        @param begun: called with all devices when they are to be taken anew.
        @param told: called with each event.
        @param lost: called when the server cannot be followed any more, or again not.
        """
        self._server = server
        self._criteria = criteria
        self._begun = begun
        self._told = told
        self._lost = lost
        self._seq: int | None = None
        self._pauses = Pauses(BACK_OFF)

    async def follow(self, reactor: Any, seconds: float) -> None:
        """
        Follow it, until this is cancelled.

        @param seconds: how long the server may take to answer.
        """
        while True:
            try:
                await self._once(reactor, seconds)
                error: ShareError | None = None
            except ShareError as raised:
                error = raised
            if error is None:
                error = Refused(Status.ERROR, f"{self._server}: the connection is lost")
            self._lost(self._server, error)
            await deferLater(reactor, self._pauses.next())

    async def _once(self, reactor: Any, seconds: float) -> None:
        conversation = await converse(reactor, self._server, seconds)
        try:
            request = {"command": "watch", "detail": True, **self._criteria}
            since = self._seq
            if since is not None:
                request["since"] = since
            answer = await conversation.ask(request, seconds, self._heard)
            if answer.status is Status.SUCCESS:
                self._pauses.reset()
                if since is None:
                    self._seq = answer.seq
                    self._begun(self._server, answer.data or [])
                conversation.listen()
                await conversation.lost
        finally:
            conversation.close()
        if answer.status is not Status.SUCCESS:
            if since is None:
                raise Refused(answer.status, f"{self._server}: {answer.message}")
            self._seq = None  # it does not go back that far
            await self._once(reactor, seconds)

    def _heard(self, notice: Notice) -> None:
        if isinstance(notice.get("seq"), int):
            self._seq = notice["seq"]
        if notice.get("event") != "heartbeat":
            self._told(self._server, notice)
