"""
What commands say: to people, or in JSON to programs.

JSON is one object for each command::

    {"status": ..., "devices": [...], "errors": [{"server": ..., "message": ...}], "message": ...}
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.console import Console, RenderableType

from usbip_server.client.terminal.exits import Exit

WIDEST = 1_000_000
"""Columns of what is no terminal: nothing is cut off there."""

Fields = Mapping[str, Any]


class Show:
    """
    What one command says. Results go to standard output, all else to standard error.
    """

    def __init__(self, asJson: bool = False) -> None:
        """
        @param asJson: say results in JSON.
        """
        self.asJson = asJson
        self._errors: list[Fields] = []
        self._progress = ""

    def note(self, text: str) -> None:
        """Something that people should know."""
        self._wipe()
        click.echo(plain(text), err=True)

    def progress(self, text: str, isNews: bool = False) -> None:
        """
        What is going on. On a terminal the next thing that is said takes its place.

        @param isNews: it is to be said elsewhere, too.
        """
        if sys.stderr.isatty():
            self._wipe()
            self._progress = text
            width = shutil.get_terminal_size().columns - 1  # more could not be wiped away
            click.echo(plain(text)[:width], err=True, nl=False)
        elif isNews and text != self._progress:
            self._progress = text
            click.echo(plain(text), err=True)

    def trouble(self, server: str | None, message: str) -> None:
        """
        Something went wrong.

        @param server: the one that it is about.
        """
        self._errors.append({"server": server, "message": message})
        self.note(message)

    def table(self, table: RenderableType, err: bool = False) -> None:
        """For people; colours only on a terminal, and not if C{NO_COLOR} is set."""
        if self.asJson and not err:
            return
        self._wipe()
        stream = sys.stderr if err else sys.stdout
        width = None if stream.isatty() else WIDEST
        console = Console(file=stream, width=width, markup=False, emoji=False, highlight=False)
        with console.capture() as captured:
            console.print(table)
        for line in captured.get().splitlines():
            click.echo(line.rstrip(), err=err, color=True)

    def line(self, text: str) -> None:
        """A result, for people."""
        if not self.asJson:
            self._wipe()
            click.echo(plain(text))

    def result(
        self,
        devices: Sequence[Fields] = (),
        status: Exit = Exit.DONE,
        message: str | None = None,
        **more: Any,
    ) -> None:
        """
        The result, for programs.

        @param devices: those that it is about.
        @param message: for people.
        @param more: further keys.
        """
        if self.asJson:
            self.event(
                status=status.word,
                devices=[*devices],
                errors=self._errors,
                message=message,
                **more,
            )

    def event(self, **fields: Any) -> None:
        """A line of JSON."""
        self._wipe()
        click.echo(json.dumps(fields))

    def _wipe(self) -> None:
        if self._progress and sys.stderr.isatty():
            click.echo("\r\x1b[K", err=True, nl=False)
        self._progress = ""


def plain(text: str) -> str:
    """
    A text with nothing in it that a terminal would take for an order: devices and servers say
    what they like.
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
