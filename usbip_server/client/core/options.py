"""
What configurations say of a server, whichever they are, and the files that they name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec

from usbip_server.client.core.servers import (
    CONTROL_PORT,
    EXPORT_PORT,
    ClientTls,
    Server,
    TcpPort,
    serverAt,
)
from usbip_server.client.core.trust import WrongTls, require
from usbip_server.commands import LONGEST_TOKEN
from usbip_server.limits import InvalidOption

Text = Annotated[str, msgspec.Meta(min_length=1)]


class ServerOptions(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={"exportPort": "export_port", "tokenFile": "token_file"},
):
    """
    How to reach a server, and what is shown there.

    @ivar port: for requests.
    @ivar exportPort: for USB/IP.
    @ivar token: proves who we are.
    @ivar tokenFile: where the token is instead.
    @ivar tls: how to speak TLS with it, on both ports; C{None}: it is spoken to in plain.
    """

    port: TcpPort = CONTROL_PORT
    exportPort: TcpPort = EXPORT_PORT
    token: Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_TOKEN)] | None = None
    tokenFile: str | None = None
    tls: ClientTls | None = None

    def __post_init__(self) -> None:
        if self.token is not None and self.tokenFile is not None:
            raise ValueError("`token` or `token_file`: which of them?")

    def server(self, name: str, host: str, at: Callable[[str], str] = str) -> Server:
        """
        The server that is meant. Its files are looked at.

        @param at: where a file is that is named.
        @raise InvalidOption: it cannot be reached like that.
        """
        try:
            if serverAt(host).host != host:
                raise ValueError(f"{host!r} is more than a host: a port goes into `port`")
        except ValueError as error:
            raise InvalidOption(("host",), str(error)) from None
        return Server(
            name=name,
            host=host,
            port=self.port,
            exportPort=self.exportPort,
            token=self.token if self.tokenFile is None else _tokenIn(at(self.tokenFile)),
            tls=None if self.tls is None else _checked(self.tls, at),
        )


def _tokenIn(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            token = file.read(4 * LONGEST_TOKEN).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InvalidOption(("token_file",), f"{path} cannot be read: {reason}") from None
    if not 0 < len(token) <= LONGEST_TOKEN:
        raise InvalidOption(("token_file",), f"{path} holds no token")
    return token


def _checked(said: ClientTls, at: Callable[[str], str]) -> ClientTls:
    files = {
        key: at(path)
        for key in ("ca", "certificate", "key")
        if (path := getattr(said, key)) is not None
    }
    tls: ClientTls = msgspec.structs.replace(said, **files)
    try:
        require(tls)
    except WrongTls as error:
        path = ("tls",) if error.key is None else ("tls", error.key)
        raise InvalidOption(path, str(error)) from None
    return tls
