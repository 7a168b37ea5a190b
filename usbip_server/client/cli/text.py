"""
Text for terminals: harmless, and laid out in columns.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TextIO

GAP = "  "
"""Between two columns."""


def plain(text: str) -> str:
    """
    A text without control characters: names of devices and messages of servers must not control
    the terminal.
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


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


def _width(text: str) -> int:
    """The columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )
