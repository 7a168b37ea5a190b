"""
C{usbipshare setup}.
"""

from __future__ import annotations

import click

_EXAMPLES = """\b
Examples:
  sudo usbipshare setup server
  usbipshare setup client --dry-run
  sudo usbipshare setup server --remove
"""


@click.command("setup", epilog=_EXAMPLES)
@click.argument("role", type=click.Choice(["server", "client"]))
@click.option("--dry-run", "dry", is_flag=True, help="Show the steps, and change nothing.")
@click.option(
    "--remove",
    "isRemoved",
    is_flag=True,
    help="Undo all steps. A configuration that was changed is kept.",
)
@click.option("--json", "asJson", is_flag=True, help="Print the result as JSON.")
def command(role: str, dry: bool, isRemoved: bool, asJson: bool) -> None:
    """
    Set up this machine as a server or as a client.

    Does what the Debian package does: for a server the kernel module, the user, the udev rule, the
    configuration, and the systemd unit, which is enabled and started; for a client the kernel
    module, the configuration, and the unit of the client service. Steps that are done are skipped.
    """
    from usbip_server.client.cli.options import ending
    from usbip_server.client.cli.output import Printer
    from usbip_server.install.host import Host
    from usbip_server.install.roles import CLIENT, ROLES, remove, setUp
    from usbip_server.model.errors import LocalTrouble

    host = click.get_current_context().obj or Host()
    printer = Printer(asJson)
    steps: list[str] = []

    def report(step: str) -> None:
        steps.append(step)
        printer.line(step)

    with ending(printer):
        if not (dry or host.isRoot):
            raise LocalTrouble("this needs root: call it with sudo, or with --dry-run")
        chosen = ROLES[role]
        count = (remove if isRemoved else setUp)(chosen, host, dry, report)
        if dry:
            printer.line(f"{count} steps; nothing was changed")
        elif isRemoved:
            printer.line(f"the {role} is removed; `pip uninstall usbipshare` removes the program")
        elif chosen is CLIENT:
            printer.line(
                "the client is set up. To keep devices attached, name them in "
                "/etc/usbipshare/service.yaml, and: sudo systemctl enable --now usbipclient"
            )
        else:
            printer.line("the server is set up: `usbipshare list` shows its devices")
        printer.result(steps=steps)
