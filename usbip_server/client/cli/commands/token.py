"""
C{usbipshare token}: tokens are made by who is to have them or by who runs the daemon; no
server is asked.
"""

from __future__ import annotations

import json
import re
import sys

import click

from usbip_server.model.policy import BUILT_IN
from usbip_server.model.requests import LONGEST_TOKEN
from usbip_server.model.rules import LONGEST_NAME
from usbip_server.model.tokens import hashOf, isHashOf, newToken, requireHash

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*", re.ASCII)

_NO_TEXT = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
"""Words that YAML 1.1 takes for something else, in whatever case."""

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
    if name in BUILT_IN:
        raise click.BadParameter(f"{name!r} is there already: choose another name")
    if len(name) > LONGEST_NAME:
        raise click.BadParameter(f"it is longer than {LONGEST_NAME} characters")
    if not name.isprintable() or not name.strip():
        raise click.BadParameter("it is empty, or there is something in it that does not show")
    return name


def _requireHash(
    context: click.Context, parameter: click.Parameter, kept: str | None
) -> str | None:
    if kept is not None:
        try:
            requireHash(kept)
        except ValueError:
            raise click.BadParameter(
                "it is no hash of a token, sha256$...; put it in single quotes, as there is $ in it"
            ) from None
    return kept


@click.command("token", short_help="Make a token.", epilog=_EXAMPLES)
@click.argument("name", required=False, callback=_requireName)
@click.option("--json", "asJson", is_flag=True, help='Print {"token": ..., "hash": ...} only.')
@click.option(
    "--check",
    "kept",
    metavar="HASH",
    callback=_requireHash,
    help="Make none, but read one from standard input: is it the one that HASH was made of? "
    "Exit status 1 if not.",
)
def command(name: str | None, asJson: bool, kept: str | None) -> None:
    """
    Make a token for NAME: a secret by which the daemon knows who asks.

    Prints the token, which is for NAME, and its hash, which is for the daemon's
    configuration. Nobody can make the token of the hash: it is not shown again.
    """
    if kept is not None:
        if asJson or name is not None:
            raise click.UsageError("--check stands alone: it makes no token")
        _check(kept)
        return
    made = newToken()
    if asJson:
        click.echo(json.dumps({"token": made, "hash": hashOf(made)}))
        return
    name = name or "somebody"
    click.echo(
        f"The token of {name}, which is not shown again:\n\n"
        f"{made}\n\n"
        "For the daemon's configuration, where `allow` says what may be done with it:\n\n"
        "access:\n"
        "  principals:\n"
        f'    {_key(name)}: {{token: "{hashOf(made)}"}}'
    )


def _check(kept: str) -> None:
    """
    Leave with exit status 1 if another token comes in. It comes by standard input, as everybody
    on a machine can read the command lines there.
    """
    shown = sys.stdin.buffer.read(4 * LONGEST_TOKEN)
    if not isHashOf(kept, shown.decode("utf-8", "surrogateescape").strip()):
        click.echo("it is another token", err=True)
        raise SystemExit(1)
    click.echo("it is this token")


def _key(name: str) -> str:
    """
    A name as a key in YAML.
    """
    if _PLAIN.fullmatch(name) and name.lower() not in _NO_TEXT:
        return name
    return json.dumps(name, ensure_ascii=False)
