"""
Which HTTP requests may come from a web page: only those from our own.

A web page in somebody's browser can send a POST to any address it likes, so a request
that bears a foreign C{Origin}, or a C{Host} that is not a name of this machine (a name
that an attacker made resolve to it), is refused.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection

from usbip_server.model.errors import NotAllowed


class Admission:
    """
    Knows the names of this machine.
    """

    def __init__(self, hosts: Collection[str]) -> None:
        """
        @param hosts: names of this machine besides those it has itself.
        """
        own = socket.gethostname().lower()
        self._names = {"localhost", own, own.partition(".")[0], f"{own.partition('.')[0]}.local"}
        self._names |= {name.lower().rstrip(".") for name in hosts}

    def check(self, host: bytes | None, origin: bytes | None) -> None:
        """
        @param host: the request's C{Host}.
        @param origin: its C{Origin}.
        @raise NotAllowed: a web page of somebody else's may be behind it.
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
        Is it an address, or a name of this machine? An address cannot be a name that
        somebody else has made to resolve to us.
        """
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
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
