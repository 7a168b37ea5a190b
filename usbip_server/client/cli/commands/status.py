"""
C{usbipshare status}.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from usbip_server.client.cli.options import withServers

if TYPE_CHECKING:
    from usbip_server.client.cli.context import CommandContext
    from usbip_server.client.cli.discovery import DiscoveryResult
    from usbip_server.client.servers import Server

_EXAMPLES = """\b
Examples:
  usbipshare status
  usbipshare status --host raspi --json
"""


@click.command("status", epilog=_EXAMPLES)
@withServers
def command(context: CommandContext) -> None:
    """
    Show for each server whether it answers, how fast, and how many devices it has.
    """
    import time

    from usbip_server.client.cli.discovery import askAll, discover
    from usbip_server.client.cli.exitcodes import Exit
    from usbip_server.client.cli.tables import serversTable

    def ask(server: Server) -> tuple[DiscoveryResult, float]:
        begin = time.monotonic()
        result = discover([server], context.seconds, context.settings.stock)
        return result, time.monotonic() - begin

    answers = askAll(context.servers, ask).answers
    rows = [_Row(server, result, took) for server, (result, took) in answers]
    context.report(trouble for row in rows for trouble in row.result.troubles)
    ranges = context.settings.rangeOf
    shown = [row for row in rows if row.isAnswering or ranges(row.server) is None]
    context.printer.table(serversTable(row.cells for row in shown))
    status = Exit.DONE if any(row.isAnswering for row in rows) else Exit.UNREACHABLE
    context.printer.result(status=status.word, servers=[row.fields for row in rows])
    if status is not Exit.DONE:
        raise SystemExit(status)


class _Row:
    """
    The status of a server.
    """

    def __init__(self, server: Server, result: DiscoveryResult, seconds: float) -> None:
        """
        @param seconds: that the reply took.
        """
        from usbip_server.model.device import DeviceState

        self.server = server
        self.result = result
        self.isAnswering = bool(result.answered)
        kind = "usbipd" if result.stock else "usbipshare"
        inUse = sum(each.device.state is DeviceState.IN_USE for each in result.found)
        self.fields: dict[str, Any] = {
            "server": server.name,
            "address": server.address,
            "reachable": self.isAnswering,
            "kind": kind if self.isAnswering else None,
            "devices": len(result.found) if self.isAnswering else None,
            "in_use": inUse if self.isAnswering and not result.stock else None,
            "ms": round(1000 * seconds, 1),
        }

    @property
    def cells(self) -> list[str]:
        """The texts for L{usbip_server.client.cli.tables.serversTable}."""
        from usbip_server.model.replies import Refused

        shown = self.fields
        isRefused = any(isinstance(error, Refused) for _, error in self.result.troubles)
        answers = shown["kind"] or ("refuses" if isRefused else "no answer")
        numbers = ["" if shown[key] is None else str(shown[key]) for key in ("devices", "in_use")]
        return [shown["server"], shown["address"], answers, *numbers, f"{shown['ms']:.0f} ms"]
