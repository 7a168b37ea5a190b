"""
C{usbipshare ca}: a certificate authority for one's own servers and clients. It asks no server.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from usbip_server.client.cli.options import failure

if TYPE_CHECKING:  # loaded when a command runs: it takes longer than all else here
    from pathlib import Path

    from usbip_server.net.authority import Authority

SERVER_FILE = "/etc/usbipshare/server.yaml"

_FOLDER = "/etc/usbipshare/tls"

_EXAMPLES = """\b
Examples:
  sudo usbipshare ca init
  sudo usbipshare ca server raspi raspi.local 192.0.2.10 --write
  sudo usbipshare ca client alice
"""


@click.group("ca", epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """
    Create a certificate authority (CA), and certificates for servers and clients.

    With a CA, clients recognize their servers and servers recognize their clients, and everything
    between them is encrypted. The key of the CA can make certificates for every name: keep the
    folder on a machine that is neither server nor client if you can.
    """


def _withFolder(function: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--dir",
        "folder",
        metavar="DIR",
        type=click.Path(file_okay=False),
        help=f"The folder of the CA.  [default: {_FOLDER} for root, else ~/.config/usbipshare/tls]",
    )(function)


def _withDays(days: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        "--days",
        type=click.IntRange(1, 36500),
        default=days,
        show_default=True,
        help="How long the certificate is valid.",
    )


@command.command("init", short_help="Create the CA")
@click.option("--name", default="usbipshare CA", show_default=True, help="The name of the CA.")
@_withDays(3650)
@_withFolder
def init(name: str, days: int, folder: str | None) -> None:
    """
    Create a CA: ca.pem, which servers and clients need, and ca.key, which nobody else may read.
    """
    from usbip_server.net.authority import Authority, fingerprint

    with _reporting():
        authority = Authority.create(_folderOr(folder), name, days)
    click.echo(
        f"Created {authority.folder}/ca.pem and ca.key.\n"
        f"SHA-256 fingerprint: {fingerprint(authority.certificate)}\n"
        "Next: `usbipshare ca server NAME...` with every name and address of a server."
    )


@command.command("server", short_help="Create a certificate for a server")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option(
    "--write",
    "write",
    is_flag=True,
    help="Add what is printed to the server's configuration (see --config).",
)
@click.option(
    "--config",
    metavar="FILE",
    default=SERVER_FILE,
    show_default=True,
    type=click.Path(dir_okay=False),
    help="The server's configuration, for --write.",
)
@_withDays(825)
@_withFolder
def server(names: tuple[str, ...], write: bool, config: str, days: int, folder: str | None) -> None:
    """
    Create a certificate for a server, and print what its configuration needs.

    NAME... is every name and address by which clients reach the server: clients refuse a
    certificate that is not for the name they use.
    """
    with _reporting():
        authority = _authority(folder)
        pem, key = authority.issueServer([*names], days)
    block = (
        "listen: [tcp:5055:interface=127.0.0.1, tls:5056]\n"
        "export: {listen: [tls:3241]}\n"
        "tls:\n"
        f"  certificate: {pem}\n"
        f"  key: {key}\n"
        f"  client_ca: {authority.folder}/ca.pem\n"
    )
    click.echo(f"Created {pem} and {key.name}.")
    _place(block, config, write, "`sudo systemctl reload usbipshare` puts it in force.")
    click.echo(
        "\nOn each client: `usbipshare trust "
        f"{names[0]}`, or copy ca.pem there and name it with `tls: {{ca: ...}}` in client.yaml."
    )


@command.command("client", short_help="Create a certificate for a client")
@click.argument("name")
@_withDays(825)
@_withFolder
def client(name: str, days: int, folder: str | None) -> None:
    """
    Create a certificate for a client, which servers identify by NAME, and print what the
    configurations of servers and of the client need.
    """
    with _reporting():
        authority = _authority(folder)
        pem, key = authority.issueClient(name, days)
    from usbip_server.runtime.yamledit import textKey

    click.echo(
        f"Created {pem} and {key.name}.\n\n"
        f"For the configuration of a server ({SERVER_FILE}):\n\n"
        "access:\n"
        "  principals:\n"
        f"    {textKey(name)}: {{certificate: {textKey(name)}}}\n"
        "  allow:\n"
        f"    - {{who: {textKey(name)}}}\n\n"
        f"Copy {pem.name}, {key.name} and ca.pem to the client, and write into its client.yaml "
        "(SERVER is the server's name):\n\n"
        "servers:\n"
        "  SERVER:\n"
        "    port: 5056\n"
        "    export_port: 3241\n"
        f"    tls: {{ca: ca.pem, certificate: {pem.name}, key: {key.name}}}"
    )


def _folderOr(folder: str | None) -> Path:
    from pathlib import Path

    if folder is not None:
        return Path(folder).absolute()
    if os.geteuid() == 0:
        return Path(_FOLDER)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "usbipshare" / "tls"


def _authority(folder: str | None) -> Authority:
    from usbip_server.net.authority import Authority

    return Authority.read(_folderOr(folder))


def _place(block: str, config: str, write: bool, after: str) -> None:
    """
    Add keys to a configuration file, or print them.
    """
    from usbip_server.client.cli.exitcodes import Exit
    from usbip_server.runtime.yamledit import CannotInsert, appended, rewrite
    from usbip_server.runtime.yamlfile import ConfigError

    shown = f"\nFor {config}:\n\n{block}"
    if not write:
        click.echo(shown)
        return
    try:
        rewrite(config, lambda text: appended(text, block))
    except (CannotInsert, ConfigError, OSError) as error:
        click.echo(shown)
        raise failure(
            Exit.TROUBLE, f"{config} was not changed: {error}. Merge the lines above into it"
        ) from None
    click.echo(f"Added `listen`, `export` and `tls` to {config}. {after}")


@contextlib.contextmanager
def _reporting() -> Iterator[None]:
    from usbip_server.client.cli.exitcodes import Exit
    from usbip_server.net.authority import AuthorityError

    try:
        yield
    except AuthorityError as error:
        raise failure(Exit.TROUBLE, str(error)) from None
