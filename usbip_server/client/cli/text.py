"""
Text for terminals: harmless, and laid out in columns.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TextIO

import click

GAP = "  "
"""Between two columns."""

INDENT = "    "
"""Of the further lines of a row that does not fit in columns."""

USUAL_WIDTH = 80
"""Columns of a terminal that does not report its width."""


def plain(text: str) -> str:
    """
    A text without control characters: names of devices and messages of servers must not control
    the terminal. Other blanks than the space become spaces.
    """
    return text if text.isprintable() else "".join(map(_harmless, text))


def _harmless(char: str) -> str:
    if char.isprintable():
        return char
    return " " if unicodedata.category(char) == "Zs" else "\N{REPLACEMENT CHARACTER}"


def widthOf(stream: TextIO) -> int:
    """
    The columns of a terminal: C{COLUMNS}, or what the terminal reports.
    """
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or USUAL_WIDTH
    except (OSError, ValueError):
        return USUAL_WIDTH


def hasColours(stream: TextIO) -> bool:
    """
    Whether a stream shows colours: a terminal does, unless C{NO_COLOR} is set, or C{TERM} is one
    without colours and C{FORCE_COLOR} is not set.
    """
    if not stream.isatty() or os.environ.get("NO_COLOR"):
        return False
    isForced = os.environ.get("FORCE_COLOR", "0") not in ("", "0")
    return isForced or os.environ.get("TERM", "") not in ("dumb", "unknown")


class Cell(NamedTuple):
    """
    A text in a table.

    @ivar style: on terminals: a colour, C{bold}, both or neither.
    """

    text: str
    style: str = ""

    @property
    def width(self) -> int:
        """The columns that it takes on a terminal."""
        return _width(self.text)

    def wrapped(self, room: int) -> list[Cell]:
        """
        The cell in lines, broken between words only: what is copied from a terminal stays whole.
        """
        if self.width <= room:
            return [self]
        lines: list[str] = []
        for word in self.text.split():
            if lines and _width(lines[-1]) + 1 + _width(word) <= room:
                lines[-1] += f" {word}"
            else:
                lines.append(word)
        return [Cell(line, self.style) for line in lines]

    def printed(self, isColoured: bool) -> str:
        """The text with its style."""
        if not isColoured or not self.style:
            return self.text
        colour = self.style.removeprefix("bold").strip() or None
        return click.style(self.text, fg=colour, bold=self.style.startswith("bold") or None)


def cell(value: str | None, style: str = "") -> Cell:
    """A cell, without control characters; C{-} if there is nothing to show."""
    return Cell(plain(value or "-"), style)


Row = Sequence[Cell]


class Table(NamedTuple):
    """
    Rows of cells, and the titles of the columns, if these have any.
    """

    rows: Sequence[Row]
    titles: Sequence[str] = ()

    def lines(self, stream: TextIO) -> list[str]:
        """
        The table as it is printed to a stream: fitted to the width of a terminal, and coloured.
        """
        isColoured = hasColours(stream)
        rows = [[Cell(title, "bold") for title in self.titles]] if self.titles else []
        rows += [[*row] for row in self.rows]
        widths = [max(each.width for each in column) for column in zip(*rows, strict=True)]
        if stream.isatty():
            room = widthOf(stream)
            if not _shrink(widths, rows, room - len(GAP) * (len(widths) - 1)):
                return [line for row in rows for line in _flowing(row, room, isColoured)]
        return [line for row in rows for line in _aligned(row, widths, isColoured)]


def _shrink(widths: list[int], rows: Sequence[Row], room: int) -> bool:
    """
    Make columns narrower, the widest first, but not narrower than their longest words.

    @return: whether they fit.
    """
    least = [
        max(max(map(_width, each.text.split()), default=0) for each in column)
        for column in zip(*rows, strict=True)
    ]
    if sum(least) > room:
        return False
    while sum(widths) > room:
        _, widest = max((width, i) for i, width in enumerate(widths) if width > least[i])
        widths[widest] -= 1
    return True


def _aligned(row: Row, widths: Sequence[int], isColoured: bool) -> Iterator[str]:
    """
    The lines of a row in columns.
    """
    columns = [each.wrapped(width) for each, width in zip(row, widths, strict=True)]
    for number in range(max(map(len, columns))):
        line, end = "", 0
        at = 0
        for column, width in zip(columns, widths, strict=True):
            if number < len(column) and column[number].text:
                line += " " * (at - end) + column[number].printed(isColoured)
                end = at + column[number].width
            at += width + len(GAP)
        yield line.rstrip()


def _flowing(row: Row, room: int, isColoured: bool) -> Iterator[str]:
    """
    The lines of a row whose cells follow one another, on a terminal that is too narrow for columns.
    """
    line, end = "", 0
    cells = [*row]
    while len(cells) > 1 and cells[-1].text == "-":
        cells.pop()
    for each in cells:
        for piece in each.wrapped(room - len(INDENT)):
            if line and end + len(GAP) + piece.width > room:
                yield line
                line, end = INDENT, len(INDENT)
            elif line:
                line, end = line + GAP, end + len(GAP)
            line, end = line + piece.printed(isColoured), end + piece.width
    yield line


def _width(text: str) -> int:
    """The columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        0
        if unicodedata.category(c) in ("Mn", "Me")
        else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )
