"""
Protects the HTTP port against foreign web pages (CSRF, DNS rebinding).

A web page in a browser can send a POST to any address, so a request with a foreign C{Origin} is
refused, and so is one whose C{Host} is not a name of this machine: an attacker can make his own
name resolve to its address.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Collection

from usbip_server.model.errors import NotAllowed


class Admission:
    """
    Refuses requests that a foreign web page may have sent.
    """

    def __init__(self, hosts: Callable[[], Collection[str]]) -> None:
        """
        @param hosts: returns the names of this machine besides those it has itself.
        """
        own = socket.gethostname().lower()
        self._hosts = hosts
        self._names = {"localhost", own, own.partition(".")[0], f"{own.partition('.')[0]}.local"}

    def check(self, host: bytes | None, origin: bytes | None) -> None:
        """
        @param host: the request's C{Host}.
        @param origin: its C{Origin}.
        @raise NotAllowed: a foreign web page may have sent it.
        """
        if host is not None and not self._isOurs(_hostName(host)):
            raise NotAllowed(
                f"{_shown(host)} is not a name of this machine: "
                "use its address, or add the name to `http: {hosts: [...]}`"
            )
        if origin is not None and (host is None or origin.partition(b"://")[2] != host):
            raise NotAllowed(f"a page of {_shown(origin)} may not use this daemon")

    def _isOurs(self, name: str) -> bool:
        """
        Is it an address, or a name of this machine? Only a name can be made to resolve to this
        machine by an attacker.
        """
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names or name in {
                host.lower().rstrip(".") for host in self._hosts()
            }
        return True


def _hostName(host: bytes) -> str:
    """
    The name in a C{Host} header (RFC 9110, 7.2), without port and brackets.
    """
    text = host.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0].partition("%")[0]
    return text.partition(":")[0].rstrip(".")


def _shown(header: bytes) -> str:
    return repr(header[:100].decode("latin-1"))
