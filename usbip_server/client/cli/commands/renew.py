"""
C{usbipshare renew}.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from usbip_server.client.cli.options import Duration, withSelector, withServers
from usbip_server.model.device import LONGEST_LEASE

if TYPE_CHECKING:
    from usbip_server.client.cli.context import CommandContext
    from usbip_server.client.selection import Selector

_EXAMPLES = """\b
Examples:
  usbipshare renew uno --lease ci-81
  usbipshare renew uno --lease ci-81 --ttl 600
"""


@click.command("renew", epilog=_EXAMPLES)
@click.option(
    "--lease",
    "owner",
    metavar="OWNER",
    required=True,
    help="Name that the device is leased under.",
)
@click.option(
    "--ttl",
    type=Duration(LONGEST_LEASE),
    metavar="SECONDS",
    help="New duration of the lease, from now.  [default: the same duration as before]",
)
@withServers
@withSelector()
def command(context: CommandContext, selector: Selector, owner: str, ttl: float | None) -> None:
    """
    Extend the lease of a device.
    """
    from usbip_server.client.cli.output import fieldsOf
    from usbip_server.client.cli.tables import userOf
    from usbip_server.client.devices import remoteIn

    result = context.discover()
    found = context.choose(selector, result)
    result.requireControl(found)
    lease: dict[str, Any] = {"owner": owner} if ttl is None else {"owner": owner, "ttl": ttl}
    request = {"command": "renew", "id": found.device.busId, "lease": lease, "detail": True}
    now = remoteIn(found.server, context.ask(found.server, request))
    context.printer.line(f"{now}: {userOf(now.device)}")
    context.printer.result([fieldsOf(now)])
