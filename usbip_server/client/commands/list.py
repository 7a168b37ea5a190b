"""
C{usbipshare list}.
"""

from __future__ import annotations

import click

from usbip_server.client.terminal.described import fieldsOf
from usbip_server.client.terminal.errand import Errand
from usbip_server.client.terminal.options import asking, meaning
from usbip_server.client.terminal.picking import Meant
from usbip_server.client.terminal.tables import devicesTable

_EXAMPLES = """\b
Examples:
  usbipshare list
  usbipshare list --host raspi --host bench:5056
  usbipshare list --desc arduino --json
"""


@click.command("list", short_help="List devices.", epilog=_EXAMPLES)
@asking
@meaning(required=False)
def command(errand: Errand, meant: Meant | None) -> None:
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
