"""
C{usbipshare status}.
"""

from __future__ import annotations

import time
from typing import Any

import click

from usbip_server.client.cli.context import CommandContext
from usbip_server.client.cli.discovery import DiscoveryResult, everywhere, survey
from usbip_server.client.cli.exitcodes import Exit
from usbip_server.client.cli.options import asking
from usbip_server.client.cli.tables import serversTable
from usbip_server.client.servers import Server
from usbip_server.model.device import DeviceState
from usbip_server.model.replies import Refused

_EXAMPLES = """\b
Examples:
  usbipshare status
  usbipshare status --host raspi --json
"""


@click.command("status", short_help="Tell how the servers are.", epilog=_EXAMPLES)
@asking
def command(errand: CommandContext) -> None:
    """
    Tell of each server whether it answers, how fast, and how many devices it has.
    """
    rows = [_Row(server, found, took) for server, (found, took) in _all(errand)]
    errand.tell(trouble for row in rows for trouble in row.survey.troubles)
    shown = [row for row in rows if row.isThere or errand.settings.rangeOf(row.server) is None]
    errand.show.table(serversTable(row.cells for row in shown))
    status = Exit.DONE if any(row.isThere for row in rows) else Exit.UNREACHABLE
    errand.show.result(status=status, servers=[row.fields for row in rows])
    if status is not Exit.DONE:
        raise SystemExit(status)


class _Row:
    """
    What there is to say of a server.
    """

    def __init__(self, server: Server, survey: DiscoveryResult, seconds: float) -> None:
        """
        @param seconds: that its answer took.
        """
        self.server = server
        self.survey = survey
        self.isThere = bool(survey.answered)
        kind = "usbipd" if survey.stock else "usbipshare"
        inUse = sum(each.device.state is DeviceState.IN_USE for each in survey.found)
        self.fields: dict[str, Any] = {
            "server": server.name,
            "address": server.address,
            "reachable": self.isThere,
            "kind": kind if self.isThere else None,
            "devices": len(survey.found) if self.isThere else None,
            "in_use": inUse if self.isThere and not survey.stock else None,
            "ms": round(1000 * seconds, 1),
        }

    @property
    def cells(self) -> list[str]:
        """For people."""
        shown = self.fields
        isRefused = any(isinstance(error, Refused) for _, error in self.survey.troubles)
        answers = shown["kind"] or ("refuses" if isRefused else "no answer")
        numbers = ["" if shown[key] is None else str(shown[key]) for key in ("devices", "in_use")]
        return [shown["server"], shown["address"], answers, *numbers, f"{shown['ms']:.0f} ms"]


def _all(errand: CommandContext) -> list[tuple[Server, tuple[DiscoveryResult, float]]]:
    def one(server: Server) -> tuple[DiscoveryResult, float]:
        begin = time.monotonic()
        found = survey([server], errand.seconds, errand.settings.stock)
        return found, time.monotonic() - begin

    return everywhere(errand.servers, one).answers
