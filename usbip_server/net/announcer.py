"""
Announces a server in the local network with multicast DNS; see L{usbip_server.net.mdns}.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from twisted.logger import Logger

from usbip_server.net.mdns import SERVICE, USBIP_SERVICE, Announcement, privateAddresses

if TYPE_CHECKING:
    from zeroconf import ServiceInfo, Zeroconf

LOOK_SECONDS = 15.0
"""How often the addresses of this machine are looked at: a network may come up later."""

GIVE_UP_SECONDS = 5.0
"""How long an announcement or its end may take."""


class Announcer:
    """
    Announces a server, in a thread of its own, until it is stopped.
    """

    _log = Logger()

    def __init__(
        self,
        announcement: Announcement,
        addresses: Callable[[Sequence[str]], tuple[str, ...]] = privateAddresses,
    ) -> None:
        """
        @param addresses: returns this machine's addresses on some interfaces.
        """
        self._announcement = announcement
        self._addresses = addresses
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="mdns")

    def start(self) -> None:
        """Begin to announce."""
        self._thread.start()

    def stop(self) -> None:
        """Begin to withdraw the announcement; see L{join}."""
        self._stopping.set()

    def join(self, seconds: float = GIVE_UP_SECONDS) -> None:
        """Block until the announcement is withdrawn."""
        self._thread.join(seconds)

    def _run(self) -> None:
        known: tuple[str, ...] = ()
        current: Zeroconf | None = None
        while not self._stopping.is_set():
            try:
                now = self._addresses(self._announcement.interfaces)
                if now != known:
                    if current is not None:
                        current.close()
                    current, known = self._announced(now) if now else None, now
            except Exception as error:  # of sockets, and zeroconf's own
                self._log.warn(
                    "cannot announce this server in the network: {error}", error=str(error)
                )
            self._stopping.wait(LOOK_SECONDS)
        if current is not None:
            current.close()  # withdraws what was registered

    def _announced(self, addresses: tuple[str, ...]) -> Zeroconf:
        from zeroconf import Zeroconf

        made = Zeroconf(interfaces=list(addresses))
        try:
            for info in self._services(addresses):
                made.register_service(info, allow_name_change=True)
        except BaseException:
            made.close()
            raise
        self._log.info(
            "announcing {name} in the network, on {addresses}",
            name=self._announcement.name,
            addresses=", ".join(addresses),
        )
        return made

    def _services(self, addresses: tuple[str, ...]) -> list[ServiceInfo]:
        from zeroconf import ServiceInfo

        name, version, ports, _ = self._announcement
        label = name.encode()[:63].decode(errors="ignore").replace(".", "-")  # RFC 1035, 2.3.4
        packed = [ipaddress.ip_address(address.partition("%")[0]).packed for address in addresses]
        host = f"{label}-usbipshare.local."  # another name than Avahi's, which it would defend
        services = [(SERVICE, ports.requests or ports.secureRequests, ports.properties)]
        services.append((USBIP_SERVICE, ports.export, {}))
        return [
            ServiceInfo(
                kind,
                f"{label}.{kind}",
                port,
                properties={"version": version, **properties},
                server=host,
                addresses=packed,
            )
            for kind, port, properties in services
            if port is not None
        ]


def hostName() -> str:
    """The name of this machine, without its domain."""
    return socket.gethostname().partition(".")[0] or "usbipshare"
