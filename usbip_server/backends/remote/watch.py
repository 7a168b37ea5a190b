"""
What a gateway knows of the devices of one server, which it follows.

Everything that is known of a device has a number: that of the server's last event it knows of.
So what an answer shows and what the events tell can come in any order, and nothing old
takes the place of anything newer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from usbip_server.client.devices import deviceIn
from usbip_server.client.servers import Server
from usbip_server.client.watch import Following
from usbip_server.model.device import Traffic, UsbDevice
from usbip_server.model.errors import ShareError, Unreachable
from usbip_server.model.replies import ReceivedNotice, ReceivedReply
from usbip_server.runtime.backoff import BackOff, Chance, Pauses

BACK_OFF = BackOff(longest=5.0)
"""Until it is tried again."""

STEADY = 5.0
"""Seconds that a server has to be there to be one that is not lost at once again."""

EVENTS = {"added", "bound", "unbound", "imported", "released", "changed", "lease", "removed"}
"""Those that say what has become of a device."""


class _Event(msgspec.Struct, frozen=True, kw_only=True):
    """
    An event as it comes.
    """

    event: str
    seq: int
    data: dict[str, Any] | None = None
    holder: dict[str, Any] | None = None


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """
    A device.

    @ivar device: as its server describes it, with its bus id there.
    @ivar traffic: what its last holder had moved when that was last told.
    """

    device: UsbDevice
    traffic: Traffic | None = None


class RemoteFollowing:
    """
    Follows one server.

    @ivar known: the devices it has, by their bus ids there; none while it is not there.
    @ivar trouble: why it is not there; C{None}: it is.
    """

    _log = Logger()

    def __init__(
        self,
        server: Server,
        reactor: Any,
        changed: Callable[[str | None], None],
        chance: Chance = random.random,
    ) -> None:
        """
        @param changed: called with the bus id of a device that something has happened to, or
            with C{None} if that can be all of them.
        @param chance: see L{Pauses}.
        """
        self.known: dict[str, Known] = {}
        self.trouble: str | None = f"{server.called(server.address)}: it has not answered yet"
        self._server = server
        self._changed = changed
        self._following = Following(
            server,
            reactor,
            self._begun,
            self._told,
            self._lost,
            Pauses(BACK_OFF, chance),
            steady=STEADY,
        )
        self._first: Deferred[None] = Deferred()
        self._begin = 0  # all that is known is from this event on
        self._asOf: dict[str, int] = {}  # and from this one, of some devices

    def start(self) -> Deferred[None]:
        """
        Begin.

        @return: fires when the server has answered for the first time, or was tried in vain.
        """
        self._following.start()
        return self._first

    def stop(self) -> None:
        """Follow it no more."""
        self._following.stop()

    def learn(self, busId: str, seq: int, data: Any, holder: Any = None) -> None:
        """
        What has become of a device.

        @param seq: the number of the last event that this knows of.
        @param data: the device as its server describes it; C{None}: there is none.
        @param holder: who has it or had it, with what was moved, if that was told.
        @raise Unreachable: it makes no sense.
        """
        if self.trouble is not None or seq < self._asOf.get(busId, self._begin):
            return
        if data is None:
            self.known.pop(busId, None)
        else:
            self.known[busId] = self._noted(data, holder)
        self._asOf[busId] = seq
        self._tell(busId)

    def _begun(self, server: Server, answer: ReceivedReply) -> None:
        noted = [self._noted(data, None) for data in answer.data]
        self.known = {known.device.busId: known for known in noted}
        self._begin, self._asOf = answer.seq or 0, {}
        self.trouble = None
        self._log.info(
            "{server} is there, with {count} devices", server=str(server), count=len(noted)
        )
        self._tell(None)

    def _told(self, server: Server, notice: ReceivedNotice) -> None:
        if notice["event"] not in EVENTS:
            return
        try:
            event = msgspec.convert(notice, _Event)
        except msgspec.ValidationError as error:
            raise self._nonsense(str(error)) from error
        if event.data is None:
            raise self._nonsense("an event is about no device")
        busId = deviceIn(server, event.data).busId
        isGone = event.event == "removed"
        self.learn(busId, event.seq, None if isGone else event.data, event.holder)

    def _noted(self, data: Any, holder: Any) -> Known:
        """
        What is known of a device from now on.
        """
        device = deviceIn(self._server, data)
        told = _moved(holder) or _moved(data.get("holder"))
        before = self.known.get(device.busId)
        if told is None and before is not None:
            isSame = before.device.deviceNumber == device.deviceNumber
            isNext = device.holder is not None and device.holder != before.device.holder
            told = before.traffic if isSame and not isNext else None
        return Known(device=device, traffic=told)

    def _lost(self, server: Server, error: Exception) -> None:
        why = str(error)
        if not isinstance(error, ShareError):
            self._log.failure("a bug in following {server}", Failure(error), server=str(server))
            why = f"{server}: it cannot be followed: see the log"
        wasThere = self.trouble is None or not self._first.called
        self.trouble = why
        self.known = {}
        self._following.since = None  # whatever it has when it is back is new
        if wasThere:
            self._log.warn(
                "{reason}: there are no devices of {server} until it is back",
                reason=why,
                server=str(server),
            )
        self._tell(None)

    def _tell(self, busId: str | None) -> None:
        self._changed(busId)
        if not self._first.called:
            self._first.callback(None)

    def _nonsense(self, why: str) -> Unreachable:
        called = self._server.called(self._server.address)
        return Unreachable(f"{called}: its answer is not understood: {why}")


def _moved(holder: Any) -> Traffic | None:
    if isinstance(holder, dict):
        came, went = holder.get("bytes_in"), holder.get("bytes_out")
        if isinstance(came, int) and isinstance(went, int):
            return Traffic(bytesIn=came, bytesOut=went)
    return None
