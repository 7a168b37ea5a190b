"""
C{usbipshare find}.
"""

from __future__ import annotations

import click

from usbip_server.client.terminal.described import fieldsOf
from usbip_server.client.terminal.errand import Errand
from usbip_server.client.terminal.options import asking, meaning
from usbip_server.client.terminal.picking import Meant
from usbip_server.client.terminal.tables import deviceTable

_EXAMPLES = """\b
Examples:
  usbipshare find uno
  usbipshare find --serial '7533*'
"""


@click.command("find", short_help="Tell all about one device.", epilog=_EXAMPLES)
@asking
@meaning()
def command(errand: Errand, meant: Meant) -> None:
    """
    Tell all that is known of one device.

    WORD is a name, a bus id, vid:pid, a serial number or a part of the description: the first
    of these that fits any device.
    """
    found = errand.pick(meant, errand.survey())
    errand.show.table(deviceTable(found))
    errand.show.result([fieldsOf(found)])
