"""
What the daemon announces in the local network: itself, if it listens on more than loopback.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

from twisted.internet.interfaces import IListeningPort

from usbip_server import __version__
from usbip_server.net.announcer import Announcer, hostName
from usbip_server.net.endpoints import Listener, OverTls, Purpose
from usbip_server.net.mdns import Announcement, Ports
from usbip_server.server.config import Advertise


class Advertiser:
    """
    Announces the daemon, as the configuration has it.
    """

    def __init__(self) -> None:
        self._announcement: Announcement | None = None
        self._announcer: Announcer | None = None

    def update(
        self, options: Advertise | bool, opened: Iterable[tuple[Listener, IListeningPort]]
    ) -> None:
        """
        Announce these ports from now on.

        @param options: C{False}: announce nothing.
        @param opened: the listeners, and the ports that they have opened.
        """
        announcement = None if options is False else _announcement(options, opened)
        if announcement == self._announcement:
            return
        self.stop()
        self._announcement = announcement
        if announcement is not None:
            self._announcer = Announcer(announcement)
            self._announcer.start()

    def stop(self) -> Announcer | None:
        """
        Begin to withdraw the announcement.

        @return: to wait for that.
        """
        announcer, self._announcer, self._announcement = self._announcer, None, None
        if announcer is not None:
            announcer.stop()
        return announcer


def _announcement(
    options: Advertise | bool, opened: Iterable[tuple[Listener, IListeningPort]]
) -> Announcement | None:
    """
    @return: C{None} if nobody else can reach a port for requests.
    """
    given = options if isinstance(options, Advertise) else Advertise()
    ports: dict[str, int] = {}
    for listener, port in opened:
        address: Any = port.getHost()
        if _isReachable(getattr(address, "host", None)):
            ports.setdefault(_kindOf(listener), address.port)
    known = Ports(**ports)
    if known.requests is None and known.secureRequests is None:
        return None
    return Announcement(given.name or hostName(), __version__, known, given.interfaces)


def _kindOf(listener: Listener) -> str:
    """The field of L{Ports} for a listener."""
    if listener.purpose is Purpose.REQUESTS:
        return "secureRequests" if isinstance(listener.endpoint, OverTls) else "requests"
    return "export" if listener.purpose is Purpose.EXPORT else "secureExport"


def _isReachable(host: str | None) -> bool:
    """Does a port with this address accept connections from other machines?"""
    if host is None:
        return False  # a unix socket
    try:
        return not ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
