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

from usbip_server.client.devicereader import MOST_DEVICES, DeviceReader
from usbip_server.client.devices import RemoteDevice, messageIn, notUnderstood
from usbip_server.client.servers import Server
from usbip_server.client.watch import ServerWatch
from usbip_server.model.device import Traffic, UsbDevice
from usbip_server.model.errors import ShareError
from usbip_server.model.replies import Code, ReceivedNotice, ReceivedReply, Refused
from usbip_server.runtime.backoff import Backoff, BackoffOptions, Random

BACK_OFF = BackoffOptions(longest=5.0)
"""Between attempts to connect."""

STEADY_SECONDS = 5.0
"""A connection has to last so long for the pauses to start from the first again."""

LONGEST_BUS_ID = 26
"""Characters of a bus id at a server: at the gateway it has up to five more, and USB/IP has room
for 31 (C{SYSFS_BUS_ID_SIZE}, C{tools/usb/usbip/libsrc/usbip_common.h})."""


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
        self._reader = DeviceReader(server, LONGEST_BUS_ID)

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
        found = None if data is None else self._reader.device(data)
        if found is not None and found.device.busId != busId:
            raise notUnderstood(self._server, f"{found.device.busId} instead of {busId}")
        if found is None or busId in self.devices or self._reader.isRoom(self.devices):
            self._learn(busId, seq, found, holder)

    def _learn(self, busId: str, seq: int, found: RemoteDevice | None, holder: Any) -> None:
        if self.trouble is not None or seq < self._seqs.get(busId, self._snapshotSeq):
            return
        if found is None:
            self.devices.pop(busId, None)
        else:
            self.devices[busId] = self._known(found, holder)
        if len(self._seqs) >= 4 * MOST_DEVICES:
            self._snapshotSeq, self._seqs = max(self._seqs.values()), {}
        self._seqs[busId] = seq
        self._report(busId)

    def watchBegun(self, server: Server, reply: ReceivedReply) -> None:
        found = self._reader.snapshot(reply.data)
        devices = {each.device.busId: self._known(each, None) for each in found}
        self.devices = devices
        self._snapshotSeq, self._seqs = reply.seq or 0, {}
        self.trouble = None
        self._log.info(
            "{server} connected, with {count} devices", server=str(server), count=len(devices)
        )
        self._report(None)

    def watchEvent(self, server: Server, notice: ReceivedNotice) -> None:
        event = self._reader.event(notice, self.devices)
        if event is not None:
            self._learn(event.busId, event.seq, event.found, event.holder)

    def _known(self, found: RemoteDevice, holder: Any) -> KnownDevice:
        """
        A device with its traffic. If that is not reported, it is that of the known session.
        """
        device = found.device
        traffic = _trafficOf(holder) or _trafficOf(found.raw.get("holder"))
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
