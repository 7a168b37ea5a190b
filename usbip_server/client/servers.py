"""
Machines that share devices, as a client knows them.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import Annotated

import msgspec

CONTROL_PORT = 5055
EXPORT_PORT = 3240

MOST = 1024
"""Servers in one range at most."""

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
    TLS with a server. All but the last are paths of PEM files.

    @ivar ca: the CA that signs servers' certificates; C{None}: those that this machine trusts.
    @ivar certificate: of this client, for servers that require one.
    @ivar key: its private key; C{None}: it is in the same file.
    @ivar serverName: the name in the server's certificate; C{None}: its host.
    """

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    serverName: str | None = None

    def __post_init__(self) -> None:
        if self.key is not None and self.certificate is None:
            raise ValueError("`key` requires `certificate`")


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """
    A server and how to reach it.

    @ivar name: for users.
    @ivar host: a name or an address.
    @ivar port: TCP port for requests.
    @ivar exportPort: TCP port for USB/IP.
    @ivar token: authenticates this client.
    @ivar tls: C{None}: without TLS.
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
        Host and port as in C{--host}.
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
        For messages: its name, followed by an address if that is different.
        """
        return self.name if address == self.name else f"{self.name} ({address})"


def serverAt(text: str) -> Server:
    """
    The server at an address: C{raspi}, C{raspi:5056}, C{192.0.2.7}, C{::1}, C{[::1]:5056}.

    @raise ValueError: the text is not an address.
    """
    text = text.strip()
    if _isIpv6(text):
        return Server(name=text, host=text)
    found = _NAMED.fullmatch(text) or _BRACKETED.fullmatch(text)
    if found is None or (text.startswith("[") and not _isIpv6(found["host"])):
        raise ValueError(
            f"{text!r} is not a server: give NAME, ADDRESS, NAME:PORT or [IPV6]:PORT (the default "
            f"port is {CONTROL_PORT})"
        )
    port = CONTROL_PORT if found["port"] is None else int(found["port"])
    if not 0 < port < 65536:
        raise ValueError(f"{text!r} is not a server: {port} is not a TCP port (1 to 65535)")
    return Server(name=text, host=found["host"], port=port)


def serversIn(text: str) -> Iterator[str]:
    """
    The addresses in a range: C{192.0.2.10-192.0.2.20}, C{192.0.2.10-20} or C{192.0.2.0/28}.

    @raise ValueError: the text is not a range, or is one of more than L{MOST}.
    """
    import ipaddress  # loaded only where there are ranges

    try:
        if "/" in text:
            network = ipaddress.ip_network(text)
            if network.num_addresses > MOST:
                raise ValueError(f"it has {network.num_addresses} addresses, more than {MOST}")
            yield from map(str, network.hosts())
            return
        first, dash, last = text.partition("-")
        begin = ipaddress.ip_address(first.strip())
        if dash and last.strip().isdigit() and begin.version == 4:
            last = f"{str(begin).rpartition('.')[0]}.{last.strip()}"
        end = ipaddress.ip_address(last.strip()) if dash else begin
        if begin.version != end.version or not 0 <= int(end) - int(begin) < MOST:
            raise ValueError(f"it has to ascend, over at most {MOST} addresses")
    except ValueError as error:
        raise ValueError(f"{text!r} is not a range of addresses: {error}") from None
    kind = type(begin)
    yield from (str(kind(number)) for number in range(int(begin), int(end) + 1))


def _isIpv6(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, text.partition("%")[0])
    except (OSError, ValueError):
        return False
    return True
