"""
What commands say: to people, or in JSON to programs.

JSON is one object for each command::

    {"status": ..., "devices": [...], "errors": [{"server": ..., "message": ...}], "message": ...}
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.console import Console, RenderableType

from usbip_server.client.attach import Attached
from usbip_server.client.cli.exitcodes import Exit
from usbip_server.client.devices import RemoteDevice

WIDEST = 1_000_000
"""Columns of what is no terminal: nothing is cut off there."""

ShownFields = Mapping[str, Any]


class Show:
    """
    What one command says. Results go to standard output, all else to standard error.
    """

    def __init__(self, asJson: bool = False) -> None:
        """
        @param asJson: say results in JSON.
        """
        self.asJson = asJson
        self._errors: list[ShownFields] = []
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
        devices: Sequence[ShownFields] = (),
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


FAILED = 1
"""How a command ends whose results could not be written, as those of GNU do."""

_STREAMS = (("stdout", 1, os.O_RDONLY), ("stderr", 2, os.O_WRONLY))


class NotWritten(OSError):
    """
    Standard output does not take what is to be said.
    """


class Output(io.TextIOWrapper):
    """
    Standard output: what goes wrong with it is told from what goes wrong elsewhere.
    """

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise _notWritten(error) from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise _notWritten(error) from error


def prepare() -> None:
    """
    Let everything be written that devices may be called, and let there be something to write to.
    Where standard output is closed, writing to it is an error; what is said to a standard error
    that is closed is lost.
    """
    for name, number, mode in _STREAMS:
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, mode)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            made = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, made)
            setattr(sys, f"__{name}__", made)
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if type(sys.stdout) is io.TextIOWrapper:
        sys.stdout = Output(
            sys.stdout.buffer,
            encoding=sys.stdout.encoding,
            errors=sys.stdout.errors,
            line_buffering=sys.stdout.line_buffering,
            write_through=sys.stdout.write_through,
        )


def giveUp() -> None:
    """
    Write no more to standard output: what could not be written would be tried once more at the
    end.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _notWritten(error: OSError) -> NotWritten:
    return NotWritten(error.errno, error.strerror)


Fields = dict[str, Any]


def fieldsOf(found: RemoteDevice, attached: Attached | None = None) -> Fields:
    """
    A device of a server's.

    @param attached: where it is plugged in here.
    """
    return {
        "server": found.server.name,
        **{key: value for key, value in found.raw.items() if key != "server"},
        **({} if attached is None else pluggedFields(attached)),
    }


def portFields(attached: Attached, server: str | None) -> Fields:
    """
    What is plugged in here.

    @param server: where it came from, if that is known.
    """
    busId = None if attached.record is None else attached.record.busId
    return {"server": server, "bus_id": busId, **pluggedFields(attached)}


def pluggedFields(attached: Attached) -> Fields:
    """
    Where something is plugged in here.
    """
    return {
        "port": attached.port,
        "local_bus_id": attached.localBusId,
        "local_devices": [*attached.nodes],
    }
