"""
C{usbipshare attach}.
"""

from __future__ import annotations

import click

from usbip_server.client.cli.attachments import Attacher, Wish
from usbip_server.client.cli.context import CommandContext
from usbip_server.client.cli.options import LONGEST, asking, meaning
from usbip_server.client.cli.output import fieldsOf
from usbip_server.client.selection import Selection
from usbip_server.model.device import LONGEST_LEASE

_EXAMPLES = """\b
Examples:
  sudo usbipshare attach uno
  sudo usbipshare attach --serial DISK1 --wait 300
  sudo usbipshare attach 1-1.4 --host raspi --lease ci-81 --ttl 600
"""


@click.command("attach", short_help="Plug a device in here.", epilog=_EXAMPLES)
@click.option(
    "--wait",
    type=click.FloatRange(0, LONGEST),
    default=0.0,
    metavar="SECONDS",
    help="Wait for a device that is not there yet, or that somebody else has.",
)
@click.option(
    "--lease",
    "owner",
    metavar="OWNER",
    help="Have it for yourself, whatever you call yourself, for --ttl.",
)
@click.option(
    "--ttl",
    type=click.FloatRange(0, LONGEST_LEASE, min_open=True),
    metavar="SECONDS",
    help="How long the lease lasts; after that you lose the device.",
)
@click.option("--force", is_flag=True, help="Take it from whoever has it.")
@asking
@meaning()
def command(
    errand: CommandContext,
    meant: Selection,
    wait: float,
    owner: str | None,
    ttl: float | None,
    force: bool,
) -> None:
    """
    Plug a device of a server's into this machine, and print what programs can open of it.

    WORD is a name, a bus id, vid:pid, a serial number or a part of the description: the first
    of these that fits any device.
    """
    if (owner is None) != (ttl is None):
        raise click.UsageError("--lease OWNER and --ttl SECONDS go together")
    plugger = Attacher(errand)
    found, attached = plugger.attach(meant, Wish(wait=wait, owner=owner, ttl=ttl, force=force))
    where = f"port {attached.port}, {attached.localBusId}"
    errand.show.note(f"{found} is plugged in here: {where}")
    if plugger.relay.pid is not None:
        errand.show.note(
            "the kernel cannot encrypt this connection itself: process "
            f"{plugger.relay.pid} carries its traffic, and has to stay as long as the device"
        )
    for node in attached.nodes:
        errand.show.line(node)
    errand.show.result([fieldsOf(found, attached)])
