"""
Tables of devices and servers for people.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TextIO

from usbip_server.client.cli.output import plain
from usbip_server.client.devices import RemoteDevice
from usbip_server.model.device import DeviceState, UsbDevice

if TYPE_CHECKING:
    from usbip_server.client.attach import Attached

STYLES = {
    DeviceState.FREE: "",
    DeviceState.BOUND: "green",
    DeviceState.IN_USE: "yellow",
    DeviceState.ERROR: "red",
}

DAY = 86400.0
"""Seconds."""

GAP = "  "
"""Between two columns."""


class Cell(NamedTuple):
    """
    A text in a table, and its style on terminals, in rich's terms.
    """

    text: str
    style: str = ""


def cell(value: str | None, style: str = "") -> Cell:
    """A cell, without control characters; C{-} if there is nothing to show."""
    return Cell(plain(value or "-"), style)


class Table(NamedTuple):
    """
    Rows of cells, and the titles of the columns, if these have any.
    """

    rows: Sequence[Sequence[Cell]]
    titles: Sequence[str] = ()

    def lines(self, stream: TextIO) -> list[str]:
        """
        The table as it is printed to a stream: a terminal's is as wide as that, and coloured.
        """
        return [*(self._forTerminal(stream) if stream.isatty() else self._asText())]

    def _asText(self) -> Iterator[str]:
        """Without rich, which takes longer to load than all else that C{list} does."""
        texts = [[each.text for each in row] for row in self.rows]
        if self.titles:
            texts.insert(0, [*self.titles])
        widths = [max(map(_width, column)) for column in zip(*texts, strict=True)]
        for row in texts:
            padded = (text + " " * (n - _width(text)) for text, n in zip(row, widths, strict=True))
            yield GAP.join(padded).rstrip()

    def _forTerminal(self, stream: TextIO) -> Iterator[str]:
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        hasTitles = bool(self.titles)
        table = RichTable(box=None, pad_edge=False, show_header=hasTitles, header_style="bold")
        for title in self.titles:
            table.add_column(title, overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(each.text, style=each.style) for each in row))
        console = Console(file=stream, markup=False, emoji=False, highlight=False)
        with console.capture() as captured:
            console.print(table)
        yield from (line.rstrip() for line in captured.get().splitlines())


def devicesTable(found: Sequence[RemoteDevice], numbered: bool = False) -> Table:
    """
    Devices, a row for each.

    @param numbered: the first column has the numbers from 1.
    """
    columns = ("server", "bus id", "name", "id", "serial", "description", "state", "who")
    rows = []
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
            cell(userOf(device)),
        ]
        rows.append([cell(str(number)), *cells] if numbered else cells)
    return _titled(("", *columns) if numbered else columns, rows)


def deviceTable(found: RemoteDevice) -> Table:
    """
    All details of a device, a row for each.
    """
    device = found.device
    fields = (
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
        ("who", userOf(device)),
        ("trouble", device.trouble),
    )
    return Table([(cell(name, "bold"), cell(value)) for name, value in fields if value])


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


def _width(text: str) -> int:
    """The columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )
