"""
C{usbipshare detach}.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from usbip_server.client.cli.completion import attached, ports
from usbip_server.client.cli.options import withSelector, withServers

if TYPE_CHECKING:
    from usbip_server.client.cli.context import CommandContext
    from usbip_server.client.devices import RemoteDevice
    from usbip_server.client.selection import Selector

_EXAMPLES = """\b
Examples:
  sudo usbipshare detach uno
  sudo usbipshare detach /dev/ttyACM0
  sudo usbipshare detach --port 0 --keep-bound
"""


def _forget(
    context: CommandContext, selector: Selector, owner: str | None, force: bool
) -> RemoteDevice | None:
    """
    Detach a device that is attached at a server and not plugged in.

    @return: C{None}: no such device matches.
    """
    from usbip_server.client.cli.discovery import DiscoveryResult
    from usbip_server.client.selection import among

    away = among(selector, context.awayQuietly().found)
    if not away:
        return None
    found = context.choose(selector, DiscoveryResult(found=away))
    device = found.device
    request = {
        "command": "detach",
        "id": f"{device.vendorId}:{device.productId}",
        "bus": device.busId,
        **({} if device.serial is None else {"serial": device.serial}),
        "owner": owner,
        "force": force,
    }
    context.ask(found.server, request)
    return found


@click.command("detach", epilog=_EXAMPLES)
@click.option(
    "--port",
    type=click.IntRange(min=0),
    metavar="PORT",
    shell_complete=ports,
    help="Select the device attached at this port (see usbipshare ports).",
)
@click.option(
    "--keep-bound", "keepBound", is_flag=True, help="Leave the device bound at its server."
)
@click.option("--lease", "owner", metavar="OWNER", help="Name that the device is leased under.")
@click.option(
    "--force", is_flag=True, help="Unbind the device even if another client uses or has leased it."
)
@withServers
@withSelector(required=False, offers=attached)
def command(
    context: CommandContext,
    selector: Selector | None,
    port: int | None,
    keepBound: bool,
    owner: str | None,
    force: bool,
) -> None:
    """
    Detach a device from this machine, and unbind it at its server.

    WORD is what attach accepts, or a device node such as /dev/ttyACM0, or the bus id on this
    machine, such as 3-1. Needs root.
    """
    from usbip_server.client.cli.attachments import Attacher
    from usbip_server.client.cli.output import fieldsOf, portFields
    from usbip_server.client.cli.tables import userOf
    from usbip_server.model.device import DeviceState
    from usbip_server.model.errors import DeviceNotFound
    from usbip_server.model.replies import Refused, Status

    if (selector is None) == (port is None):
        raise click.UsageError("name the device: by a WORD, by criteria, or by --port")
    attacher, printer = Attacher(context), context.printer
    isBound = True
    here = attacher.local(selector, port)
    if here is not None:
        server = attacher.serverOf(here)
        busId = None if here.record is None else here.record.busId
        fields = portFields(here, None if server is None else server.name)
    else:
        assert selector is not None
        try:
            found = context.choose(selector, context.discover())
        except DeviceNotFound:
            forgotten = _forget(context, selector, owner, force)
            if forgotten is None:
                raise
            printer.note(f"{forgotten} is not plugged in: its server has forgotten it")
            printer.result([fieldsOf(forgotten)])
            return
        here = attacher.attachedAs(found)
        server, busId = found.server, found.device.busId
        fields = fieldsOf(found, here)
        isBound = found.device.state is not DeviceState.FREE
        if here is None and found.device.state is DeviceState.IN_USE and not force:
            raise Refused(
                Status.FAILURE,
                f"{found} is not attached to this machine; it is in use by {userOf(found.device)}: "
                "--force ends that session",
            )
    if here is not None:
        attacher.detach(here)
        printer.note(f"port {here.port} ({here.localBusId}): detached")
    if server is None:
        printer.note("its server is not known: the device stays bound there")
    elif not keepBound and busId is not None:
        why = attacher.unbind(server, busId, owner, force)
        done = "unbound, its own drivers have it again" if isBound else "was not bound"
        printer.note(why or f"{busId} at {server}: {done}")
    printer.result([fields])
