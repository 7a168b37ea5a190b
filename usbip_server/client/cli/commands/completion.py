"""
C{usbipshare completion}.
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

PROGRAM = "usbipshare"
VARIABLE = "_USBIPSHARE_COMPLETE"
"""The environment variable by which click recognises a request for completions."""

_EXAMPLES = """\b
Examples:
  usbipshare completion bash > ~/.local/share/bash-completion/completions/usbipshare
  usbipshare completion zsh > ~/.zfunc/_usbipshare
  usbipshare completion fish > ~/.config/fish/completions/usbipshare.fish
"""


@click.command("completion", epilog=_EXAMPLES)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """
    Print the script that makes SHELL complete commands, options, and the devices that exist at
    that moment.
    """
    kind = get_completion_class(shell)
    assert kind is not None, shell
    main = context.find_root().command
    click.echo(kind(main, {}, PROGRAM, VARIABLE).source())
