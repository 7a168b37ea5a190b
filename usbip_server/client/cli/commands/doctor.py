"""
C{usbipshare doctor}.
"""

from __future__ import annotations

import os
from pathlib import Path

import click
import msgspec

from usbip_server.client.attach import Attached
from usbip_server.client.cli import diagnostics as checks
from usbip_server.client.cli.attachments import Attacher
from usbip_server.client.cli.context import CommandContext
from usbip_server.client.cli.diagnostics import Check
from usbip_server.client.cli.discovery import everywhere
from usbip_server.client.cli.exitcodes import Exit
from usbip_server.client.cli.options import asking
from usbip_server.client.servers import Server
from usbip_server.model.errors import LocalTrouble

_EXAMPLES = """\b
Examples:
  usbipshare doctor
  usbipshare doctor --host raspi
"""


@click.command("doctor", short_help="Tell what is wrong, and how to mend it.", epilog=_EXAMPLES)
@asking
def command(errand: CommandContext) -> None:
    """
    Look at this machine's kernel, at the servers, and at what is plugged in here: is it as it
    should be? If not, what to do.
    """
    machine = errand.machine
    isRoot = os.geteuid() == 0
    local = [*checks.thisMachine(machine.vhci(), machine.system, isRoot, _status())]
    plugger = Attacher(errand)
    attached = _attached(plugger)
    remote, known = _servers(errand, _others(errand, attached))
    found = [*local, *remote, *(checks.plugged(each, _isThere(each, known)) for each in attached)]
    errand.show.table(checks.table(found))
    status = Exit.DONE
    if not all(check.ok for check in local):
        status = Exit.TROUBLE
    elif not all(check.ok for check in found):
        status = Exit.UNREACHABLE
    errand.show.result(status=status, checks=[msgspec.to_builtins(check) for check in found])
    if status is not Exit.DONE:
        raise SystemExit(status)


def _status() -> str:
    return Path(checks.STATUS).read_text()


def _attached(plugger: Attacher) -> tuple[Attached, ...]:
    try:
        return plugger.attached()
    except LocalTrouble:
        return ()


def _others(errand: CommandContext, attached: tuple[Attached, ...]) -> list[Server]:
    """
    Servers that devices came from, and that are not among those that are asked anyway.
    """
    asked = {(server.host, str(server.exportPort)) for server in errand.servers}
    sources = {
        (each.record.host, each.record.service) for each in attached if each.record is not None
    }
    return [
        errand.settings.exporting(host, service)
        for host, service in sorted(sources - asked)
        if service.isdigit()
    ]


def _servers(
    errand: CommandContext, others: list[Server]
) -> tuple[list[Check], dict[tuple[str, str], bool]]:
    """
    What there is to say of the servers, and where USB/IP answers.
    """
    everybody = [*errand.servers, *others]
    heard = everywhere(
        everybody,
        lambda server: checks.server(server, errand.seconds, server in errand.settings.stock),
    )
    shown = [check for server, found in heard.answers if server not in others for check in found]
    there = {(server.host, str(server.exportPort)): found[-1].ok for server, found in heard.answers}
    return shown, there


def _isThere(attached: Attached, known: dict[tuple[str, str], bool]) -> bool:
    record = attached.record
    return record is not None and known.get((record.host, record.service), True)
