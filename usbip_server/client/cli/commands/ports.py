"""
C{usbipshare ports}.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from usbip_server.client.cli.options import withServers

if TYPE_CHECKING:
    from usbip_server.client.cli.context import CommandContext

_EXAMPLES = """\b
Examples:
  usbipshare ports
  usbipshare ports --json
"""


@click.command("ports", epilog=_EXAMPLES)
@withServers
def command(context: CommandContext) -> None:
    """
    List the devices attached to this machine by any program, with their servers.
    """
    from usbip_server.client.cli.attachments import Attacher
    from usbip_server.client.cli.output import portFields
    from usbip_server.client.cli.tables import portsTable

    attacher = Attacher(context)
    rows, fields = [], []
    for attached in attacher.attached():
        server = attacher.serverOf(attached)
        name = None if server is None else server.name
        busId = None if attached.record is None else attached.record.busId
        rows.append((attached, name or "", busId or ""))
        fields.append(portFields(attached, name))
    if rows:
        context.printer.table(portsTable(rows))
    else:
        context.printer.note("no device is attached")
    context.printer.result(fields)
