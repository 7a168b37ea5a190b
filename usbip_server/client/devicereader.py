"""
Decodes the devices that a server sends while it is watched. Everything is checked and bounded here:
what is wrong with one device costs that device alone.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import msgspec
from twisted.logger import Logger

from usbip_server.client.devices import RemoteDevice, messageIn, notUnderstood, remoteIn
from usbip_server.client.servers import Server
from usbip_server.model.device import isBusId
from usbip_server.model.errors import Unreachable
from usbip_server.model.inventory import ChangeKind
from usbip_server.model.replies import ReceivedNotice

EVENTS = frozenset(kind.value for kind in ChangeKind)
"""The events about a device; others are ignored."""

MOST_DEVICES = 512
"""Devices of a server that are shown. A bus has 127 at the most (USB 2.0, 4.1)."""

MOST_WARNINGS = 10
"""Devices of a server that are left out, and logged."""

LONGEST_BUS_ID = 31
"""Characters of a bus id (C{SYSFS_BUS_ID_SIZE}, C{tools/usb/usbip/libsrc/usbip_common.h})."""


class DeviceEvent(NamedTuple):
    """
    An event about a device.

    @ivar seq: its number.
    @ivar found: the device; C{None}: it is gone, or left out.
    @ivar holder: the holder in JSON, with the traffic of the session.
    """

    busId: str
    seq: int
    found: RemoteDevice | None
    holder: dict[str, Any] | None


class _Event(msgspec.Struct, frozen=True, kw_only=True):
    event: str
    seq: int
    data: dict[str, Any] | None = None
    holder: dict[str, Any] | None = None


class DeviceReader:
    """
    Decodes the devices of one server. A device that is not understood is left out, with a warning,
    and so is what is more than L{MOST_DEVICES}.
    """

    _log = Logger()

    def __init__(self, server: Server, longestBusId: int = LONGEST_BUS_ID) -> None:
        self._server = server
        self._longestBusId = longestBusId
        self._warnings: set[str] = set()

    def snapshot(self, data: Any) -> tuple[RemoteDevice, ...]:
        """
        The devices in the reply to C{watch}.

        @raise Unreachable: the data is not a list.
        """
        if not isinstance(data, list):
            raise notUnderstood(self._server, "its data is not a list")
        if len(data) > MOST_DEVICES:
            self._tooMany()
        read = map(self._read, data[:MOST_DEVICES])
        return tuple({found.device.busId: found for found in read if found is not None}.values())

    def event(self, notice: ReceivedNotice, known: Collection[str]) -> DeviceEvent | None:
        """
        An event about a device.

        @param known: the bus ids of the devices that are known.
        @return: C{None}: it is about no device that is or becomes known.
        @raise Unreachable: the event is not understood.
        """
        if notice["event"] not in EVENTS:
            return None
        try:
            event = msgspec.convert(notice, _Event)
        except msgspec.ValidationError as error:
            raise notUnderstood(self._server, str(error)) from error
        busId = None if event.data is None else event.data.get("bus_id")
        if not isinstance(busId, str) or not isBusId(busId):
            raise notUnderstood(self._server, "an event is about no device")
        isGone = event.event == ChangeKind.REMOVED.value
        found = None if isGone else self._read(event.data)
        if busId not in known and (found is None or not self.isRoom(known)):
            return None
        return DeviceEvent(busId, event.seq, found, event.holder)

    def isRoom(self, known: Collection[str]) -> bool:
        """Can one more device be shown? Otherwise a warning is logged."""
        if len(known) < MOST_DEVICES:
            return True
        self._tooMany()
        return False

    def device(self, data: Any) -> RemoteDevice:
        """
        One device.

        @raise Unreachable: it is not understood.
        """
        found = remoteIn(self._server, data)
        if len(found.device.busId) > self._longestBusId:
            raise notUnderstood(self._server, f"{found.device.busId} is longer than a bus id")
        return found

    def _read(self, data: Any) -> RemoteDevice | None:
        try:
            return self.device(data)
        except Unreachable as error:
            busId = data.get("bus_id") if isinstance(data, dict) else None
            self._warn(f"{messageIn(busId)}: {error}" if isinstance(busId, str) else str(error))
            return None

    def _tooMany(self) -> None:
        self._warn(f"it has more than {MOST_DEVICES}")

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
