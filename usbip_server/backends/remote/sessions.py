"""
The sessions of clients that have imported a device through a gateway. To the server that has
the device the gateway is the client; here it is shown who it really is.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from usbip_server.model.device import DeviceState, Holder, Traffic, UsbDevice
from usbip_server.model.usbip import Exported
from usbip_server.net.relay import RemoteRelay


class RemoteSession(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """
    One of them.

    @ivar deviceNumber: of the device.
    @ivar holder: the client.
    @ivar since: when it began, by the other server's clock.
    @ivar exported: the device as that server has described it on import.
    """

    deviceNumber: int
    holder: Holder
    since: float | None
    exported: Exported
    relay: RemoteRelay

    def isOf(self, device: UsbDevice) -> bool:
        """
        Is this the session that its server tells of? Who has it by what it says is us, and
        since when it may have forgotten.
        """
        if device.state is not DeviceState.IN_USE or device.deviceNumber != self.deviceNumber:
            return False
        told = None if device.holder is None else device.holder.since
        return not self.relay.isOver or told == self.since

    def shown(self, device: UsbDevice) -> UsbDevice:
        """The device, with who has it, and what only an import tells of it."""
        exported = self.exported
        return msgspec.structs.replace(
            device,
            holder=self.holder,
            numbers=(exported.busNumber, exported.deviceNumber),
            subclass=exported.subclass,
            protocol=exported.protocol,
            release=exported.release,
            configurations=exported.configurations,
        )


class RemoteSessions:
    """
    Those there are, and the last ones there were, by bus ids.
    """

    def __init__(self) -> None:
        self._sessions: dict[str, RemoteSession] = {}
        self._beginning: set[str] = set()

    def begins(self, busId: str) -> None:
        """
        A client is to have a device: what its server tells of it from now on may be that
        already, and is not understood before C{add} or C{fail}.
        """
        self._beginning.add(busId)

    def fail(self, busId: str) -> None:
        """It does not come to that."""
        self._beginning.discard(busId)

    def isBeginning(self, busId: str) -> bool:
        """Is a session about to begin?"""
        return busId in self._beginning

    def add(self, busId: str, session: RemoteSession) -> None:
        """It has begun."""
        self._beginning.discard(busId)
        self._sessions[busId] = session

    def shown(self, device: UsbDevice) -> UsbDevice:
        """
        A device as it is to be shown.

        @param device: as its server tells of it, with the bus id it has here.
        """
        session = self._sessions.get(device.busId)
        return session.shown(device) if session is not None and session.isOf(device) else device

    def traffic(self, device: UsbDevice) -> Traffic | None:
        """What the device's last session has moved, if that was one of ours."""
        session = self._sessions.get(device.busId)
        if session is None or session.deviceNumber != device.deviceNumber:
            return None
        return session.relay.traffic if device.holder in (None, session.holder) else None

    def end(self, busId: str) -> None:
        """End a session, if there is one."""
        session = self._sessions.get(busId)
        if session is not None:
            session.relay.end()

    def endAll(self) -> None:
        """End all of them."""
        for session in tuple(self._open):
            session.relay.end()

    @property
    def _open(self) -> Iterator[RemoteSession]:
        return (each for each in self._sessions.values() if not each.relay.isOver)
