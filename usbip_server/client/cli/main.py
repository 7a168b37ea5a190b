"""
C{usbipshare}, the command-line client.

This module and those of the commands load nothing but click when they are imported: help and
completion of words need no more. What a command runs on is imported in its function.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click
from click.shell_completion import CompletionItem

from usbip_server import __version__
from usbip_server.client.cli.output import FAILED, NotWritten, closeOutput, prepareStreams

COMMANDS = {
    "list": "List the devices of all servers",
    "find": "Show all details of one device",
    "attach": "Attach a device to this machine",
    "detach": "Detach a device from this machine",
    "ports": "List the devices attached to this machine",
    "watch": "Print events of all servers as they happen",
    "kick": "End the session of the client that uses a device",
    "renew": "Extend the lease of a device",
    "servers": "List the servers in the local network",
    "status": "Show which servers answer, and how fast",
    "doctor": "Diagnose problems and suggest fixes",
    "setup": "Set up this machine as a server or as a client",
    "token": "Create or check an access token",
    "ca": "Create certificates for servers and clients",
    "trust": "Trust the certificate of a server, and use TLS with it",
    "completion": "Print the completion script of a shell",
}
"""The commands, with their summaries. Each is a module of C{commands}, imported when it is used."""


class Commands(click.Group):
    """
    The group of all commands.
    """

    def list_commands(self, context: click.Context) -> list[str]:
        return [*COMMANDS]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = importlib.import_module(f"usbip_server.client.cli.commands.{name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = arguments[0]
        if not name.startswith("-") and name not in COMMANDS:
            from usbip_server.model.options import nearest

            context.fail(f"No such command {name!r}{nearest(name, COMMANDS) or '.'}")
        return super().resolve_command(context, arguments)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([*COMMANDS.items()])

    def shell_complete(self, context: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [name for name in COMMANDS if name.startswith(incomplete)]
        commands = [CompletionItem(name, help=COMMANDS[name]) for name in names]
        return commands + click.Command.shell_complete(self, context, incomplete)

    def main(self, *args: Any, **more: Any) -> Any:
        prepareStreams()
        try:
            return super().main(*args, **more)
        except NotWritten as error:  # but for a broken pipe, which click handles without a message
            click.echo(f"usbipshare: write error: {error.strerror}", err=True)
            closeOutput()
            sys.exit(FAILED)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="usbipshare %(version)s")
def main() -> None:
    """
    Find the USB devices that other machines share, and attach them to this machine.

    The servers run "twistd usbipshare" or a stock usbipd. Name them with --host, in
    USBIPSHARE_HOSTS or in ~/.config/usbipshare/client.yaml. If you name none, all servers that
    announce themselves in the local network are asked.
    """
