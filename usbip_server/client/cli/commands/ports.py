"""
C{usbipshare ports}.
"""

from __future__ import annotations

import click

from usbip_server.client.cli.attachments import Attacher
from usbip_server.client.cli.context import CommandContext
from usbip_server.client.cli.options import asking
from usbip_server.client.cli.output import portFields
from usbip_server.client.cli.tables import portsTable

_EXAMPLES = """\b
Examples:
  usbipshare ports
  usbipshare ports --json
"""


@click.command("ports", short_help="List what is plugged in here.", epilog=_EXAMPLES)
@asking
def command(errand: CommandContext) -> None:
    """
    List what is plugged into this machine, by whichever program, and what it came from.
    """
    plugger = Attacher(errand)
    rows, fields = [], []
    for attached in plugger.attached():
        server = plugger.serverOf(attached)
        name = None if server is None else server.name
        busId = None if attached.record is None else attached.record.busId
        rows.append((attached, name or "", busId or ""))
        fields.append(portFields(attached, name))
    if rows:
        errand.show.table(portsTable(rows))
    else:
        errand.show.note("nothing is plugged in")
    errand.show.result(fields)
