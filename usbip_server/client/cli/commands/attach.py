"""
C{usbipshare attach}.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from usbip_server.client.cli.options import LONGEST, Duration, withSelector, withServers
from usbip_server.model.device import LONGEST_LEASE

if TYPE_CHECKING:
    from usbip_server.client.cli.context import CommandContext
    from usbip_server.client.selection import Selector

_EXAMPLES = """\b
Examples:
  sudo usbipshare attach uno
  sudo usbipshare attach --serial DISK1 --wait 300
  sudo usbipshare attach 1-1.4 --host raspi --lease ci-81 --ttl 600
"""


@click.command("attach", epilog=_EXAMPLES)
@click.option(
    "--wait",
    type=Duration(LONGEST, isZeroValid=True),
    default=0.0,
    metavar="SECONDS",
    help="Wait up to SECONDS for a device that is absent or in use.",
)
@click.option(
    "--lease",
    "owner",
    metavar="OWNER",
    help="Reserve the device under the name OWNER for --ttl seconds.",
)
@click.option(
    "--ttl",
    type=Duration(LONGEST_LEASE),
    metavar="SECONDS",
    help="Duration of the lease; at its end the server takes the device back.",
)
@click.option(
    "--force", is_flag=True, help="End the session or lease of another client that has the device."
)
@withServers
@withSelector()
def command(
    context: CommandContext,
    selector: Selector,
    wait: float,
    owner: str | None,
    ttl: float | None,
    force: bool,
) -> None:
    """
    Attach a device to this machine, and print its device nodes, one a line.

    WORD is a name, a bus id, vid:pid, a serial number or a part of the description: the first of
    these that matches any device. A device that is attached already stays as it is. Needs root.
    """
    from usbip_server.client.cli.attachments import Attacher, AttachOptions
    from usbip_server.client.cli.output import fieldsOf

    if (owner is None) != (ttl is None):
        raise click.UsageError("--lease OWNER and --ttl SECONDS require each other")
    attacher, printer = Attacher(context), context.printer
    options = AttachOptions(wait=wait, owner=owner, ttl=ttl, force=force)
    found, attached = attacher.attach(selector, options)
    printer.note(f"{found}: attached at port {attached.port}, {attached.localBusId}")
    if attacher.relay.pid is not None:
        printer.note(
            f"the kernel cannot encrypt this connection itself: process {attacher.relay.pid} "
            "relays its traffic until the device is detached"
        )
    for node in attached.nodes:
        printer.line(node)
    printer.result([fieldsOf(found, attached)])
