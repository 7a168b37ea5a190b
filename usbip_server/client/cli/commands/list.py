"""
C{usbipshare list}.
"""

from __future__ import annotations

import click

from usbip_server.client.cli.context import CommandContext
from usbip_server.client.cli.options import asking, meaning
from usbip_server.client.cli.output import fieldsOf
from usbip_server.client.cli.tables import devicesTable
from usbip_server.client.selection import Selection

_EXAMPLES = """\b
Examples:
  usbipshare list
  usbipshare list --host raspi --host bench:5056
  usbipshare list --desc arduino --json
"""


@click.command("list", short_help="List devices.", epilog=_EXAMPLES)
@asking
@meaning(required=False)
def command(errand: CommandContext, meant: Selection | None) -> None:
    """
    List the devices of all servers; with WORD or criteria, those that match.
    """
    found = errand.survey().found
    if meant is not None:
        found = meant.among(found)
    if found:
        errand.show.table(devicesTable(found))
    else:
        errand.show.note("no devices" if meant is None else f"no device matches {meant}")
    errand.show.result([fieldsOf(each) for each in found])
