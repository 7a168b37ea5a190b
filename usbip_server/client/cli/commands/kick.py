"""
C{usbipshare kick}.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from usbip_server.client.cli.options import withSelector, withServers

if TYPE_CHECKING:
    from usbip_server.client.cli.context import CommandContext
    from usbip_server.client.selection import Selector

_EXAMPLES = """\b
Examples:
  usbipshare kick uno
  usbipshare kick 1-1.4 --host raspi --lease ci-81
"""


@click.command("kick", epilog=_EXAMPLES)
@click.option("--lease", "owner", metavar="OWNER", help="Name that the device is leased under.")
@click.option("--force", is_flag=True, help="Also if another client has leased the device.")
@withServers
@withSelector()
def command(context: CommandContext, selector: Selector, owner: str | None, force: bool) -> None:
    """
    End the session of the client that uses a device. The device stays bound, for the next client.
    """
    from usbip_server.client.cli.output import fieldsOf
    from usbip_server.client.devices import remoteIn

    result = context.discover()
    found = context.choose(selector, result)
    result.requireControl(found)
    request: dict[str, Any] = {"command": "kick", "id": found.device.busId, "detail": True}
    if owner is not None:
        request["owner"] = owner
    if force:
        request["force"] = True
    now = remoteIn(found.server, context.ask(found.server, request))
    message = f"{now}: no client was using it, so no session has ended"
    if found.device.holder is not None:
        client = found.device.holder.address or "an unknown client"
        message = f"{now}: the session of {client} has ended"
    context.printer.line(message)
    context.printer.result([fieldsOf(now)], message=message)
