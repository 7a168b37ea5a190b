"""
C{usbipshare list}.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from usbip_server.client.cli.options import withSelector, withServers

if TYPE_CHECKING:
    from usbip_server.client.cli.context import CommandContext
    from usbip_server.client.selection import Selector

_EXAMPLES = """\b
Examples:
  usbipshare list
  usbipshare list --host raspi --host bench:5056
  usbipshare list --desc arduino --json
  usbipshare list --away
"""


@click.command("list", epilog=_EXAMPLES)
@click.option(
    "--away",
    is_flag=True,
    help="List instead the devices that are attached and not plugged in; detach forgets them.",
)
@withServers
@withSelector(required=False)
def command(context: CommandContext, selector: Selector | None, away: bool) -> None:
    """
    List the devices of all servers; with WORD or criteria, those that match.

    WORD is a name, a bus id, vid:pid, a serial number or a part of the description: the first of
    these that matches any device.
    """
    from usbip_server.client.cli.output import fieldsOf
    from usbip_server.client.cli.tables import devicesTable
    from usbip_server.client.selection import among

    result = context.required(context.awayQuietly()) if away else context.discover()
    found = result.found
    if selector is not None:
        found = among(selector, found)
    if found:
        context.printer.table(devicesTable(found, isAway=away))
    else:
        context.printer.note("no devices" if selector is None else f"no device matches {selector}")
    context.printer.result([fieldsOf(each) for each in found])
