"""
C{usbipshare kick}.
"""

from __future__ import annotations

from typing import Any

import click

from usbip_server.client.cli.context import CommandContext
from usbip_server.client.cli.options import asking, meaning
from usbip_server.client.cli.output import fieldsOf
from usbip_server.client.devices import foundIn
from usbip_server.client.selection import Selection

_EXAMPLES = """\b
Examples:
  usbipshare kick uno
  usbipshare kick 1-1.4 --host raspi --lease ci-81
"""


@click.command("kick", short_help="Take a device from whoever has it.", epilog=_EXAMPLES)
@click.option("--lease", "owner", metavar="OWNER", help="Who has leased it.")
@click.option("--force", is_flag=True, help="Even if somebody else has leased it.")
@asking
@meaning()
def command(errand: CommandContext, meant: Selection, owner: str | None, force: bool) -> None:
    """
    Take a device from the client that has it, and leave it bound for the next one.
    """
    survey = errand.survey()
    found = errand.pick(meant, survey)
    survey.requireControl(found)
    request: dict[str, Any] = {"command": "kick", "id": found.device.busId, "detail": True}
    if owner is not None:
        request["owner"] = owner
    if force:
        request["force"] = True
    [now] = foundIn(found.server, errand.ask(found.server, request))
    errand.show.line(f"{now}: nobody has it now")
    errand.show.result([fieldsOf(now)])
