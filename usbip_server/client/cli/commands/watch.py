"""
C{usbipshare watch}.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from usbip_server.client.cli.completion import devices, serialNumbers
from usbip_server.client.cli.options import withServers

if TYPE_CHECKING:
    from usbip_server.client.cli.context import CommandContext

_EXAMPLES = """\b
Examples:
  usbipshare watch
  usbipshare watch --serial '7533*' --json
"""


@click.command("watch", epilog=_EXAMPLES)
@click.option(
    "--id",
    metavar="ID",
    shell_complete=devices,
    help="Only devices with this bus id, name or vid:pid, or a glob.",
)
@click.option(
    "--bus",
    metavar="BUS",
    shell_complete=devices,
    help="Only devices on this bus, or with this bus id.",
)
@click.option(
    "--serial",
    metavar="NUMBER",
    shell_complete=serialNumbers,
    help="Only devices with this serial number, or a glob.",
)
@click.option(
    "--desc", metavar="TEXT", help="Only devices with this in their description, or a glob."
)
@click.option(
    "--path", metavar="PATH", help="Only devices at this path of a physical port, or a glob."
)
@withServers
def command(context: CommandContext, **criteria: str | None) -> None:
    """
    Print the events of all servers as they happen, a line for each, until ctrl-C.

    After a server was unreachable, the events that were missed are printed first.
    """
    from usbip_server.client.cli.eventprinter import EventPrinter, run
    from usbip_server.client.selection import selectorOf

    try:
        selectorOf(None, False, **criteria)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    wanted = {name: value for name, value in criteria.items() if value is not None}
    try:
        run(lambda reactor: EventPrinter(context).watch(reactor, wanted))
    except KeyboardInterrupt:
        return  # the usual end
