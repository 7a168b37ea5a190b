"""
C{usbipshare find}.
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
  usbipshare find uno
  usbipshare find --serial '7533*'
"""


@click.command("find", epilog=_EXAMPLES)
@withServers
@withSelector()
def command(context: CommandContext, selector: Selector) -> None:
    """
    Show all details of one device.

    WORD is a name, a bus id, vid:pid, a serial number or a part of the description: the first of
    these that matches any device.
    """
    from usbip_server.client.cli.output import fieldsOf
    from usbip_server.client.cli.tables import deviceTable

    found = context.choose(selector, context.discover())
    context.printer.table(deviceTable(found))
    context.printer.result([fieldsOf(found)])
