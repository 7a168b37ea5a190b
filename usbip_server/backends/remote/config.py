"""
The servers of a gateway, as its configuration names them, and what their devices are called
here.

Each has a range of bus numbers: what is C{1-1.4} at the third is C{301-1.4} here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec

from usbip_server.client.config import ServerOptions, Text
from usbip_server.client.servers import Server, serverAt
from usbip_server.model.device import UsbDevice, busOrder
from usbip_server.model.options import InvalidOption

BUSES = 100
"""How far apart the ranges of two servers are: a bus there has a number below that."""

HIGHEST = 65000
"""The end of the last range is a number that fits into 16 bits, as that of a bus has to
(C{devid}, C{drivers/usb/usbip/vhci_sysfs.c})."""


class HostOptions(ServerOptions, frozen=True, kw_only=True):
    """
    What is said of a server.

    @ivar host: its name or address.
    @ivar name: what it is called; C{None}: the same.
    @ivar bus: what is added to the numbers of its buses; C{None}: 100 for the first server,
        200 for the second, and so on.
    """

    host: Text
    name: Text | None = None
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
    try:
        if isinstance(said, str):
            return Host(server=serverAt(said), bus=bus)
        server = said.server(said.name or said.host, said.host)
    except ValueError as error:
        raise InvalidOption(path, str(error)) from None
    except InvalidOption as error:
        raise InvalidOption((*path, *error.path), error.reason) from None
    return Host(server=server, bus=bus if said.bus is None else said.bus)


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
