"""
The configuration of the client service: the schema of its YAML file (C{client.example.yaml} shows
every key), and L{LiveSettings}, which holds the one in force.
"""

from __future__ import annotations

import enum
import grp
import os
from typing import Annotated

import msgspec

from usbip_server.client.config import ClientSettings, Entry, ServersFile
from usbip_server.client.selection import Selector
from usbip_server.client.servers import Server
from usbip_server.model.criteria import CRITERIA, NAME, given
from usbip_server.model.device import isBusId
from usbip_server.model.devicerules import LONGEST_NAME, UNSET, Recipient
from usbip_server.model.options import Limits, Seconds, Timeouts
from usbip_server.net.endpoints import UNIX_PATH
from usbip_server.net.keepalive import KeepAlive
from usbip_server.runtime.backoff import BackoffOptions
from usbip_server.runtime.yamlfile import textOf

Id = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 2)]

RESTRICTED, OPEN = 0o660, 0o666


class OnStop(enum.Enum):
    """
    What to do with attached devices when the service stops.
    """

    KEEP = "keep"
    DETACH = "detach"


class HookEvent(enum.Enum):
    """
    The events that can run a hook.
    """

    ATTACHED = "attached"
    LOST = "lost"


CHOICES: dict[str, type[enum.Enum]] = {"on_stop": OnStop, "events": HookEvent}


class ClientHook(Recipient, frozen=True, kw_only=True):
    """
    A program or URL that receives the events of a device.

    @ivar events: which events.
    """

    events: Annotated[tuple[HookEvent, ...], msgspec.Meta(min_length=1)] = tuple(HookEvent)


class DeviceRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    A device to keep attached to this machine. It is selected by the criteria of a request, all of
    which must match, or by C{word}; with neither it is the device whose server calls it C{name}.

    @ivar name: the name of the rule, and of its symlinks.
    @ivar servers: names of servers to look at; empty: all.
    @ivar symlink: create symlinks to its device nodes.
    @ivar hooks: what to run on its events.
    """

    name: str
    word: str = UNSET
    id: str = UNSET
    bus: str | int = UNSET
    serial: str = UNSET
    desc: str = UNSET
    path: str = UNSET
    servers: tuple[str, ...] = ()
    symlink: bool = True
    hooks: tuple[ClientHook, ...] = ()

    def __post_init__(self) -> None:
        if len(self.name) > LONGEST_NAME or not NAME.fullmatch(self.name) or isBusId(self.name):
            raise ValueError(
                f"{self.name!r} is not a name: letters, digits, '-', '_' and '.', {LONGEST_NAME} "
                "characters at the most, and no bus id"
            )
        if self.word is not None and given(self):
            raise ValueError("`word` and criteria exclude each other: remove one of them")
        self.selector  # noqa: B018 - raises ValueError if it is invalid

    @property
    def selector(self) -> Selector:
        """Selects the device."""
        if self.word is not None:
            return Selector(word=self.word)
        criteria = given(self, CRITERIA)
        return Selector(**criteria) if criteria else Selector(id=self.name)


class SocketConfig(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={"allowUids": "allow_uids", "allowGids": "allow_gids"},
):
    """
    The unix socket for local programs.

    @ivar path: its path; C{None}: no socket.
    @ivar group: its group, a name or a number; C{None}: the group of the service.
    @ivar mode: its permissions in octal. C{"auto"} is 0660, or 0666 if C{allowUids} or
        C{allowGids} is set: then each request is checked against the peer's credentials.
    @ivar allowUids: users allowed besides root, the service's own user and the socket's group.
    @ivar allowGids: groups whose members are allowed.
    """

    path: str | None = "/run/usbipshare/client.sock"
    group: str | Id | None = None
    mode: str = "auto"
    allowUids: tuple[Id, ...] = ()
    allowGids: tuple[Id, ...] = ()

    def __post_init__(self) -> None:
        if self.mode != "auto" and not 0 < self._octal() <= 0o777:
            raise ValueError(
                f'`mode`: {self.mode!r} is not a mode: use "auto" or octal digits in quotes, "0660"'
            )
        if self.path is not None and not 0 < len(os.fsencode(self.path)) <= UNIX_PATH:
            raise ValueError(f"`path`: {self.path!r} is not a path of 1 to {UNIX_PATH} bytes")

    def _octal(self) -> int:
        try:
            return int(self.mode, 8)
        except ValueError:
            return 0

    @property
    def permissions(self) -> int:
        """The mode of the socket's file."""
        if self.mode != "auto":
            return self._octal()
        return OPEN if self.allowUids or self.allowGids else RESTRICTED

    def groupId(self) -> int | None:
        """
        The numeric id of C{group}.

        @raise ValueError: no such group exists.
        """
        if self.group is None or isinstance(self.group, int):
            return self.group
        try:
            return grp.getgrnam(self.group).gr_gid
        except KeyError:
            raise ValueError(f"there is no group {self.group!r} on this machine") from None


class StateConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    @ivar file: the file that remembers which devices programs have attached; C{None}: none.
    """

    file: str | None = "auto"


class ServiceTimeouts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    Time limits in seconds.

    @ivar server: to connect to a server, and again for its answer.
    @ivar attach: to import a device and attach it, without the wait for its device nodes.
    @ivar request: to receive a complete request.
    @ivar heartbeat: between heartbeats to clients that watch or wait.
    @ivar stop: to finish operations in progress when the service stops.
    """

    server: Seconds = 5.0
    attach: Seconds = 15.0
    request: Seconds = 30.0
    heartbeat: Seconds = 15.0
    stop: Seconds = 5.0


class ServiceConfig(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={"onStop": "on_stop"},
):
    """
    The whole file.

    @ivar servers: by name, as in C{client.yaml}.
    @ivar devices: the rules: devices to keep attached.
    @ivar socket: the socket for local programs.
    @ivar links: the directory of the symlinks to device nodes.
    @ivar onStop: what to do with attached devices when the service stops.
    @ivar reconnect: pauses before reconnecting to a server.
    @ivar retry: pauses before retrying a device that could not be attached.
    @ivar keepalive: TCP keepalive of the sessions of attached devices.
    """

    servers: dict[str, Entry | None] = msgspec.field(default_factory=dict)
    devices: tuple[DeviceRule, ...] = ()
    socket: SocketConfig = SocketConfig()
    links: str = "/dev/usbipshare"
    state: StateConfig = StateConfig()
    onStop: OnStop = OnStop.KEEP
    reconnect: BackoffOptions = BackoffOptions()
    retry: BackoffOptions = BackoffOptions(first=0.25, longest=30.0)
    keepalive: KeepAlive = KeepAlive()
    limits: Limits = Limits()
    timeouts: ServiceTimeouts = ServiceTimeouts()


class ServiceFile(ServersFile):
    """
    A configuration file, and the line of each key in it.
    """

    def config(self) -> ServiceConfig:
        """
        Decode and check it.

        @raise ConfigError: it is invalid.
        """
        config = self.checkedServers(ServiceConfig, CHOICES)
        known = config.servers
        names: set[str] = set()
        for index, rule in enumerate(config.devices):
            path = ("devices", index)
            if rule.name in names:
                raise self.error(
                    (*path, "name"), f"{rule.name!r} is already the name of another rule"
                )
            names.add(rule.name)
            stem, dash, number = rule.name.rpartition("-")
            if dash and number.isdecimal() and any(stem == other.name for other in config.devices):
                raise self.error(
                    (*path, "name"),
                    f"the symlinks of {stem!r} can have this name: choose another one",
                )
            for place, name in enumerate(rule.servers):
                if name not in known:
                    raise self.error(
                        (*path, "servers", place), f"{name!r} is not configured at `servers`"
                    )
        for name, backOff in (("reconnect", config.reconnect), ("retry", config.retry)):
            if backOff.first > backOff.longest:
                raise self.error((name, "first"), "is longer than `longest`")
        try:
            config.socket.groupId()
        except ValueError as error:
            raise self.error(("socket", "group"), str(error)) from None
        return config

    def known(self, config: ServiceConfig) -> ClientSettings:
        """
        The servers in it.

        @raise ConfigError: one of them is invalid.
        """
        settings = self.settings(config.servers)
        for name, servers in settings.known.items():
            if settings.stock & {*servers}:
                raise self.error(
                    ("servers", name, "stock"),
                    "the service needs the events of a server, and a stock usbipd sends none: "
                    "run `twistd usbipshare` there, or use the command `usbipshare`",
                )
        return settings


def load(path: str) -> ServiceFile:
    """
    Read a file.

    @raise ConfigError: it cannot be read.
    """
    return ServiceFile(path, textOf(path))


class LiveSettings:
    """
    The configuration in force. Parts of the service read it when they need a value; a reload
    replaces it as a whole.

    @ivar config: the file.
    @ivar servers: the servers in it.
    """

    def __init__(self, config: ServiceConfig, servers: ClientSettings) -> None:
        self.replace(config, servers)

    @classmethod
    def read(cls, path: str) -> LiveSettings:
        """
        Read a file.

        @raise ConfigError: it cannot be read, or is invalid.
        """
        file = load(path)
        config = file.config()
        return cls(config, file.known(config))

    def replace(self, config: ServiceConfig, servers: ClientSettings) -> None:
        """Put another configuration in force."""
        self.config = config
        self.servers = servers

    @property
    def limits(self) -> Limits:
        """Limits of what programs may ask for."""
        return self.config.limits

    @property
    def timeouts(self) -> Timeouts:
        """The time limits of the protocols on the socket, in seconds."""
        timeouts = self.config.timeouts
        return Timeouts(request=timeouts.request, heartbeat=timeouts.heartbeat)

    @property
    def hosts(self) -> tuple[str, ...]:
        """No names besides this machine's own."""
        return ()

    @property
    def allServers(self) -> tuple[Server, ...]:
        """Each configured server, with the members of ranges, once."""
        known = self.servers.known.values()
        return tuple(dict.fromkeys(server for servers in known for server in servers))
