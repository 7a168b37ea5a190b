"""
C{usbipshare renew}.
"""

from __future__ import annotations

from typing import Any

import click

from usbip_server.client.cli.context import CommandContext
from usbip_server.client.cli.options import asking, meaning
from usbip_server.client.cli.output import fieldsOf
from usbip_server.client.cli.tables import whoHas
from usbip_server.client.devices import foundIn
from usbip_server.client.selection import Selection
from usbip_server.model.device import LONGEST_LEASE

_EXAMPLES = """\b
Examples:
  usbipshare renew uno --lease ci-81
  usbipshare renew uno --lease ci-81 --ttl 600
"""


@click.command("renew", short_help="Have a leased device for longer.", epilog=_EXAMPLES)
@click.option("--lease", "owner", metavar="OWNER", required=True, help="Who has leased it.")
@click.option(
    "--ttl",
    type=click.FloatRange(0, LONGEST_LEASE, min_open=True),
    metavar="SECONDS",
    help="How long the lease lasts from now; if not given, as long as before.",
)
@asking
@meaning()
def command(errand: CommandContext, meant: Selection, owner: str, ttl: float | None) -> None:
    """
    Have a device that you have leased for longer.
    """
    survey = errand.survey()
    found = errand.pick(meant, survey)
    survey.requireControl(found)
    lease: dict[str, Any] = {"owner": owner} if ttl is None else {"owner": owner, "ttl": ttl}
    request = {"command": "renew", "id": found.device.busId, "lease": lease, "detail": True}
    [now] = foundIn(found.server, errand.ask(found.server, request))
    errand.show.line(f"{now}: {whoHas(now.device)}")
    errand.show.result([fieldsOf(now)])
