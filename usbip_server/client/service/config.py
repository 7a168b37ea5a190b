"""
The configuration of the client service: YAML, checked to the last key before anything else
happens.

C{client.example.yaml} shows every key.
"""

from __future__ import annotations

import enum
import grp
import os
from typing import Annotated

import msgspec

from usbip_server.client.config import ClientSettings, Entry, ServersFile
from usbip_server.client.selection import Selector
from usbip_server.model.device import isBusId
from usbip_server.model.options import Limits, Seconds
from usbip_server.model.rules import LONGEST_NAME, NAME, UNSET, Recipient
from usbip_server.model.selector import CRITERIA, given
from usbip_server.net.endpoints import UNIX_PATH
from usbip_server.net.keepalive import KeepAlive
from usbip_server.runtime.backoff import BackOff
from usbip_server.runtime.yamlfile import textOf

Id = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 2)]

RESTRICTED, OPEN = 0o660, 0o666


class OnStop(enum.Enum):
    """
    What becomes of what is plugged in when the service stops.
    """

    KEEP = "keep"
    DETACH = "detach"


class Moment(enum.Enum):
    """
    What hooks are called on.
    """

    ATTACHED = "attached"
    """A device was plugged in."""

    LOST = "lost"
    """It is not there any more."""


CHOICES: dict[str, type[enum.Enum]] = {"on_stop": OnStop, "events": Moment}


class ClientHook(Recipient, frozen=True, kw_only=True):
    """
    Whom to tell what becomes of a device.

    @ivar events: what of.
    """

    events: Annotated[tuple[Moment, ...], msgspec.Meta(min_length=1)] = (
        Moment.ATTACHED,
        Moment.LOST,
    )


class DeviceRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    A device that is to be plugged in here whenever it is to be had. Criteria as of requests,
    which all have to be met, or a word; with none it is the one that its server calls C{name}.

    @ivar name: what it is called here.
    @ivar servers: where it may be; none: anywhere.
    @ivar symlink: are there to be links to its nodes?
    @ivar hooks: whom to tell.
    """

    name: str
    word: str = UNSET
    id: str = UNSET
    bus: str | int = UNSET
    serial: str = UNSET
    desc: str = UNSET
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
            raise ValueError("`word`, or criteria: not both")
        self.wanted  # noqa: B018 - made, to see whether it can be

    @property
    def wanted(self) -> Selector:
        """Which device is meant."""
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
    Where programs of this machine ask for devices.

    @ivar path: of the unix socket; C{None}: nowhere.
    @ivar group: that it belongs to, a name or a number; C{None}: the service's own.
    @ivar mode: of the file, in octal; C{"auto"}: 0660, or 0666 where somebody else is allowed
        by name: who is not is turned away in any case.
    @ivar allowUids: users that may ask, besides root, the service's own and the group's.
    @ivar allowGids: groups whose members may.
    """

    path: str | None = "/run/usbipshare/client.sock"
    group: str | Id | None = None
    mode: str = "auto"
    allowUids: tuple[Id, ...] = ()
    allowGids: tuple[Id, ...] = ()

    def __post_init__(self) -> None:
        if self.mode != "auto" and not 0 < self._octal() <= 0o777:
            raise ValueError(f'`mode`: {self.mode!r} is none: "auto", or in quotes, as "0660"')
        if self.path is not None and not 0 < len(os.fsencode(self.path)) <= UNIX_PATH:
            raise ValueError(f"`path`: {self.path!r} is not a path of 1 to {UNIX_PATH} bytes")

    def _octal(self) -> int:
        try:
            return int(self.mode, 8)
        except ValueError:
            return 0

    @property
    def permissions(self) -> int:
        """The file's mode."""
        if self.mode != "auto":
            return self._octal()
        return OPEN if self.allowUids or self.allowGids else RESTRICTED

    def groupId(self) -> int | None:
        """
        The number of C{group}.

        @raise ValueError: there is no such group.
        """
        if self.group is None or isinstance(self.group, int):
            return self.group
        try:
            return grp.getgrnam(self.group).gr_gid
        except KeyError:
            raise ValueError(f"there is no group {self.group!r} on this machine") from None


class StateConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    @ivar file: where it is kept what was attached by request; C{None}: nowhere.
    """

    file: str | None = "auto"


class ServiceTimeouts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    How long things may take, in seconds.

    @ivar server: for a server to be connected to, and to answer.
    @ivar attach: until a device is fetched and plugged in; its nodes come on top.
    @ivar request: until a whole request is there.
    @ivar heartbeat: between signs of life to those who watch.
    @ivar stop: how long the end of the service waits for what is in progress.
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
    A configuration.

    @ivar servers: by their names, as in C{client.yaml}.
    @ivar devices: what is to be plugged in.
    @ivar socket: where programs ask.
    @ivar links: the folder for links to nodes.
    @ivar state: what is remembered.
    @ivar onStop: what becomes of what is plugged in when the service stops.
    @ivar reconnect: when a server that is gone is tried again.
    @ivar retry: when a device that could not be had is tried again, if nothing happens to it.
    @ivar keepalive: how it is noticed that a server has vanished, by what is plugged in.
    """

    servers: dict[str, Entry | None] = msgspec.field(default_factory=dict)
    devices: tuple[DeviceRule, ...] = ()
    socket: SocketConfig = SocketConfig()
    links: str = "/dev/usbipshare"
    state: StateConfig = StateConfig()
    onStop: OnStop = OnStop.KEEP
    reconnect: BackOff = BackOff()
    retry: BackOff = BackOff(first=0.25, longest=30.0)
    keepalive: KeepAlive = KeepAlive()
    limits: Limits = Limits()
    timeouts: ServiceTimeouts = ServiceTimeouts()


class ServiceFile(ServersFile):
    """
    A configuration file, and where in it each key stands.
    """

    def config(self) -> ServiceConfig:
        """
        Check it.

        @raise ConfigError: something in it is wrong.
        """
        config = self.checkedServers(ServiceConfig, CHOICES)
        known = config.servers
        names: set[str] = set()
        for index, rule in enumerate(config.devices):
            path = ("devices", index)
            if rule.name in names:
                raise self.error((*path, "name"), f"{rule.name!r} is the name of another, too")
            names.add(rule.name)
            stem, dash, number = rule.name.rpartition("-")
            if dash and number.isdecimal() and any(stem == other.name for other in config.devices):
                raise self.error(
                    (*path, "name"), f"so are links to the nodes of {stem!r} called: choose another"
                )
            for place, name in enumerate(rule.servers):
                if name not in known:
                    raise self.error(
                        (*path, "servers", place), f"{name!r} is none of those at `servers`"
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

        @raise ConfigError: something in it is wrong.
        """
        settings = self.settings(config.servers)
        for name, servers in settings.known.items():
            if settings.stock & {*servers}:
                raise self.error(
                    ("servers", name, "stock"),
                    "the service hears from a server what happens to its devices, and a stock "
                    "usbipd does not tell",
                )
        return settings


def load(path: str) -> ServiceFile:
    """
    Read a file.

    @raise ConfigError: it cannot be read.
    """
    return ServiceFile(path, textOf(path))
