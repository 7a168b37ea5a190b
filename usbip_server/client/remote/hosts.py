"""
The servers of a gateway, as its configuration names them, and what their devices are called
here.

Each has a range of bus numbers: what is C{1-1.4} at the third is C{301-1.4} here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec

from usbip_server.client.core.servers import (
    CONTROL_PORT,
    EXPORT_PORT,
    ClientTls,
    Server,
    TcpPort,
    serverAt,
)
from usbip_server.client.core.trust import contextFor, creatorFor
from usbip_server.commands import LONGEST_TOKEN
from usbip_server.device import UsbDevice, busOrder
from usbip_server.errors import InvalidOption

BUSES = 100
"""How far apart the ranges of two servers are: a bus there has a number below that."""

HIGHEST = 65000
"""The end of the last range is a number that fits into 16 bits, as that of a bus has to
(C{devid}, C{drivers/usb/usbip/vhci_sysfs.c})."""

Text = Annotated[str, msgspec.Meta(min_length=1)]


class HostOptions(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={"exportPort": "export_port", "tokenFile": "token_file"},
):
    """
    What is said of a server.

    @ivar host: its name or address.
    @ivar name: what it is called; C{None}: the same.
    @ivar port: for requests.
    @ivar exportPort: for USB/IP.
    @ivar token: proves who we are.
    @ivar tokenFile: where the token is instead.
    @ivar tls: how to speak TLS with it, on both ports; C{None}: it is spoken to in plain.
    @ivar bus: what is added to the numbers of its buses; C{None}: 100 for the first server,
        200 for the second, and so on.
    """

    host: Text
    name: Text | None = None
    port: TcpPort = CONTROL_PORT
    exportPort: TcpPort = EXPORT_PORT
    token: Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_TOKEN)] | None = None
    tokenFile: str | None = None
    tls: ClientTls | None = None
    bus: Annotated[int, msgspec.Meta(ge=0, le=HIGHEST)] | None = None


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    @ivar hosts: the servers; the name of one is enough.
    """

    hosts: Annotated[tuple[Text | HostOptions, ...], msgspec.Meta(min_length=1)]


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """
    A server.

    @ivar bus: what is added to the numbers of its buses.
    """

    server: Server
    bus: int

    def busIdHere(self, there: str) -> str | None:
        """
        What a bus id of its is here; C{None} if the number of its bus is too high.
        """
        number = busOrder(there)[0]
        return f"{self.bus + number}-{there.partition('-')[2]}" if number < BUSES else None

    def busIdThere(self, here: str) -> str | None:
        """
        The reverse; C{None} if it is none of this server's.
        """
        number = busOrder(here)[0] - self.bus
        return f"{number}-{here.partition('-')[2]}" if 0 < number < BUSES else None

    def here(self, device: UsbDevice, busId: str) -> UsbDevice:
        """
        A device of this server's as it is shown here. Its name and its lease there are none
        here.
        """
        return msgspec.structs.replace(
            device,
            busId=busId,
            description=f"{device.description} at {self.server}",
            path=f"{self.server}:{device.busId}",
            name=None,
            lease=None,
        )


def hostsIn(options: Options) -> tuple[Host, ...]:
    """
    The servers that are named.

    @raise InvalidOption: one cannot be meant, or there are two of a kind.
    """
    hosts: list[Host] = []
    for index, said in enumerate(options.hosts):
        host = _host(said, index)
        _requireApart(host, hosts, index)
        hosts.append(host)
    return tuple(hosts)


def _host(said: str | HostOptions, index: int) -> Host:
    path = ("hosts", index)
    bus = BUSES * (index + 1)
    if isinstance(said, str):
        return Host(server=_serverAt(said, path), bus=bus)
    server = _serverAt(said.host, (*path, "host"))
    if server.host != said.host:
        raise InvalidOption((*path, "host"), f"{said.host!r} has a port in it: say it in `port`")
    server = Server(
        name=said.name or said.host,
        host=said.host,
        port=said.port,
        exportPort=said.exportPort,
        token=_token(said, path),
        tls=said.tls,
    )
    _requireFiles(server, (*path, "tls"))
    return Host(server=server, bus=bus if said.bus is None else said.bus)


def _serverAt(text: str, path: tuple[str | int, ...]) -> Server:
    try:
        return serverAt(text)
    except ValueError as error:
        raise InvalidOption(path, str(error)) from None


def _requireFiles(server: Server, path: tuple[str | int, ...]) -> None:
    """
    @raise InvalidOption: what TLS takes is not there, or makes no sense.
    """
    if server.tls is None:
        return
    try:
        creatorFor(server.host, server.tls)
        contextFor(server.tls)
    except Exception as error:  # OpenSSL has errors of its own
        raise InvalidOption(path, str(error)) from None


def _token(said: HostOptions, path: tuple[str | int, ...]) -> str | None:
    if said.tokenFile is None:
        return said.token
    path = (*path, "token_file")
    if said.token is not None:
        raise InvalidOption(path, "stands beside `token`: it is one of them")
    try:
        with open(said.tokenFile, encoding="utf-8") as file:
            token = file.read(4 * LONGEST_TOKEN).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidOption(path, f"it cannot be read: {error}") from None
    if not 0 < len(token) <= LONGEST_TOKEN:
        raise InvalidOption(path, "there is no token in it")
    return token


def _requireApart(host: Host, others: Iterable[Host], index: int) -> None:
    for other in others:
        if other.server.name == host.server.name:
            raise InvalidOption(
                ("hosts", index), f"{host.server} stands here twice: give it another `name`"
            )
        if abs(other.bus - host.bus) < BUSES:
            raise InvalidOption(
                ("hosts", index),
                f"its buses, from {host.bus} on, are those of {other.server}, from {other.bus} "
                f"on: say `bus`, {BUSES} apart from any other",
            )
