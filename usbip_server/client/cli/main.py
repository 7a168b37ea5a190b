"""
C{usbipshare}: the command line for people.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from usbip_server.client.cli.output import FAILED, NotWritten, giveUp, prepare

COMMANDS = (
    *("list", "find", "attach", "detach", "ports", "watch", "kick", "renew", "status"),
    *("doctor", "token", "completion"),
)
"""The commands there are. Each is a module in C{commands}, which is read when it is called."""


class Commands(click.Group):
    """
    All of them.
    """

    def list_commands(self, context: click.Context) -> list[str]:
        return [*COMMANDS]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"usbip_server.client.cli.commands.{name}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def main(self, *args: Any, **more: Any) -> Any:
        prepare()
        try:
            return super().main(*args, **more)
        except NotWritten as error:  # but for a pipe that nobody reads: of that click says nothing
            click.echo(f"usbipshare: write error: {error.strerror}", err=True)
            giveUp()
            sys.exit(FAILED)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="usbipshare", message="usbipshare %(version)s")
def main() -> None:
    """
    Find the USB devices that other machines share (twistd usbipshare), and plug them into this
    one.
    """
