"""
C{usbipshare servers}. It asks no server: servers announce themselves.
"""

from __future__ import annotations

import json

import click

from usbip_server.client.cli.options import Duration

_EXAMPLES = """\b
Examples:
  usbipshare servers
  usbipshare servers --wait 5 --json
"""


@click.command("servers", epilog=_EXAMPLES)
@click.option("--json", "asJson", is_flag=True, help="Print the result as JSON.")
@click.option(
    "--wait",
    "seconds",
    metavar="SECONDS",
    type=Duration(60),
    default=1.0,
    show_default=True,
    help="How long to wait for servers to answer.",
)
@click.pass_context
def command(context: click.Context, asJson: bool, seconds: float) -> None:
    """
    List the servers that announce themselves in the local network.

    Anybody in the network can announce a server: before you use TLS with one, compare its
    fingerprint (usbipshare trust SERVER).
    """
    from usbip_server.client.cli.context import Machine
    from usbip_server.client.cli.output import Printer
    from usbip_server.client.cli.tables import foundTable

    machine = context.obj or Machine()
    found = machine.browse(seconds)
    if asJson:
        rows = [
            {
                "name": each.name,
                "addresses": each.addresses,
                "version": each.version,
                "port": each.ports.requests,
                "tls_port": each.ports.secureRequests,
                "export_port": each.ports.export,
                "tls_export_port": each.ports.secureExport,
            }
            for each in found
        ]
        click.echo(json.dumps(rows))
        return
    printer = Printer(asJson=False)
    if found:
        printer.table(foundTable(found))
    else:
        printer.note(
            f"no server has answered within {seconds:g} s. Servers in other networks, and those "
            "with `advertise: off`, are named with --host"
        )
