"""
client.yaml: the servers, how to reach them, and the files that they need. The options of a server
are also those of the gateway's and the client service's configurations.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, TypeVar

import msgspec

from usbip_server.client.servers import (
    CONTROL_PORT,
    EXPORT_PORT,
    ClientTls,
    Server,
    TcpPort,
    serverAt,
    serversIn,
)
from usbip_server.model.options import InvalidOption, Seconds
from usbip_server.model.requests import LONGEST_TOKEN
from usbip_server.runtime.yamlfile import Choices, ConfigError, YamlFile, textOf

Text = Annotated[str, msgspec.Meta(min_length=1)]


class ServerOptions(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={"exportPort": "export_port", "tokenFile": "token_file"},
):
    """
    How to reach a server.

    @ivar port: TCP port for requests.
    @ivar exportPort: TCP port for USB/IP.
    @ivar token: authenticates this client.
    @ivar tokenFile: the path of a file with the token.
    @ivar tls: TLS on both ports; C{None}: without TLS.
    """

    port: TcpPort = CONTROL_PORT
    exportPort: TcpPort = EXPORT_PORT
    token: Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_TOKEN)] | None = None
    tokenFile: str | None = None
    tls: ClientTls | None = None

    def __post_init__(self) -> None:
        if self.token is not None and self.tokenFile is not None:
            raise ValueError("`token` and `token_file` exclude each other")

    def server(self, name: str, host: str, at: Callable[[str], str] = str) -> Server:
        """
        The server. Its files are read and checked.

        @param at: makes an absolute path of one in the configuration.
        @raise InvalidOption: an option is wrong.
        """
        try:
            if serverAt(host).host != host:
                raise ValueError(f"{host!r} is not a host alone: set the port with `port`")
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


def _checked(options: ClientTls, at: Callable[[str], str]) -> ClientTls:
    from usbip_server.client.tls import WrongTls, require

    files = {
        key: at(path)
        for key in ("ca", "certificate", "key")
        if (path := getattr(options, key)) is not None
    }
    tls: ClientTls = msgspec.structs.replace(options, **files)
    try:
        require(tls)
    except WrongTls as error:
        path = ("tls",) if error.key is None else ("tls", error.key)
        raise InvalidOption(path, str(error)) from None
    return tls


T = TypeVar("T")

FILE = "client.yaml"

HOSTS = "USBIPSHARE_HOSTS"
"""The environment variable that names servers, separated by spaces or commas."""

DEFAULT = "localhost"
"""The server if none is configured."""

_NAME = re.compile(r"[^\s,]+")


class Entry(ServerOptions, frozen=True, kw_only=True):
    """
    The options of a server, or of a range of servers.

    @ivar host: its name or address; C{None}: the entry's name.
    @ivar range: addresses: see L{serversIn}.
    @ivar stock: there is only a stock C{usbipd}, and no port for requests.
    """

    host: Text | None = None
    range: str | None = None
    stock: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.host is not None and self.range is not None:
            raise ValueError("`host` and `range` exclude each other")
        hasToken = self.token is not None or self.tokenFile is not None
        if self.range is not None and hasToken and self.tls is None:
            raise ValueError(
                "a token for a `range` requires `tls`: otherwise each machine that takes one of "
                "the addresses receives the token"
            )


class ClientFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    client.yaml.

    @ivar servers: by their names.
    @ivar timeout: seconds for each server's reply.
    """

    servers: dict[str, Entry | None] = msgspec.field(default_factory=dict)
    timeout: Seconds = 3.0


class ClientSettings:
    """
    The configured servers.

    @ivar timeout: seconds for each server's reply.
    @ivar warnings: for the user.
    @ivar known: the servers in the file, by its names: several under the name of a range.
    @ivar stock: those of them that have no port for requests.
    """

    def __init__(self) -> None:
        self.timeout = ClientFile().timeout
        self.warnings: list[str] = []
        self.known: dict[str, tuple[Server, ...]] = {}
        self.stock: set[Server] = set()

    def namesNone(self, named: Iterable[str], environment: Mapping[str, str]) -> bool:
        """Is no server named anywhere?"""
        return not ([*named] or self.known or environment.get(HOSTS, "").strip(" \t\n,"))

    def servers(self, named: Iterable[str], environment: Mapping[str, str]) -> tuple[Server, ...]:
        """
        The servers to ask: those named, or else those in the environment variable, or else all in
        the file, or else this machine.

        @param named: names in the file, or addresses.
        @raise ValueError: one of these is not a valid address.
        """
        names = [*named] or [*filter(None, re.split(r"[\s,]+", environment.get(HOSTS, "")))]
        if not names and self.known:
            names = [*self.known]
        found = [server for name in names or [DEFAULT] for server in self._called(name)]
        return tuple(dict.fromkeys(found))

    def rangeOf(self, server: Server) -> str | None:
        """The name of the range that a server is in."""
        for name, servers in self.known.items():
            if server in servers and server.name != name:
                return name
        return None

    def exporting(self, host: str, service: str) -> Server:
        """The server that exports devices on a TCP port of a host."""
        port = int(service) if service.isdigit() else EXPORT_PORT
        for servers in self.known.values():
            for server in servers:
                if (server.host, server.exportPort) == (host, port):
                    return server
        return Server(name=host, host=host, exportPort=port)

    def _called(self, name: str) -> tuple[Server, ...]:
        if name in self.known:
            return self.known[name]
        for servers in self.known.values():  # one address of a range
            for server in servers:
                if server.name == name:
                    return (server,)
        return (serverAt(name),)


