"""
The devices of one server, kept up to date by its events.

Each state of a device has a number, that of the last event of the server that it includes. Replies
and events may arrive in any order: a state never replaces one with a higher number.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from usbip_server.client.devices import deviceIn, messageIn, notUnderstood
from usbip_server.client.servers import Server
from usbip_server.client.watch import ServerWatch
from usbip_server.model.device import Traffic, UsbDevice, isBusId
from usbip_server.model.errors import ShareError, Unreachable
from usbip_server.model.replies import Code, ReceivedNotice, ReceivedReply, Refused
from usbip_server.runtime.backoff import Backoff, BackoffOptions, Random

BACK_OFF = BackoffOptions(longest=5.0)
"""Between attempts to connect."""

STEADY_SECONDS = 5.0
"""A connection has to last so long for the pauses to start from the first again."""

EVENTS = {"added", "bound", "unbound", "imported", "released", "changed", "lease", "removed"}
"""The events about a device; others are ignored."""


MOST_DEVICES = 512
"""Devices of a server that are shown. A bus has 127 at the most (USB 2.0, 4.1)."""

MOST_WARNINGS = 10
"""Devices of a server that are left out, and logged."""

LONGEST_BUS_ID = 26
"""Characters of a bus id at a server: at the gateway it has up to five more, and USB/IP has room
for 31 (C{SYSFS_BUS_ID_SIZE}, C{tools/usb/usbip/libsrc/usbip_common.h})."""


class _Event(msgspec.Struct, frozen=True, kw_only=True):
    event: str
    seq: int
    data: dict[str, Any] | None = None
    holder: dict[str, Any] | None = None


class KnownDevice(msgspec.Struct, frozen=True, kw_only=True):
    """
    A device of the server.

    @ivar device: with its bus id there.
    @ivar traffic: of its last session, as last reported.
    """

    device: UsbDevice
    traffic: Traffic | None = None


class RemoteWatch:
    """
    Watches one server.

    @ivar devices: its devices by their bus ids there; empty while it is not connected.
    @ivar trouble: why it is not connected; C{None}: it is.
    @ivar isEmptyGateway: it is a gateway that is connected to none of its servers.
    """

    _log = Logger()

    def __init__(
        self,
        server: Server,
        reactor: Any,
        changed: Callable[[str | None], None],
        chance: Random = random.random,
    ) -> None:
        """
        @param changed: called with the bus id of a device that has changed, or with C{None} if all
            may have.
        @param chance: see L{Backoff}.
        """
        self.devices: dict[str, KnownDevice] = {}
        self.trouble: str | None = f"{server.called(server.address)}: it has not answered yet"
        self.isEmptyGateway = False
        self._server = server
        self._changed = changed
        self._following = ServerWatch(
            server,
            reactor,
            self,
            Backoff(BACK_OFF, chance),
            steady=STEADY_SECONDS,
        )
        self._first: Deferred[None] = Deferred()
        self._snapshotSeq = 0
        self._seqs: dict[str, int] = {}  # of devices that have changed since the snapshot
        self._warnings: set[str] = set()

    def start(self) -> Deferred[None]:
        """
        Connect.

        @return: fires after the first reply of the server, or the first failure.
        """
        self._following.start()
        return self._first

    def stop(self) -> None:
        """Disconnect."""
        self._following.stop()

    def learn(self, busId: str, seq: int, data: Any, holder: Any = None) -> None:
        """
        Take over a state of a device, unless a newer one is known.

        @param seq: the number of the last event that the state includes.
        @param data: the device in JSON; C{None}: it is gone.
        @param holder: its last holder in JSON, with the traffic of the session.
        @raise Unreachable: the data is invalid.
        """
        self._learn(busId, seq, None if data is None else self._decode(data, holder))

    def _learn(self, busId: str, seq: int, known: KnownDevice | None) -> None:
        if self.trouble is not None or seq < self._seqs.get(busId, self._snapshotSeq):
            return
        if known is None:
            self.devices.pop(busId, None)
        elif known.device.busId != busId:
            raise notUnderstood(self._server, f"{known.device.busId} instead of {busId}")
        elif busId not in self.devices and len(self.devices) >= MOST_DEVICES:
            self._warn(f"it has more than {MOST_DEVICES}")
            return
        else:
            self.devices[busId] = known
        if len(self._seqs) >= 4 * MOST_DEVICES:
            self._snapshotSeq, self._seqs = max(self._seqs.values()), {}
        self._seqs[busId] = seq
        self._report(busId)

    def watchBegun(self, server: Server, reply: ReceivedReply) -> None:
        devices: dict[str, KnownDevice] = {}
        for data in reply.data[:MOST_DEVICES]:
            try:
                known = self._decode(data, None)
                devices[known.device.busId] = known
            except Unreachable as error:
                self._leaveOut(data, error)
        if len(reply.data) > MOST_DEVICES:
            self._warn(f"it has more than {MOST_DEVICES}")
        self.devices = devices
        self._snapshotSeq, self._seqs = reply.seq or 0, {}
        self.trouble = None
        self._log.info(
            "{server} connected, with {count} devices", server=str(server), count=len(devices)
        )
        self._report(None)

    def watchEvent(self, server: Server, notice: ReceivedNotice) -> None:
        if notice["event"] not in EVENTS:
            return
        try:
            event = msgspec.convert(notice, _Event)
        except msgspec.ValidationError as error:
            raise notUnderstood(server, str(error)) from error
        busId = None if event.data is None else event.data.get("bus_id")
        if not isinstance(busId, str) or not isBusId(busId):
            raise notUnderstood(server, "an event is about no device")
        known = None
        if event.event != "removed":
            try:
                known = self._decode(event.data, event.holder)
            except Unreachable as error:
                self._leaveOut(event.data, error)
        if known is not None or busId in self.devices:
            self._learn(busId, event.seq, known)

    def _leaveOut(self, data: Any, error: Unreachable) -> None:
        busId = data.get("bus_id") if isinstance(data, dict) else None
        self._warn(f"{messageIn(busId)}: {error}" if isinstance(busId, str) else str(error))

    def _warn(self, reason: str) -> None:
        """
        Log once that a device is not shown.
        """
        if reason not in self._warnings and len(self._warnings) < MOST_WARNINGS:
            self._warnings.add(reason)
            self._log.warn(
                "a device of {server} is left out: {reason}",
                server=str(self._server),
                reason=reason,
            )

    def _decode(self, data: Any, holder: Any) -> KnownDevice:
        """
        Decode a device. Traffic that is not reported is that of the known session.
        """
        device = deviceIn(self._server, data)
        if len(device.busId) > LONGEST_BUS_ID:
            raise notUnderstood(self._server, f"{device.busId} is longer than a bus id")
        traffic = _trafficOf(holder) or _trafficOf(data.get("holder"))
        before = self.devices.get(device.busId)
        if traffic is None and before is not None:
            isSame = before.device.deviceNumber == device.deviceNumber
            isNewSession = device.holder is not None and device.holder != before.device.holder
            traffic = before.traffic if isSame and not isNewSession else None
        return KnownDevice(device=device, traffic=traffic)

    def watchLost(self, server: Server, error: Exception) -> None:
        reason = messageIn(str(error))
        if not isinstance(error, ShareError):
            self._log.failure("bug while watching {server}", Failure(error), server=str(server))
            reason = f"{server}: an internal error: see the log"
        isNews = self.trouble is None or not self._first.called
        self.trouble = reason
        code = error.code if isinstance(error, Refused) else None
        self.isEmptyGateway = code == Code.NO_SERVER_CONNECTED.value
        self.devices = {}
        self._following.since = None  # the next connection begins with a snapshot
        if isNews:
            self._log.warn(
                "{reason}: the devices of {server} are not available until it is connected again",
                reason=reason,
                server=str(server),
            )
        self._report(None)

    def _report(self, busId: str | None) -> None:
        self._changed(busId)
        if not self._first.called:
            self._first.callback(None)


class _Traffic(msgspec.Struct, frozen=True, kw_only=True):
    bytes_in: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    bytes_out: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


def _trafficOf(holder: Any) -> Traffic | None:
    try:
        fields = msgspec.convert(holder, _Traffic)
    except msgspec.ValidationError:
        return None
    return Traffic(bytesIn=fields.bytes_in, bytesOut=fields.bytes_out)
