"""
The sessions of clients that have imported a device through the gateway. The server of the device
reports the gateway as its holder; the gateway shows its own client instead.
"""

from __future__ import annotations

import msgspec

from usbip_server.model.device import DeviceState, Holder, Traffic, UsbDevice
from usbip_server.model.usbip import Exported
from usbip_server.net.relay import SocketRelay


class RemoteSession(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """
    The session of one client.

    @ivar holder: the client.
    @ivar since: when it began, by the clock of the device's server.
    @ivar exported: the device as its server has described it in the reply to the import.
    """

    deviceNumber: int
    holder: Holder
    since: float | None
    exported: Exported
    relay: SocketRelay

    def isOf(self, device: UsbDevice) -> bool:
        """
        Is this the session that the server of the device reports? After a restart of its daemon
        the time when it began may be unknown.
        """
        if device.state is not DeviceState.IN_USE or device.deviceNumber != self.deviceNumber:
            return False
        since = None if device.holder is None else device.holder.since
        return not self.relay.isOver or since == self.since

    def shown(self, device: UsbDevice) -> UsbDevice:
        """The device with its holder, and with what only the reply to the import contains."""
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
    The current or last session of each device, by bus id.
    """

    def __init__(self) -> None:
        self._sessions: dict[str, RemoteSession] = {}
        self._beginning: set[str] = set()

    def reserve(self, busId: str) -> None:
        """
        Note that a session is about to begin: until L{add} or L{cancel} it is not known whether an
        import that the server reports is this one.
        """
        self._beginning.add(busId)

    def cancel(self, busId: str) -> None:
        """Note that the session does not begin."""
        self._beginning.discard(busId)

    def isBeginning(self, busId: str) -> bool:
        """Is a session about to begin?"""
        return busId in self._beginning

    def add(self, busId: str, session: RemoteSession) -> None:
        """Add a session that has begun."""
        self._beginning.discard(busId)
        self._sessions[busId] = session

    def shown(self, device: UsbDevice) -> UsbDevice:
        """
        A device as the gateway shows it.

        @param device: as its server reports it, with its bus id at the gateway.
        """
        session = self._sessions.get(device.busId)
        return session.shown(device) if session is not None and session.isOf(device) else device

    def traffic(self, device: UsbDevice) -> Traffic | None:
        """The traffic of the device's last session, if it was through the gateway."""
        session = self._sessions.get(device.busId)
        if session is None or session.deviceNumber != device.deviceNumber:
            return None
        return session.relay.traffic if device.holder in (None, session.holder) else None

    def end(self, busId: str) -> None:
        """End the session of a device, if there is one."""
        session = self._sessions.get(busId)
        if session is not None:
            session.relay.end()

    def endAll(self) -> None:
        """End all sessions."""
        for session in self._sessions.values():
            if not session.relay.isOver:
                session.relay.end()
