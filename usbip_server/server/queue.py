"""
The FIFO queue of the clients that wait for a device.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from operator import attrgetter

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
from usbip_server.model.inventory import Change
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

PLACES_PAUSE = 1.0
"""Seconds between two notifications of the same clients about their places."""

Obstacle = Callable[[UsbDevice, AttachDevice, Principal], OperationFailed | None]


class Ticket:
    """
    One waiting client.

    @ivar number: the order of the tickets.
    @ivar turn: fires with the device.
    @ivar busId: of the device that the request selects at present; C{None}: it selects none.
    @ivar place: in the queue, as the client was last notified.
    """

    def __init__(self, request: AttachDevice, caller: Caller, number: int) -> None:
        self.request = request
        self.caller = caller
        self.number = number
        self.principal = caller.principal
        self.turn: Deferred[UsbDevice] = Deferred()
        self.busId: str | None = None
        self.place: int | None = 0

    def isAbout(self, change: Change) -> bool:
        """Does the request select a device that has changed, or has it selected it before?"""
        selector, before = self.request.selector, change.before
        return (
            change.device.busId == self.busId
            or selector.matches(change.device)
            or (before is not None and selector.matches(before))
        )

    def leave(self) -> None:
        """The client has disconnected."""
        if not self.turn.called:
            self.turn.errback(NotDone("the client is gone"))


class WaitQueue:
    """
    Clients in the order in which they came. Those that wait for one device do not delay those
    that wait for another.

    What a request selects is looked up when the client comes, and again when one of the devices
    that it is about has changed. So a change costs time in proportion to the number of clients,
    and a client that comes or goes does not cause a search of all devices for all others.
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
        self._tickets: dict[int, Ticket] = {}
        self._lines: dict[str | None, list[Ticket]] = {}
        self._held: dict[str, IDelayedCall | None] = {}
        self._notified: dict[str, IDelayedCall] = {}
        self._outdated: set[str] = set()
        self._first = self._last = 0
        self._isStopped = False

    def __len__(self) -> int:
        """The number of clients that wait."""
        return len(self._tickets)

    def waitingFor(self, device: UsbDevice) -> int:
        """The number of clients that wait for a device."""
        return len(self._lines.get(device.busId, ()))

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
        ticket = Ticket(request, caller, self._number(isFirst=again or bool(request.force)))
        self._tickets[ticket.number] = ticket
        self._lines.setdefault(None, []).append(ticket)
        caller.whenGone(ticket.leave)
        heartbeats = LoopingCall(self._heartbeat, ticket)
        heartbeats.clock = self._clock
        heartbeats.start(self._view.settings.timeouts.heartbeat, now=False)
        expiry = self._clock.callLater(seconds, self._expire, ticket)
        ticket.turn.addBoth(self._left, ticket, heartbeats, expiry)
        self._place(ticket)
        self._serve(ticket.busId)
        if not ticket.turn.called and ticket.busId is not None:
            self._notify(ticket, 1 + self._lines[ticket.busId].index(ticket))
        return await ticket.turn

    def update(self, changes: tuple[Change, ...]) -> None:
        """Devices have changed: give them to the clients that may have them."""
        concerned = [
            ticket
            for ticket in self._tickets.values()
            if any(ticket.isAbout(change) for change in changes)
        ]
        self._update(concerned, {change.device.busId for change in changes})

    def updateAll(self) -> None:
        """The rights of clients have changed."""
        self._update([*self._tickets.values()], {*filter(None, self._lines)})

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
        for ticket in tuple(self._tickets.values()):
            ticket.turn.errback(_stopping())
        for busId in tuple(self._held):
            self.free(busId)
        for timer in self._notified.values():
            timer.cancel()
        self._notified.clear()

    def _number(self, isFirst: bool) -> int:
        if isFirst:
            self._first -= 1
            return self._first
        self._last += 1
        return self._last

    def _timeOver(self, busId: str) -> None:
        del self._held[busId]
        self._serve(busId)

    def _update(self, tickets: list[Ticket], busIds: set[str]) -> None:
        for ticket in tickets:
            if not ticket.turn.called:
                before = ticket.busId
                self._place(ticket)
                busIds |= {it for it in (before, ticket.busId) if it is not None}
        for busId in busIds & self._lines.keys():
            self._serve(busId)
            self._movedUp(busId)

    def _place(self, ticket: Ticket) -> None:
        """Put a client into the line for the device that its request selects at present."""
        try:
            rights = self._authorizer.of(ticket.principal)
            request, view = ticket.request, self._view
            device = rights.select(request, view.devices, view.unavailable)
            busId: str | None = device.busId
        except DeviceNotFound as error:
            busId = None
            self._send(ticket, error, None, None)
        except ShareError as error:
            ticket.turn.errback(error)
            return
        self._leaveLine(ticket)
        ticket.busId = busId
        insort(self._lines.setdefault(busId, []), ticket, key=attrgetter("number"))

    def _leaveLine(self, ticket: Ticket) -> None:
        line = self._lines[ticket.busId]
        line.remove(ticket)
        if not line:
            del self._lines[ticket.busId]

    def _serve(self, busId: str | None) -> None:
        """Give a device to the clients that may have it."""
        while not self._isStopped and busId is not None and self._lines.get(busId):
            ticket = self._lines[busId][0]
            device = self._view.inventory.get(busId)
            if device is None or self._why(ticket, device) is not None:
                return
            self.hold(busId)
            ticket.turn.callback(device)

    def _movedUp(self, busId: str) -> None:
        """Notify clients of their new places, unless that was done a moment ago: then later."""
        if busId in self._notified:
            self._outdated.add(busId)
        elif not self._isStopped:
            self._notified[busId] = self._clock.callLater(PLACES_PAUSE, self._mayNotify, busId)
            for place, ticket in enumerate(tuple(self._lines.get(busId, ())), 1):
                self._notify(ticket, place)

    def _mayNotify(self, busId: str) -> None:
        del self._notified[busId]
        if busId in self._outdated:
            self._outdated.discard(busId)
            self._movedUp(busId)

    def _why(self, ticket: Ticket, device: UsbDevice) -> ShareError | None:
        """Why a client cannot have a device even if it is the first in the queue."""
        isHeld = device.busId in self._held and not ticket.request.force
        obstacle = self._obstacle(device, ticket.request, ticket.principal)
        return obstacle or (_othersTurn(device) if isHeld else None)

    def _notify(self, ticket: Ticket, place: int) -> None:
        """Notify a client of its place, and of why it waits."""
        device = None if ticket.busId is None else self._view.inventory.get(ticket.busId)
        if device is not None and ticket.place != place:
            self._send(ticket, self._why(ticket, device) or _othersTurn(device), device, place)

    def _send(
        self, ticket: Ticket, why: ShareError, device: UsbDevice | None, place: int | None
    ) -> None:
        if ticket.place == place:
            return
        ticket.place = place
        detail = bool(ticket.request.detail)
        notice = Notice(
            event="queued",
            time=timestamp(self._now()),
            data=None if device is None else encodeDevices(device, detail),
            place=place,
            message=str(why),
        )
        ticket.caller.tell(notice.encode())

    def _expire(self, ticket: Ticket) -> None:
        try:
            rights = self._authorizer.of(ticket.principal)
            devices, unavailable = self._view.devices, self._view.unavailable
            device = rights.select(ticket.request, devices, unavailable)
        except ShareError as error:
            ticket.turn.errback(error)
        else:
            ticket.turn.errback(self._why(ticket, device) or _othersTurn(device))

    def _heartbeat(self, ticket: Ticket) -> None:
        ticket.caller.tell(Notice(event="heartbeat", time=timestamp(self._now())).encode())

    def _left(
        self, result: object, ticket: Ticket, heartbeats: LoopingCall, expiry: IDelayedCall
    ) -> object:
        busId = ticket.busId
        del self._tickets[ticket.number]
        self._leaveLine(ticket)
        ticket.caller.forget(ticket.leave)
        heartbeats.stop()
        if expiry.active():
            expiry.cancel()
        if busId is not None:
            if isinstance(result, Failure):
                self._serve(busId)
            self._movedUp(busId)
        return result


def _stopping() -> ShareError:
    return BackendUnavailable("the daemon is stopping: ask again when it is back")


def _othersTurn(device: UsbDevice) -> ShareError:
    return OperationFailed(device, f"other clients wait for {device} and are first")
