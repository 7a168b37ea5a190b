"""
The configuration of a gateway: its servers, and the bus ids of their devices at the gateway. Each
server has a range of bus numbers: C{1-1.4} of the third is C{301-1.4} at the gateway.
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
"""The size of a range."""

HIGHEST = 65000
"""The start of the last range: bus numbers have 16 bits (C{devid},
C{drivers/usb/usbip/vhci_sysfs.c})."""


class HostOptions(ServerOptions, frozen=True, kw_only=True):
    """
    A server.

    @ivar host: its host name or address.
    @ivar name: its name in descriptions of devices; C{None}: C{host}.
    @ivar bus: the start of its range; C{None}: 100 for the first server, 200 for the second, and
        so on.
    """

    host: Text
    name: Text | None = None
    bus: Annotated[int, msgspec.Meta(ge=0, le=HIGHEST)] | None = None


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    @ivar hosts: the servers, each with options or only by its host name.
    """

    hosts: Annotated[tuple[Text | HostOptions, ...], msgspec.Meta(min_length=1)]


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """
    A server, and its range of bus numbers.

    @ivar bus: the start of the range.
    """

    server: Server
    bus: int

    def busIdHere(self, there: str) -> str | None:
        """
        Convert a bus id of the server; C{None} if the number of its bus is too high.
        """
        number = busOrder(there)[0]
        return f"{self.bus + number}-{there.partition('-')[2]}" if number < BUSES else None

    def busIdThere(self, here: str) -> str | None:
        """
        Convert a bus id of the gateway; C{None} if it is not in this server's range.
        """
        number = busOrder(here)[0] - self.bus
        return f"{number}-{here.partition('-')[2]}" if 0 < number < BUSES else None

    def here(self, device: UsbDevice, busId: str) -> UsbDevice:
        """
        Convert a device of the server. Its name and its lease are not shown at the gateway.
        """
        return msgspec.structs.replace(
            device,
            busId=busId,
            description=f"{device.description} at {self.server}",
            path=device.path and f"{self.server}/{device.path}",
            sysfsPath=f"{self.server}:{device.busId}",
            name=None,
            lease=None,
        )


def hostsIn(options: Options) -> tuple[Host, ...]:
    """
    The configured servers.

    @raise InvalidOption: one is invalid, or two have the same name or overlapping ranges.
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
                ("hosts", index), f"{host.server} is named twice: give one of them another `name`"
            )
        if abs(other.bus - host.bus) < BUSES:
            raise InvalidOption(
                ("hosts", index),
                f"its range of buses, from {host.bus}, overlaps that of {other.server}, from "
                f"{other.bus}: set `bus` to a number at least {BUSES} from any other",
            )