def places(environment: Mapping[str, str], folder: str) -> Iterator[str]:
    """
    Where client.yaml may be, in the order of precedence.

    @param folder: that of the settings for all users.
    """
    home = environment.get("XDG_CONFIG_HOME")
    if not home and environment.get("HOME"):
        home = f"{environment['HOME']}/.config"
    if home:
        yield f"{home}/usbipshare/{FILE}"
    yield f"{folder}/{FILE}"


def find(environment: Mapping[str, str], folder: str) -> ClientSettings:
    """
    Read the first client.yaml that exists. Without read permission it is ignored, with a warning.

    @raise ConfigError: the file is wrong.
    """
    for path in places(environment, folder):
        try:
            return load(path)
        except ConfigError as error:
            if isinstance(error.__cause__, PermissionError):
                settings = ClientSettings()
                settings.warnings.append(f"{error}: ignored")
                return settings
            if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                raise
    return ClientSettings()


def load(path: str) -> ClientSettings:
    """
    Read a file.

    @raise ConfigError: it cannot be read, or is wrong.
    """
    source = ServersFile(path, textOf(path))
    file = source.checkedServers(ClientFile)
    settings = source.settings(file.servers)
    settings.timeout = file.timeout
    return settings


class ServersFile(YamlFile):
    """
    A YAML file with a mapping C{servers}.
    """

    def checkedServers(self, kind: type[T], choices: Choices | None = None) -> T:
        """
        The content, as C{checked}.

        @raise ConfigError: something in it is wrong.
        """
        self.checkEach(("servers",), Entry | None)
        return self.checked(kind, choices)

    def settings(self, entries: Mapping[str, Entry | None]) -> ClientSettings:
        """
        The servers.

        @param entries: the mapping C{servers}.
        @raise ConfigError: something in it is wrong.
        """
        self._settings = ClientSettings()
        for name, entry in entries.items():
            servers = tuple(self._servers(name, entry or Entry()))
            self._settings.known[name] = servers
            if entry is not None and entry.stock:
                self._settings.stock.update(servers)
        if any(entry is not None and entry.token is not None for entry in entries.values()):
            self._warnOf(self._name)
        return self._settings

    def _servers(self, name: str, entry: Entry) -> Iterator[Server]:
        path = ("servers", name)
        if not _NAME.fullmatch(name) or not name.isprintable():
            raise self.error(path, "a server's name must not contain spaces or commas")
        try:
            yield from self._made(name, entry)
        except InvalidOption as error:
            raise self.error((*path, *error.path), error.reason) from None
        if entry.tokenFile is not None:
            self._warnOf(self._beside(entry.tokenFile))

    def _made(self, name: str, entry: Entry) -> Iterator[Server]:
        if entry.range is None:
            yield entry.server(name, entry.host or name, self._beside)
            return
        try:
            addresses = [*serversIn(entry.range)]
        except ValueError as error:
            raise InvalidOption(("range",), str(error)) from None
        first = entry.server(addresses[0], addresses[0], self._beside)
        for address in addresses:
            yield msgspec.structs.replace(first, name=address, host=address)

    def _beside(self, path: str) -> str:
        """An absolute path: one in the file is relative to the file's folder."""
        return os.path.join(os.path.dirname(os.path.abspath(self._name)), os.path.expanduser(path))

    def _warnOf(self, path: str) -> None:
        try:
            mode = os.stat(path).st_mode
        except OSError:
            return
        if mode & (stat.S_IRGRP | stat.S_IROTH):
            self._settings.warnings.append(
                f"other users can read the token in {path}: chmod 600 {path}"
            )
