"""
C{usbipshare doctor}.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from usbip_server.client.cli.options import withServers

if TYPE_CHECKING:
    from usbip_server.client.cli.context import CommandContext

_EXAMPLES = """\b
Examples:
  usbipshare doctor
  usbipshare doctor --host raspi
"""


@click.command("doctor", epilog=_EXAMPLES)
@withServers
def command(context: CommandContext) -> None:
    """
    Diagnose problems and suggest fixes.

    Checks this machine's kernel, the servers, and the devices attached to this machine. The exit
    code is 7 for a problem of this machine, 6 for one of a server.
    """
    import msgspec

    from usbip_server.client.cli.diagnostics import diagnose, table
    from usbip_server.client.cli.exitcodes import Exit

    local, remote = diagnose(context)
    context.printer.table(table([*local, *remote]))
    status = Exit.DONE
    if not all(check.ok for check in local):
        status = Exit.TROUBLE
    elif not all(check.ok for check in remote):
        status = Exit.UNREACHABLE
    checks = [msgspec.to_builtins(check) for check in (*local, *remote)]
    context.printer.result(status=status.word, checks=checks)
    if status is not Exit.DONE:
        raise SystemExit(status)
