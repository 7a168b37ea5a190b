"""
The FIFO queue of the clients that wait for a device.
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
from usbip_server.model.policy import Principal
from usbip_server.model.replies import Notice, encodeDevices
from usbip_server.model.requests import AttachDevice
from usbip_server.model.timestamps import timestamp
from usbip_server.net.caller import Caller
from usbip_server.server.access.authorizer import Authorizer
from usbip_server.server.devices.view import DeviceView

TURN_SECONDS = 5.0
"""Time for a client without a lease to import the device it was given, before the next client
gets it."""

Obstacle = Callable[[UsbDevice, AttachDevice, Principal], OperationFailed | None]


class Ticket:
    """
    One waiting client.

    @ivar turn: fires with the device.
    @ivar place: in the queue, as the client was last notified.
    """

    def __init__(self, request: AttachDevice, caller: Caller) -> None:
        self.request = request
        self.caller = caller
        self.principal = caller.principal
        self.turn: Deferred[UsbDevice] = Deferred()
        self.place: int | None = 0

    def leave(self) -> None:
        """The client has disconnected."""
        if not self.turn.called:
            self.turn.errback(NotDone("the client is gone"))


class WaitQueue:
    """
    Clients in the order in which they came. Those that wait for one device do not delay those
    that wait for another.
    """

    def __init__(
        self,
        authorizer: Authorizer,
        view: DeviceView,
        obstacle: Obstacle,
        clock: IReactorTime,
        now: Callable[[], float],
    ) -> None:
        """
        @param obstacle: returns why a client cannot have a device now.
        @param now: the time, in seconds since the epoch.
        """
        self._authorizer = authorizer
        self._view = view
        self._obstacle = obstacle
        self._clock = clock
        self._now = now
        self._tickets: list[Ticket] = []
        self._held: dict[str, IDelayedCall | None] = {}
        self._isStopped = False

    def waitingFor(self, device: UsbDevice) -> int:
        """The number of clients that wait for a device."""
        selected = (self._selected(ticket) for ticket in self._tickets)
        return sum(isinstance(it, UsbDevice) and it.busId == device.busId for it in selected)

    async def turn(
        self, request: AttachDevice, caller: Caller, seconds: float, again: bool
    ) -> UsbDevice:
        """
        Wait until a client may have a device.

        @param seconds: how long at most.
        @param again: the client has had its turn in vain, and goes to the head of the queue.
        @raise ShareError: why it may not, when the time is over.
        """
        if self._isStopped:
            raise _stopping()
        if caller.isGone:
            raise NotDone("the client is gone")
        ticket = Ticket(request, caller)
        isFirst = again or request.force
        self._tickets.insert(0 if isFirst else len(self._tickets), ticket)
        caller.whenGone(ticket.leave)
        heartbeats = LoopingCall(self._heartbeat, ticket)
        heartbeats.clock = self._clock
        heartbeats.start(self._view.settings.timeouts.heartbeat, now=False)
        expiry = self._clock.callLater(seconds, self._expire, ticket)
        ticket.turn.addBoth(self._left, ticket, heartbeats, expiry)
        self.update()
        return await ticket.turn

    def update(self) -> None:
        """Give devices to the clients that may have them, and notify the others of their place."""
        if self._isStopped:
            return
        places: dict[str, int] = {}
        for ticket in tuple(self._tickets):
            if ticket not in self._tickets:
                continue  # it has left while another one had its turn
            selected = self._selected(ticket)
            if isinstance(selected, DeviceNotFound):
                self._notify(ticket, selected, None, None)
            elif isinstance(selected, ShareError):
                ticket.turn.errback(selected)
            else:
                place = places[selected.busId] = places.get(selected.busId, 0) + 1
                why = self._why(ticket, selected)
                if place > 1 or why is not None:
                    self._notify(ticket, why or _othersTurn(selected), selected, place)
                    continue
                places[selected.busId] = 0
                self.hold(selected.busId)
                ticket.turn.callback(selected)

    def hold(self, busId: str) -> None:
        """Give the device to no other client until C{free} or C{freeSoon}."""
        timer = self._held.get(busId)
        if timer is not None:
            timer.cancel()
        self._held[busId] = None

    def freeSoon(self, busId: str) -> None:
        """Give the client that has the device some time to import it, and then C{free} it."""
        if busId in self._held and self._held[busId] is None:
            self._held[busId] = self._clock.callLater(TURN_SECONDS, self._timeOver, busId)

    def free(self, busId: str) -> None:
        """Give the device to the next client."""
        if busId in self._held:
            self.hold(busId)
            self._timeOver(busId)

    def stop(self) -> None:
        """End the waiting of all clients with an error."""
        self._isStopped = True
        for ticket in tuple(self._tickets):
            ticket.turn.errback(_stopping())
        for busId in tuple(self._held):
            self.free(busId)

    def _timeOver(self, busId: str) -> None:
        del self._held[busId]
        self.update()

    def _selected(self, ticket: Ticket) -> UsbDevice | ShareError:
        try:
            rights = self._authorizer.of(ticket.principal)
            return rights.select(ticket.request, self._view.devices)
        except ShareError as error:
            return error

    def _why(self, ticket: Ticket, device: UsbDevice) -> ShareError | None:
        """Why a client cannot have a device even if it is the first in the queue."""
        isHeld = device.busId in self._held and not ticket.request.force
        obstacle = self._obstacle(device, ticket.request, ticket.principal)
        return obstacle or (_othersTurn(device) if isHeld else None)

    def _notify(
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
        selected = self._selected(ticket)
        if isinstance(selected, UsbDevice):
            ticket.turn.errback(self._why(ticket, selected) or _othersTurn(selected))
        else:
            ticket.turn.errback(selected)

    def _heartbeat(self, ticket: Ticket) -> None:
        ticket.caller.tell(Notice(event="heartbeat", time=timestamp(self._now())).encode())

    def _left(
        self, result: object, ticket: Ticket, heartbeats: LoopingCall, expiry: IDelayedCall
    ) -> object:
        self._tickets.remove(ticket)
        ticket.caller.forget(ticket.leave)
        heartbeats.stop()
        if expiry.active():
            expiry.cancel()
        if isinstance(result, Failure):
            self.update()  # those behind it move up
        return result


def _stopping() -> ShareError:
    return BackendUnavailable("the daemon is stopping: ask again when it is back")


def _othersTurn(device: UsbDevice) -> ShareError:
    return OperationFailed(device, f"other clients wait for {device} and are first")
