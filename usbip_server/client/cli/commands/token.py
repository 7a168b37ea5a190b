"""
C{usbipshare token}. It asks no server: users or administrators create tokens.
"""

from __future__ import annotations

import json
import sys

import click

_EXAMPLES = """\b
Examples:
  usbipshare token ci
  usbipshare token --check 'sha256$...' < token.txt
"""


def _requireName(
    context: click.Context, parameter: click.Parameter, name: str | None
) -> str | None:
    if name is None:
        return None
    from usbip_server.model.devicerules import LONGEST_NAME
    from usbip_server.model.policy import BUILT_IN

    if name in BUILT_IN:
        raise click.BadParameter(f"{name!r} is a built-in principal: choose another name")
    if len(name) > LONGEST_NAME:
        raise click.BadParameter(f"the name is longer than {LONGEST_NAME} characters")
    if not name.isprintable() or not name.strip():
        raise click.BadParameter("the name is empty, or contains unprintable characters")
    return name


def _requireHash(
    context: click.Context, parameter: click.Parameter, kept: str | None
) -> str | None:
    if kept is not None:
        from usbip_server.model.tokens import requireHash

        try:
            requireHash(kept)
        except ValueError:
            raise click.BadParameter(
                "this is not the hash of a token, sha256$...: put it in single quotes, because of "
                "the $"
            ) from None
    return kept


@click.command("token", epilog=_EXAMPLES)
@click.argument("name", required=False, callback=_requireName)
@click.option("--json", "asJson", is_flag=True, help='Print {"token": ..., "hash": ...}.')
@click.option(
    "--check",
    "kept",
    metavar="HASH",
    callback=_requireHash,
    help="Read a token from standard input, and check whether HASH is its hash. The exit code is "
    "1 if it is not.",
)
def command(name: str | None, asJson: bool, kept: str | None) -> None:
    """
    Create an access token for NAME: a secret that authenticates a client to a server.

    Prints the token, for NAME, and its hash, for the server's configuration. The token cannot be
    derived from the hash, and is not shown again.
    """
    from usbip_server.model.tokens import hashOf, newToken
    from usbip_server.runtime.yamledit import textKey

    if kept is not None:
        if asJson or name is not None:
            raise click.UsageError("--check cannot be combined with NAME or --json")
        _check(kept)
        return
    made = newToken()
    if asJson:
        click.echo(json.dumps({"token": made, "hash": hashOf(made)}))
        return
    name = name or "NAME"
    click.echo(
        f"The token of {name}, which is not shown again:\n\n"
        f"{made}\n\n"
        "For the server's configuration, where `allow` grants it rights:\n\n"
        "access:\n"
        "  principals:\n"
        f'    {textKey(name)}: {{token: "{hashOf(made)}"}}'
    )


def _check(kept: str) -> None:
    """
    Exit with code 1 if standard input has another token. A token is not an argument, as all users
    of a machine can read its command lines.
    """
    from usbip_server.model.requests import LONGEST_TOKEN
    from usbip_server.model.tokens import isHashOf

    shown = sys.stdin.buffer.read(4 * LONGEST_TOKEN)
    if not isHashOf(kept, shown.decode("utf-8", "surrogateescape").strip()):
        click.echo("the hash is of another token", err=True)
        raise SystemExit(1)
    click.echo("the hash is of this token")
