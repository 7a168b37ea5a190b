"""
Machines that share devices, as a client knows them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Annotated

import msgspec

CONTROL_PORT = 5055
EXPORT_PORT = 3240

MOST = 1024
"""Servers in one range."""

TcpPort = Annotated[int, msgspec.Meta(ge=1, le=65535)]

_NAMED = re.compile(r"(?P<host>[^\[\]:/\s]+)(:(?P<port>[0-9]+))?")
_BRACKETED = re.compile(r"\[(?P<host>[^\[\]/\s]+)\](:(?P<port>[0-9]+))?")


class ClientTls(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={"serverName": "server_name"},
):
    """
    How to speak TLS with a server. All but the last are files in PEM.

    @ivar ca: whose certificates servers may show; C{None}: those this machine trusts.
    @ivar certificate: ours, if it asks for one.
    @ivar key: its key; C{None}: it is in the same file.
    @ivar serverName: what stands in the server's certificate, if that is not its host.
    """

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    serverName: str | None = None

    def __post_init__(self) -> None:
        if self.key is not None and self.certificate is None:
            raise ValueError("`key` needs `certificate`: whose key is it?")


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """
    One of them.

    @ivar name: what it is called, for people.
    @ivar host: a name or an address.
    @ivar port: for requests.
    @ivar exportPort: for USB/IP.
    @ivar token: proves who we are.
    @ivar tls: C{None}: it is spoken to in plain.
    """

    name: str
    host: str
    port: int = CONTROL_PORT
    exportPort: int = EXPORT_PORT
    token: str | None = None
    tls: ClientTls | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def address(self) -> str:
        """
        Host and port, as they are typed.
        """
        if self.port == CONTROL_PORT:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def exportAddress(self) -> str:
        """
        Host and port for USB/IP.
        """
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.exportPort}"

    def called(self, address: str) -> str:
        """
        Its name, and behind that an address if it is another: for messages.
        """
        return self.name if address == self.name else f"{self.name} ({address})"


def serverAt(text: str) -> Server:
    """
    The server that somebody has named: C{raspi}, C{raspi:5056}, C{192.0.2.7}, C{::1},
    C{[::1]:5056}.

    @raise ValueError: that is no name of a server.
    """
    text = text.strip()
    if _isIpv6(text):
        return Server(name=text, host=text)
    found = _NAMED.fullmatch(text) or _BRACKETED.fullmatch(text)
    if found is None or (text.startswith("[") and not _isIpv6(found["host"])):
        raise ValueError(
            f"{text!r} is no server: say its name or address, and its port behind a colon if "
            f"that is not {CONTROL_PORT}; an IPv6 address with a port in brackets"
        )
    port = CONTROL_PORT if found["port"] is None else int(found["port"])
    if not 0 < port < 65536:
        raise ValueError(f"{text!r} is no server: {port} is no port")
    return Server(name=text, host=found["host"], port=port)


def serversIn(text: str) -> Iterator[str]:
    """
    The addresses in a range: C{192.0.2.10-192.0.2.20}, C{192.0.2.10-20} or C{192.0.2.0/28}.

    @raise ValueError: that is no range, or one of more than L{MOST}.
    """
    try:
        if "/" in text:
            network = ipaddress.ip_network(text)
            if network.num_addresses > MOST:
                raise ValueError(f"there are {network.num_addresses} in it, {MOST} at the most")
            yield from map(str, network.hosts())
            return
        first, dash, last = text.partition("-")
        begin = ipaddress.ip_address(first.strip())
        if dash and last.strip().isdigit() and begin.version == 4:
            last = f"{str(begin).rpartition('.')[0]}.{last.strip()}"
        end = ipaddress.ip_address(last.strip()) if dash else begin
        if begin.version != end.version or not 0 <= int(end) - int(begin) < MOST:
            raise ValueError(f"it has to go up, by {MOST} at the most")
    except ValueError as error:
        raise ValueError(f"{text!r} is no range of addresses: {error}") from None
    kind = type(begin)
    yield from (str(kind(number)) for number in range(int(begin), int(end) + 1))


def _isIpv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text.partition("%")[0]).version == 6
    except ValueError:
        return False
