"""
The queue of those who wait for a device.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import (
    BackendUnavailable,
    DeviceNotFound,
    NotDone,
    OperationFailed,
    ShareError,
)
from usbip_server.model.inventory import Change, Inventory
from usbip_server.model.policy import Principal
from usbip_server.model.replies import Notice, encodeDevices
from usbip_server.model.requests import AttachDevice
from usbip_server.model.timestamps import timestamp
from usbip_server.net.caller import Caller
from usbip_server.server.access.authorizer import Authorizer

TURN = 5.0
"""Seconds for somebody who has no lease to import the device, before it is the next one's
turn."""

Obstacle = Callable[[UsbDevice, AttachDevice, Principal], OperationFailed | None]


class Ticket:
    """
    Somebody who waits.

    @ivar turn: fires with the device.
    @ivar place: in the queue, as far as the client was told.
    """

    def __init__(self, request: AttachDevice, caller: Caller) -> None:
        self.request = request
        self.caller = caller
        self.principal = caller.principal
        self.turn: Deferred[UsbDevice] = Deferred()
        self.place: int | None = 0

    def leave(self) -> None:
        """The client is gone."""
        if not self.turn.called:
            self.turn.errback(NotDone("the client is gone"))


class WaitQueue:
    """
    First come, first served; who waits for another device is not in the way.

    @ivar heartbeat: seconds between signs of life to those who wait.
    """

    def __init__(
        self,
        access: Authorizer,
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
        self._access = access
        self._inventory = inventory
        self._obstacle = obstacle
        self._clock = clock
        self._now = now
        self._tickets: list[Ticket] = []
        self._held: dict[str, IDelayedCall | None] = {}
        self._stopped = False
        inventory.subscribe(self._changed)

    def waitingFor(self, device: UsbDevice) -> int:
        """How many wait for a device."""
        chosen = (self._chosen(ticket) for ticket in self._tickets)
        return sum(isinstance(it, UsbDevice) and it.busId == device.busId for it in chosen)

    async def turn(
        self, request: AttachDevice, caller: Caller, seconds: float, again: bool
    ) -> UsbDevice:
        """
        Wait until somebody may have a device.

        @param seconds: how long at the most.
        @param again: it was its turn already, and it is to be the first again.
        @raise ShareError: why it may not, when the time is over.
        """
        if self._stopped:
            raise _stopping()
        if caller.isGone:
            raise NotDone("the client is gone")
        ticket = Ticket(request, caller)
        isFirst = again or request.force
        self._tickets.insert(0 if isFirst else len(self._tickets), ticket)
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
                continue  # it has had its turn, or is gone, as others had theirs
            chosen = self._chosen(ticket)
            if isinstance(chosen, DeviceNotFound):
                self._tell(ticket, chosen, None, None)
            elif isinstance(chosen, ShareError):
                ticket.turn.errback(chosen)
            else:
                place = places[chosen.busId] = places.get(chosen.busId, 0) + 1
                why = self._why(ticket, chosen)
                if place > 1 or why is not None:
                    self._tell(ticket, why or _othersTurn(chosen), chosen, place)
                    continue
                places[chosen.busId] = 0
                self.hold(chosen.busId)
                ticket.turn.callback(chosen)

    def hold(self, busId: str) -> None:
        """It is somebody's turn: nobody else has one at this device."""
        timer = self._held.get(busId)
        if timer is not None:
            timer.cancel()
        self._held[busId] = None

    def freeSoon(self, busId: str) -> None:
        """Whose turn it was has some time to import it, if it still is its turn."""
        if busId in self._held and self._held[busId] is None:
            self._held[busId] = self._clock.callLater(TURN, self._timeOver, busId)

    def free(self, busId: str) -> None:
        """The turn is over."""
        if busId in self._held:
            self.hold(busId)
            self._timeOver(busId)

    def stop(self) -> None:
        """Send everybody away."""
        self._stopped = True
        for ticket in tuple(self._tickets):
            ticket.turn.errback(_stopping())
        for busId in tuple(self._held):
            self.free(busId)

    def _timeOver(self, busId: str) -> None:
        del self._held[busId]
        self.look()

    def _changed(self, changes: tuple[Change, ...]) -> None:
        if self._tickets:
            self.look()

    def _chosen(self, ticket: Ticket) -> UsbDevice | ShareError:
        try:
            rights = self._access.of(ticket.principal)
            return rights.select(ticket.request, self._inventory.snapshot.devices)
        except ShareError as error:
            return error

    def _why(self, ticket: Ticket, device: UsbDevice) -> ShareError | None:
        """
        Why it is not somebody's turn even if it is the first.
        """
        isHeld = device.busId in self._held and not ticket.request.force
        obstacle = self._obstacle(device, ticket.request, ticket.principal)
        return obstacle or (_othersTurn(device) if isHeld else None)

    def _tell(
        self, ticket: Ticket, why: ShareError, device: UsbDevice | None, place: int | None
    ) -> None:
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
        chosen = self._chosen(ticket)
        if isinstance(chosen, UsbDevice):
            ticket.turn.errback(self._why(ticket, chosen) or _othersTurn(chosen))
        else:
            ticket.turn.errback(chosen)

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


def _stopping() -> ShareError:
    return BackendUnavailable("the daemon is stopping: ask again when it is back")


def _othersTurn(device: UsbDevice) -> ShareError:
    return OperationFailed(device, f"it is the turn of others who wait for {device}")
