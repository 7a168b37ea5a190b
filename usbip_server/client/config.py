"""
What configurations say of a server, whichever they are, and the files that they name.
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
from usbip_server.client.tls import WrongTls, require
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


T = TypeVar("T")

FILE = "client.yaml"

HOSTS = "USBIPSHARE_HOSTS"
"""The environment variable with servers, separated by spaces or commas."""

DEFAULT = "localhost"
"""The server, where none is named."""

_NAME = re.compile(r"[^\s,]+")


class Entry(ServerOptions, frozen=True, kw_only=True):
    """
    What stands at the name of a server, or of several with addresses in a row.

    @ivar host: its name or address; C{None}: the same as what it is called.
    @ivar range: the addresses: see L{serversIn}.
    @ivar stock: there is no control port, only a stock C{usbipd}.
    """

    host: Text | None = None
    range: str | None = None
    stock: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.host is not None and self.range is not None:
            raise ValueError("`host` or `range`: it is one, or it is several")


class ClientFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    The file.

    @ivar servers: by their names.
    @ivar timeout: seconds for each to answer.
    """

    servers: dict[str, Entry | None] = msgspec.field(default_factory=dict)
    timeout: Seconds = 3.0


class ClientSettings:
    """
    What there is to know of servers.

    @ivar timeout: seconds for each to answer.
    @ivar warnings: what somebody should be told.
    @ivar known: the servers in the file, by its names: several at the name of a range.
    @ivar stock: those of them that have no control port.
    """

    def __init__(self) -> None:
        self.timeout = ClientFile().timeout
        self.warnings: list[str] = []
        self.known: dict[str, tuple[Server, ...]] = {}
        self.stock: set[Server] = set()

    def servers(self, named: Iterable[str], environment: Mapping[str, str]) -> tuple[Server, ...]:
        """
        Those that are to be asked: those that are named, or else those in the environment, in
        the file, or on this machine.

        @param named: names in the file, or hosts.
        @raise ValueError: one is no server.
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
        """The server that gives devices away at a host's port."""
        port = int(service) if service.isdigit() else EXPORT_PORT
        for servers in self.known.values():
            for server in servers:
                if (server.host, server.exportPort) == (host, port):
                    return server
        return Server(name=host, host=host, exportPort=port)

    def _called(self, name: str) -> tuple[Server, ...]:
        if name in self.known:
            return self.known[name]
        for servers in self.known.values():  # an address in a range
            for server in servers:
                if server.name == name:
                    return (server,)
        return (serverAt(name),)


def places(environment: Mapping[str, str], folder: str) -> Iterator[str]:
    """
    Where the file can be; the first that is there counts.

    @param folder: the machine's.
    """
    home = environment.get("XDG_CONFIG_HOME")
    if not home and environment.get("HOME"):
        home = f"{environment['HOME']}/.config"
    if home:
        yield f"{home}/usbipshare/{FILE}"
    yield f"{folder}/{FILE}"


def find(environment: Mapping[str, str], folder: str) -> ClientSettings:
    """
    Read the file that there is, if there is any. One that we may not read is left out.

    @raise ConfigError: it is wrong.
    """
    for path in places(environment, folder):
        try:
            return load(path)
        except ConfigError as error:
            if isinstance(error.__cause__, PermissionError):
                settings = ClientSettings()
                settings.warnings.append(f"{error}: it is left out")
                return settings
            if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                raise
    return ClientSettings()


def load(path: str) -> ClientSettings:
    """
    Read a file.

    @raise ConfigError: it cannot be read, or is wrong.
    """
    reading = ServersFile(path, textOf(path))
    file = reading.checkedServers(ClientFile)
    settings = reading.settings(file.servers)
    settings.timeout = file.timeout
    return settings


class ServersFile(YamlFile):
    """
    A file with C{servers} in it, while it is read.
    """

    def checkedServers(self, kind: type[T], choices: Choices | None = None) -> T:
        """
        What it says, as C{checked}.

        @raise ConfigError: something in it is wrong.
        """
        self.checkEach(("servers",), Entry | None)
        return self.checked(kind, choices)

    def settings(self, entries: Mapping[str, Entry | None]) -> ClientSettings:
        """
        What it says of servers.

        @param entries: what stands at C{servers}.
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
            raise self.error(path, "a server's name has no spaces and no commas in it")
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
        """A path in the file: it is taken from where the file is."""
        return os.path.join(os.path.dirname(os.path.abspath(self._name)), os.path.expanduser(path))

    def _warnOf(self, path: str) -> None:
        try:
            mode = os.stat(path).st_mode
        except OSError:
            return
        if mode & (stat.S_IRGRP | stat.S_IROTH):
            self._settings.warnings.append(f"others can read the token in {path}: chmod 600 {path}")
