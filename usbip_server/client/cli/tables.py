"""
Devices and servers as people see them.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from usbip_server.client.attach import Attached
from usbip_server.client.cli.output import plain
from usbip_server.client.devices import RemoteDevice
from usbip_server.model.device import DeviceState, UsbDevice

STYLES = {
    DeviceState.FREE: "",
    DeviceState.BOUND: "green",
    DeviceState.IN_USE: "yellow",
    DeviceState.ERROR: "red",
}

DAY = 86400.0


def devicesTable(found: Sequence[RemoteDevice], numbered: bool = False) -> Table:
    """
    Devices, one a line.

    @param numbered: from 1.
    """
    columns = ("server", "bus id", "name", "id", "serial", "description", "state", "who")
    table = _table(*(("", *columns) if numbered else columns))
    for number, each in enumerate(found, 1):
        device = each.device
        cells = [
            cell(each.server.name),
            cell(device.busId),
            cell(device.name),
            cell(f"{device.vendorId}:{device.productId}"),
            cell(device.serial),
            cell(device.description),
            cell(device.state.value, STYLES[device.state]),
            cell(whoHas(device)),
        ]
        table.add_row(*([cell(str(number)), *cells] if numbered else cells))
    return table


def deviceTable(found: RemoteDevice) -> Table:
    """
    All that is known of a device, a line for each part.
    """
    device = found.device
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in (
        ("server", f"{found.server} ({found.server.address})"),
        ("bus id", device.busId),
        ("name", device.name),
        ("id", f"{device.vendorId}:{device.productId}"),
        ("serial", device.serial),
        ("description", device.description),
        ("manufacturer", device.manufacturer),
        ("product", device.product),
        ("speed", None if device.speed is None else f"{device.speed} Mbit/s"),
        ("class", device.deviceClass),
        ("interfaces", " ".join(device.interfaces)),
        ("driver", device.driver),
        ("state", device.state.value),
        ("who", whoHas(device)),
        ("trouble", device.trouble),
    ):
        if value:
            table.add_row(cell(name, "bold"), cell(value))
    return table


def portsTable(rows: Iterable[tuple[Attached, str, str]]) -> Table:
    """
    What is plugged in here.

    @param rows: each with its server and its bus id there, where they are known.
    """
    table = _table("port", "local bus id", "server", "bus id", "nodes")
    for attached, server, busId in rows:
        table.add_row(
            cell(str(attached.port)),
            cell(attached.localBusId),
            cell(server),
            cell(busId),
            cell(" ".join(attached.nodes)),
        )
    return table


def serversTable(rows: Iterable[Sequence[str]]) -> Table:
    """
    Servers, and how they are.

    @param rows: name, address, how it is, devices, how many of them are in use, how long its
        answer took.
    """
    table = _table("server", "address", "answers", "devices", "in use", "time")
    for row in rows:
        table.add_row(*map(cell, row))
    return table


def whoHas(device: UsbDevice) -> str:
    """
    Who has a device, or has leased it.
    """
    parts = []
    if device.holder is not None:
        who = device.holder.address or "somebody"
        since = device.holder.since
        parts.append(who if since is None else f"{who} since {_when(since)}")
    if device.lease is not None:
        until = device.lease.until
        when = "while it is connected" if until is None else f"until {_when(until)}"
        parts.append(f"leased by {device.lease.owner} {when}")
    return ", ".join(parts)


def _when(seconds: float) -> str:
    """A time as one reads it at that place, with the date if it is not about now."""
    when = datetime.datetime.fromtimestamp(seconds)
    isNear = abs((datetime.datetime.now() - when).total_seconds()) < DAY / 2
    return when.strftime("%H:%M" if isNear else "%Y-%m-%d %H:%M")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.upper(), overflow="fold")
    return table


def cell(value: str | None, style: str = "") -> Text:
    return Text(plain(value or "-"), style=style)
