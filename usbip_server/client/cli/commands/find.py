"""
C{usbipshare find}.
"""

from __future__ import annotations

import click

from usbip_server.client.cli.context import CommandContext
from usbip_server.client.cli.options import asking, meaning
from usbip_server.client.cli.output import fieldsOf
from usbip_server.client.cli.tables import deviceTable
from usbip_server.client.selection import Selection

_EXAMPLES = """\b
Examples:
  usbipshare find uno
  usbipshare find --serial '7533*'
"""


@click.command("find", short_help="Tell all about one device.", epilog=_EXAMPLES)
@asking
@meaning()
def command(errand: CommandContext, meant: Selection) -> None:
    """
    Tell all that is known of one device.

    WORD is a name, a bus id, vid:pid, a serial number or a part of the description: the first
    of these that fits any device.
    """
    found = errand.pick(meant, errand.survey())
    errand.show.table(deviceTable(found))
    errand.show.result([fieldsOf(found)])
