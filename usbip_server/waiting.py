"""
The queue of those who wait for a device.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from usbip_server.caller import Caller
from usbip_server.commands import AttachDevice
from usbip_server.device import UsbDevice
from usbip_server.errors import (
    BackendUnavailable,
    DeviceNotFound,
    NotDone,
    OperationFailed,
    ShareError,
)
from usbip_server.inventory import Change, Inventory
from usbip_server.matching import select
from usbip_server.replies import Notice, encodeDevices
from usbip_server.timestamps import timestamp

TURN = 5.0
"""Seconds for somebody who has no lease to import the device, before it is the next one's
turn."""

Obstacle = Callable[[UsbDevice, AttachDevice], OperationFailed | None]


class Ticket:
    """
    Somebody who waits.

    @ivar turn: fires with the device.
    @ivar place: in the queue, as far as the client was told.
    @ivar obstacle: why it is not its turn.
    """

    def __init__(self, request: AttachDevice, caller: Caller) -> None:
        self.request = request
        self.caller = caller
        self.turn: Deferred[UsbDevice] = Deferred()
        self.place: int | None = 0
        self.obstacle: ShareError = NotDone("nothing was done")

    def leave(self) -> None:
        """The client is gone."""
        if not self.turn.called:
            self.turn.errback(NotDone("the client is gone"))


class Queue:
    """
    First come, first served; who waits for another device is not in the way.

    @ivar heartbeat: seconds between signs of life to those who wait.
    """

    def __init__(
        self,
        inventory: Inventory,
        obstacle: Obstacle,
        clock: IReactorTime,
        now: Callable[[], float],
        heartbeat: float,
    ) -> None:
        """
        @param obstacle: why somebody may not have a device now.
        @param now: the time, in seconds since the epoch.
        """
        self.heartbeat = heartbeat
        self._inventory = inventory
        self._obstacle = obstacle
        self._clock = clock
        self._now = now
        self._tickets: list[Ticket] = []
        self._reserved: dict[str, IDelayedCall] = {}
        self._stopped = False
        inventory.subscribe(self._changed)

    def waitingFor(self, device: UsbDevice) -> int:
        """How many wait for a device."""
        chosen = (self._chosen(ticket) for ticket in self._tickets)
        return sum(other is not None and other.busId == device.busId for other in chosen)

    async def turn(
        self, request: AttachDevice, caller: Caller, seconds: float, again: bool
    ) -> UsbDevice:
        """
        Wait until somebody may have a device.

        @param seconds: how long at the most.
        @param again: it was its turn already, and it is to be the first again.
        @raise ShareError: why it may not, when the time is over.
        """
        ticket = Ticket(request, caller)
        if caller.isGone:
            ticket.leave()
            return await ticket.turn
        self._tickets.insert(0 if again else len(self._tickets), ticket)
        caller.whenGone(ticket.leave)
        beats = LoopingCall(self._beat, ticket)
        beats.clock = self._clock
        beats.start(self.heartbeat, now=False)
        expiry = self._clock.callLater(seconds, self._expire, ticket)
        ticket.turn.addBoth(self._left, ticket, beats, expiry)
        self.look()
        return await ticket.turn

    def look(self) -> None:
        """
        Give everybody their turn whose it is, and tell the others where they stand.
        """
        if self._stopped:
            return
        places: dict[str, int] = {}
        for ticket in tuple(self._tickets):
            if ticket not in self._tickets:
                continue
            try:
                device = select(ticket.request, self._inventory.snapshot.devices)
            except DeviceNotFound as error:
                self._tell(ticket, error, None, None)
                continue
            except ShareError as error:
                ticket.turn.errback(error)
                continue
            place = places[device.busId] = places.get(device.busId, 0) + 1
            error_ = self._obstacle(device, ticket.request)
            if place == 1 and error_ is None and device.busId not in self._reserved:
                if ticket.request.lease is None:
                    self._reserve(device.busId)
                places[device.busId] = 0
                ticket.turn.callback(device)
            else:
                self._tell(ticket, error_ or ticket.obstacle, device, place)

    def stop(self) -> None:
        """Send everybody away."""
        self._stopped = True
        for ticket in tuple(self._tickets):
            ticket.turn.errback(
                BackendUnavailable("the daemon is stopping: ask again when it is back")
            )
        for timer in self._reserved.values():
            timer.cancel()
        self._reserved.clear()

    def _changed(self, changes: tuple[Change, ...]) -> None:
        if self._tickets:
            self.look()

    def _chosen(self, ticket: Ticket) -> UsbDevice | None:
        try:
            return select(ticket.request, self._inventory.snapshot.devices)
        except ShareError:
            return None

    def _reserve(self, busId: str) -> None:
        self._reserved[busId] = self._clock.callLater(TURN, self._unreserve, busId)

    def _unreserve(self, busId: str) -> None:
        del self._reserved[busId]
        self.look()

    def _tell(
        self, ticket: Ticket, why: ShareError, device: UsbDevice | None, place: int | None
    ) -> None:
        ticket.obstacle = why
        if ticket.place == place:
            return
        ticket.place = place
        detail = bool(ticket.request.detail)
        data = None if device is None else encodeDevices(device, detail)
        notice = Notice(
            event="queued",
            time=timestamp(self._now()),
            data=data,
            place=place,
            message=str(why),
        )
        ticket.caller.tell(notice.encode())

    def _expire(self, ticket: Ticket) -> None:
        ticket.turn.errback(ticket.obstacle)

    def _beat(self, ticket: Ticket) -> None:
        ticket.caller.tell(Notice(event="heartbeat", time=timestamp(self._now())).encode())

    def _left(
        self, result: object, ticket: Ticket, beats: LoopingCall, expiry: IDelayedCall
    ) -> object:
        self._tickets.remove(ticket)
        ticket.caller.forget(ticket.leave)
        beats.stop()
        if expiry.active():
            expiry.cancel()
        if isinstance(result, Failure):
            self.look()  # those behind it move up
        return result
