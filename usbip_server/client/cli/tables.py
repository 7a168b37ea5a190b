"""
Tables of devices and servers for people.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from usbip_server.client.devices import RemoteDevice
from usbip_server.model.device import DeviceState, UsbDevice

if TYPE_CHECKING:
    from usbip_server.client.attach import Attached
    from usbip_server.net.mdns import FoundServer
from usbip_server.client.cli.text import Cell, Table, cell

STYLES = {
    DeviceState.FREE: "",
    DeviceState.BOUND: "green",
    DeviceState.IN_USE: "yellow",
    DeviceState.ERROR: "red",
}

OF_INTERFACES = "00"
"""The class of a device whose interfaces have classes of their own (USB 2.0, 9.6.1)."""

DAY = 86400.0
"""Seconds."""


def devicesTable(
    found: Sequence[RemoteDevice], numbered: bool = False, isAway: bool = False
) -> Table:
    """
    Devices, a row for each.

    @param numbered: the first column has the numbers from 1.
    @param isAway: they are not plugged in.
    """
    columns = ("server", "bus id", "name", "id", "serial", "description", "state", "who")
    rows = []
    for number, (each, description) in enumerate(zip(found, _descriptions(found), strict=True), 1):
        device = each.device
        cells = [
            cell(each.server.name),
            cell(device.busId),
            cell(device.name),
            cell(f"{device.vendorId}:{device.productId}"),
            cell(device.serial),
            cell(description),
            cell("away") if isAway else cell(device.state.value, STYLES[device.state]),
            cell(userOf(device)),
        ]
        rows.append([cell(str(number)), *cells] if numbered else cells)
    return _titled(("", *columns) if numbered else columns, rows)


def _descriptions(found: Sequence[RemoteDevice]) -> list[str]:
    """
    The descriptions of devices. Where several are alike, as of devices with the same chip, each is
    followed by the device's own product string.
    """
    times = Counter(each.device.description for each in found)
    return [
        ", ".join(each.device.names)
        if times[each.device.description] > 1
        else each.device.description
        for each in found
    ]


def deviceTable(found: RemoteDevice) -> Table:
    """
    All details of a device, a row for each.
    """
    device = found.device
    fields = (
        ("server", found.server.called(found.server.address)),
        ("bus id", device.busId),
        ("path", device.path),
        ("name", device.name),
        ("id", f"{device.vendorId}:{device.productId}"),
        ("serial", device.serial),
        ("description", device.description),
        ("manufacturer", device.manufacturer),
        ("product", device.product),
        ("speed", None if device.speed is None else f"{device.speed} Mbit/s"),
        ("class", None if device.deviceClass == OF_INTERFACES else _class(device.deviceClass)),
        ("interfaces", ", ".join(map(_class, device.interfaces))),
        ("driver", device.driver),
        ("state", device.state.value),
        ("who", userOf(device)),
        ("trouble", device.trouble),
    )
    return Table([(cell(name, "bold"), cell(value)) for name, value in fields if value])


def _class(code: str) -> str:
    """A class with its word, if there is one."""
    from usbip_server.model.devicerules import classWord

    return " ".join(filter(None, (code, classWord(code))))


def portsTable(rows: Iterable[tuple[Attached, str, str]]) -> Table:
    """
    The devices attached to this machine, a row for each.

    @param rows: each with its server and its bus id there, as far as these are known.
    """
    return _titled(
        ("port", "local bus id", "server", "bus id", "nodes"),
        [
            [
                cell(str(attached.port)),
                cell(attached.localBusId),
                cell(server),
                cell(busId),
                cell(" ".join(attached.nodes)),
            ]
            for attached, server, busId in rows
        ],
    )


def serversTable(rows: Iterable[Sequence[str]]) -> Table:
    """
    Servers, a row for each.

    @param rows: name, address, kind or what is wrong, number of devices, number of these in use,
        duration of the reply.
    """
    columns = ("server", "address", "answers", "devices", "in use", "time")
    return _titled(columns, [[*map(cell, row)] for row in rows])


def foundTable(found: Iterable[FoundServer]) -> Table:
    """
    Servers that have announced themselves, a row for each.
    """
    rows = []
    for each in found:
        ports = each.ports
        shown = [ports.requests, ports.secureRequests, ports.export, ports.secureExport]
        cells = [each.name, each.addresses[0], *(str(port) if port else None for port in shown)]
        rows.append([*map(cell, cells), cell(each.version)])
    columns = ("name", "address", "port", "tls port", "usb/ip", "usb/ip tls", "version")
    return _titled(columns, rows)


def userOf(device: UsbDevice) -> str:
    """
    Who uses a device or has leased it; empty if nobody has.
    """
    parts = []
    if device.holder is not None:
        who = device.holder.address or "an unknown client"
        since = device.holder.since
        parts.append(who if since is None else f"{who} since {_when(since)}")
    if device.lease is not None:
        until = device.lease.until
        when = "while it is connected" if until is None else f"until {_when(until)}"
        parts.append(f"leased by {device.lease.owner} {when}")
    return ", ".join(parts)


def _when(seconds: float) -> str:
    """A time in the local time zone, with the date if it is more than half a day away."""
    isNear = abs(time.time() - seconds) < DAY / 2
    return time.strftime("%H:%M" if isNear else "%Y-%m-%d %H:%M", time.localtime(seconds))


def _titled(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    return Table(rows, [column.upper() for column in columns])
