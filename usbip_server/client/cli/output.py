"""
The output of a command: text for people, or one JSON object for programs::

    {"status": ..., "devices": [...], "errors": [{"server": ..., "message": ...}], "message": ...}

Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from usbip_server.client.cli.text import Table, plain, widthOf

if TYPE_CHECKING:  # not loaded by commands that do without
    from usbip_server.client.attach import Attached
    from usbip_server.client.devices import RemoteDevice

Fields = dict[str, Any]

SUCCESS = "success"


class Printer:
    """
    Prints what one command has to report.
    """

    def __init__(self, asJson: bool = False) -> None:
        """
        @param asJson: print results as JSON.
        """
        self.asJson = asJson
        self._errors: list[Fields] = []
        self._progress = ""

    def note(self, text: str) -> None:
        """Print a message for people to standard error."""
        self._wipe()
        click.echo(plain(text), err=True)

    def progress(self, text: str, isNews: bool = False) -> None:
        """
        Print what the command does now. On a terminal the next output replaces it.

        @param isNews: print it also where standard error is not a terminal.
        """
        if sys.stderr.isatty():
            self._wipe()
            self._progress = text
            width = widthOf(sys.stderr) - 1  # a longer line could not be erased
            click.echo(plain(text)[:width], err=True, nl=False)
        elif isNews and text != self._progress:
            self._progress = text
            click.echo(plain(text), err=True)

    def trouble(self, server: str | None, message: str) -> None:
        """
        Report an error that does not end the command.

        @param server: the server that it is about.
        """
        self._errors.append({"server": server, "message": message})
        self.note(message)

    def table(self, table: Table, err: bool = False) -> None:
        """Print a table for people. Colours only on a terminal, and not if C{NO_COLOR} is set."""
        if self.asJson and not err:
            return
        self._wipe()
        for line in table.lines(sys.stderr if err else sys.stdout):
            click.echo(line, err=err, color=True)

    def line(self, text: str) -> None:
        """Print a result for people."""
        if not self.asJson:
            self._wipe()
            click.echo(plain(text))

    def result(
        self,
        devices: Sequence[Mapping[str, Any]] = (),
        status: str = SUCCESS,
        message: str | None = None,
        **more: Any,
    ) -> None:
        """
        Print the result for programs.

        @param devices: the devices that it is about.
        @param status: see L{usbip_server.client.cli.exitcodes.Exit.word}.
        @param message: for people.
        @param more: further keys.
        """
        if self.asJson:
            self.event(
                status=status, devices=[*devices], errors=self._errors, message=message, **more
            )

    def event(self, **fields: Any) -> None:
        """Print a line of JSON."""
        import json

        self._wipe()
        click.echo(json.dumps(fields))

    def _wipe(self) -> None:
        if self._progress and sys.stderr.isatty():
            click.echo("\r\x1b[K", err=True, nl=False)
        self._progress = ""


def fieldsOf(found: RemoteDevice, attached: Attached | None = None) -> Fields:
    """
    The JSON object of a server's device.

    @param attached: the same device attached to this machine; C{None}: it is not.
    """
    return {
        "server": found.server.name,
        **{key: value for key, value in found.raw.items() if key != "server"},
        **({} if attached is None else _localFields(attached)),
    }


def portFields(attached: Attached, server: str | None) -> Fields:
    """
    The JSON object of an attached device.

    @param server: that it came from, if that is known.
    """
    busId = None if attached.record is None else attached.record.busId
    return {"server": server, "bus_id": busId, **_localFields(attached)}


def _localFields(attached: Attached) -> Fields:
    return {
        "port": attached.port,
        "local_bus_id": attached.localBusId,
        "local_devices": [*attached.nodes],
    }


FAILED = 1
"""Exit code of a command whose results could not be written, as of the GNU core utilities."""

_STREAMS = (("stdout", 1, os.O_RDONLY), ("stderr", 2, os.O_WRONLY))


class NotWritten(OSError):
    """
    Standard output cannot be written.
    """


class StandardOutput(io.TextIOWrapper):
    """
    Standard output, whose errors are distinguished from those of other files.
    """

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise NotWritten(error.errno, error.strerror) from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise NotWritten(error.errno, error.strerror) from error


def prepareStreams() -> None:
    """
    Make standard output and error accept every text, and exist: a stream that was closed when the
    process started is opened. Writing to a standard output that was closed is an error;
    messages to a standard error that was closed are discarded.
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
        sys.stdout = StandardOutput(
            sys.stdout.buffer,
            encoding=sys.stdout.encoding,
            errors=sys.stdout.errors,
            line_buffering=sys.stdout.line_buffering,
            write_through=sys.stdout.write_through,
        )


def closeOutput() -> None:
    """
    Discard what standard output still buffers: Python would try to write it again at exit.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
