"""
C{usbipshare detach}.
"""

from __future__ import annotations

import click

from usbip_server.client.cli.attachments import Attacher
from usbip_server.client.cli.completion import plugged, ports
from usbip_server.client.cli.context import CommandContext
from usbip_server.client.cli.options import asking, meaning
from usbip_server.client.cli.output import fieldsOf, portFields
from usbip_server.client.cli.tables import whoHas
from usbip_server.client.selection import Selection
from usbip_server.model.device import DeviceState
from usbip_server.model.replies import Refused, Status

_EXAMPLES = """\b
Examples:
  sudo usbipshare detach uno
  sudo usbipshare detach /dev/ttyACM0
  sudo usbipshare detach --port 0 --keep-bound
"""


@click.command("detach", short_help="Unplug a device.", epilog=_EXAMPLES)
@click.option(
    "--port",
    type=click.IntRange(min=0),
    metavar="PORT",
    shell_complete=ports,
    help="What is plugged in at this port: see usbipshare ports.",
)
@click.option("--keep-bound", "keepBound", is_flag=True, help="Leave it bound at its server.")
@click.option("--lease", "owner", metavar="OWNER", help="Who has leased it.")
@click.option("--force", is_flag=True, help="Even if somebody else has it, or has leased it.")
@asking
@meaning(required=False, offers=plugged)
def command(
    errand: CommandContext,
    meant: Selection | None,
    port: int | None,
    keepBound: bool,
    owner: str | None,
    force: bool,
) -> None:
    """
    Unplug a device here, and give it back to its server's own drivers.

    WORD is what attach takes, or a node such as /dev/ttyACM0, or where the device is plugged
    in here, such as 3-1.
    """
    if (meant is None) == (port is None):
        raise click.UsageError("say which device: a word, criteria, or --port; one of these")
    plugger, show = Attacher(errand), errand.show
    attached = plugger.meantHere(meant, port)
    if attached is not None:
        server = plugger.serverOf(attached)
        busId = None if attached.record is None else attached.record.busId
        fields = portFields(attached, None if server is None else server.name)
    else:
        assert meant is not None
        found = errand.pick(meant, errand.survey())
        attached = plugger.pluggedIn(found)
        server, busId = found.server, found.device.busId
        fields = fieldsOf(found, attached)
        if attached is None and found.device.state is DeviceState.IN_USE and not force:
            raise Refused(
                Status.FAILURE,
                f"{found} is not plugged in here, but {whoHas(found.device)} has it: "
                "--force takes it away",
            )
    if attached is not None:
        plugger.unplug(attached)
        show.note(f"port {attached.port} ({attached.localBusId}) is unplugged")
    if keepBound or server is None or busId is None:
        if server is None:
            show.note("where it came from is not known: it stays bound there")
    else:
        why = plugger.release(server, busId, owner, force)
        show.note(why or f"{busId} at {server} is its own again")
    show.result([fields])
