"""
C{usbipshare trust}: pins the certificate of a server.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from usbip_server.client.cli.completion import servers
from usbip_server.client.cli.options import failure
from usbip_server.client.cli.text import plain

if TYPE_CHECKING:  # loaded when the command runs
    from pathlib import Path

    from cryptography.x509 import Certificate

    from usbip_server.client.servers import Server

SECURE_PORT = 5056
"""The port for requests with TLS, if none is given."""

SECURE_EXPORT_PORT = 3241
"""The port for USB/IP with TLS."""

SECONDS = 5.0
"""Time limit for the connection and for the handshake."""

MOST_NAMES = 10
"""Names of a certificate that are shown."""

LONGEST_NAMES = 500
"""Characters of them."""

_EXAMPLES = """\b
Examples:
  usbipshare trust raspi
  usbipshare trust raspi:5056 --fingerprint AB:CD:...
"""


@click.command("trust", epilog=_EXAMPLES)
@click.argument("host", shell_complete=servers)
@click.option(
    "--fingerprint",
    metavar="SHA256",
    help="Trust the server only if its certificate has this fingerprint, without a question.",
)
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Add the server to FILE.  [default: ~/.config/usbipshare/client.yaml; for root "
    "/etc/usbipshare/client.yaml]",
)
def command(host: str, fingerprint: str | None, config: str | None) -> None:
    """
    Trust the certificate that the server at HOST has now, and encrypt all connections to it.

    Shows the fingerprint of the certificate. Compare it with the one that
    `openssl x509 -noout -fingerprint -sha256 -in FILE` prints on the server: without that,
    another computer on the way could pretend to be the server. The certificate is stored beside
    client.yaml, where the server is added with TLS. When the server gets another certificate, run
    the command again.
    """
    from usbip_server.client.cli.exitcodes import Exit
    from usbip_server.client.servers import CONTROL_PORT, serverAt
    from usbip_server.net import authority

    try:
        server = serverAt(host)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    isDefault = server.port == CONTROL_PORT and not host.endswith(f":{CONTROL_PORT}")
    port = SECURE_PORT if isDefault else server.port
    certificate = _certificateAt(server.host, port)
    shown = authority.fingerprint(certificate)
    names = authority.namesIn(certificate)
    click.echo(
        f"The server at {server.host}, port {port}, has this certificate:\n"
        f"  names        {_listed(names)}\n"
        f"  valid until  {certificate.not_valid_after_utc:%Y-%m-%d}\n"
        f"  fingerprint  {shown}"
    )
    if fingerprint is not None:
        if _plain(fingerprint) != _plain(shown):
            raise failure(Exit.REFUSED, "the fingerprint is another one: the server is not trusted")
    elif not sys.stdin.isatty():
        raise click.UsageError(
            "standard input is no terminal: confirm the certificate with --fingerprint"
        )
    elif not click.confirm("Trust it?"):
        raise click.Abort
    _store(server, port, certificate, names, _configOr(config))


def _certificateAt(host: str, port: int) -> Certificate:
    import socket
    import ssl

    from cryptography.x509 import load_der_x509_certificate

    from usbip_server.client.cli.exitcodes import Exit
    from usbip_server.net.tlserrors import reasonOf

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # it is the person who verifies it
    try:
        with (
            socket.create_connection((host, port), SECONDS) as connection,
            context.wrap_socket(connection, server_hostname=host.partition("%")[0]) as secured,
        ):
            shown = secured.getpeercert(binary_form=True)
    except ssl.SSLError as error:
        raise failure(
            Exit.UNREACHABLE,
            f"{host}, port {port}: {reasonOf(error, isClient=True)}. Is it a port with TLS? The "
            f"port of a server with `listen: [tls:{SECURE_PORT}]` is {SECURE_PORT}",
        ) from None
    except OSError as error:
        raise failure(
            Exit.UNREACHABLE,
            f"{host}, port {port}: {error.strerror or error}. Give the port of the server's `tls:` "
            f"endpoint: HOST:PORT",
        ) from None
    assert shown is not None
    return load_der_x509_certificate(shown)


def _store(
    server: Server, port: int, certificate: Certificate, names: list[str], config: Path
) -> None:
    """
    Store the certificate, and add the server to client.yaml.
    """
    from cryptography.hazmat.primitives.serialization import Encoding

    from usbip_server.client.cli.exitcodes import Exit
    from usbip_server.runtime.yamledit import CannotInsert, inserted, rewrite, textKey
    from usbip_server.runtime.yamlfile import ConfigError

    safe = "".join(it if it.isalnum() or it in "-_." else "_" for it in server.host).lstrip(".")
    pem = config.parent / "trusted" / f"{safe or '_'}.pem"
    isFirst = not pem.exists()
    tls = f"ca: trusted/{pem.name}"
    if names and not _isFor(server.host, certificate):
        tls += f", server_name: {textKey(names[0])}"
    entry = (
        f"{textKey(server.host)}:\n"
        f"  port: {port}\n"
        f"  export_port: {SECURE_EXPORT_PORT}\n"
        f"  tls: {{{tls}}}\n"
    )
    try:
        pem.parent.mkdir(parents=True, exist_ok=True)
        pem.write_bytes(certificate.public_bytes(Encoding.PEM))
    except OSError as error:
        raise failure(
            Exit.TROUBLE, f"{error.filename} cannot be written: {error.strerror}"
        ) from None
    try:
        rewrite(str(config), lambda text: inserted(text, "servers", entry))
    except (CannotInsert, ConfigError, OSError) as error:
        if not isFirst:
            click.echo(f"Replaced the certificate in {pem}.")
            return
        raise failure(
            Exit.TROUBLE,
            f"stored the certificate in {pem}, but {config} was not changed: {error}. Make the "
            f"server's entry under `servers` this one:\n\n{entry}",
        ) from None
    click.echo(f"Stored the certificate in {pem}, and added {server.host} to {config}.")


def _isFor(host: str, certificate: Certificate) -> bool:
    """Is a certificate for this name, as OpenSSL compares it?"""
    from service_identity.cryptography import (
        verify_certificate_hostname,
        verify_certificate_ip_address,
    )
    from service_identity.exceptions import CertificateError, VerificationError

    name = host.partition("%")[0]
    try:
        if name.replace(".", "").isdigit() or ":" in name:
            verify_certificate_ip_address(certificate, name)
        else:
            verify_certificate_hostname(certificate, name)
    except (VerificationError, CertificateError, ValueError):
        return False
    return True


def _listed(names: list[str]) -> str:
    """The names in a certificate, harmless for a terminal and not more than fit on one."""
    shown = ", ".join(names[:MOST_NAMES]) or "-"
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"{plain(shown[:LONGEST_NAMES])}{more}"


def _plain(fingerprint: str) -> str:
    return fingerprint.replace(":", "").replace(" ", "").lower()


def _configOr(config: str | None) -> Path:
    from pathlib import Path

    from usbip_server.client.config import FILE

    if config is not None:
        return Path(config)
    if os.geteuid() == 0:
        return Path("/etc/usbipshare") / FILE
    folder = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(folder) / "usbipshare" / FILE
