"""
The configuration file of C{twistd usbipshare}: its schema, and the settings in force.
"""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from twisted.logger import Logger

from usbip_server.model.devicerules import Hook, Occasion, Rule, Rules, Share
from usbip_server.model.options import Limits, Timeouts
from usbip_server.model.policy import AccessPreset, Policy, Right, Who
from usbip_server.net.certificates import Tls
from usbip_server.net.keepalive import KeepAlive
from usbip_server.runtime.yamlfile import YamlFile, textOf

_log = Logger()


class OnStop(enum.Enum):
    """
    What the daemon does with bound devices when it stops.
    """

    KEEP = "keep"
    UNBIND = "unbind"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """
    The part of the configuration that a reload can change.

    @ivar devices: rules for devices; the first one that matches a device applies to it.
    @ivar hooks: hooks for all devices.
    @ivar access: who may do what.
    @ivar remember: an attached device is bound again when it is plugged in again.
    @ivar onStop: what becomes of bound devices when the daemon stops.
    @ivar hosts: names, besides this machine's own, that HTTP clients may use for it.
    @ivar keepalive: TCP keepalive of connections that carry USB traffic.
    @ivar requireKtls: refuse USB/IP over TLS where the kernel cannot encrypt it.
    """

    devices: tuple[Rule, ...] = ()
    hooks: tuple[Hook, ...] = ()
    access: Policy = AccessPreset.PRIVATE.policy
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    remember: bool = True
    onStop: OnStop = OnStop.KEEP
    hosts: tuple[str, ...] = ()
    keepalive: KeepAlive = KeepAlive()
    requireKtls: bool = False


class LiveSettings:
    """
    Holds the settings that are in force. Each value is read here when it is needed, and a
    reload replaces all of them at once.
    """

    def __init__(self, settings: Settings) -> None:
        self.replace(settings)

    def replace(self, settings: Settings) -> None:
        """Put other settings in force."""
        self._settings = settings
        self._rules = Rules(settings.devices, settings.hooks)

    @property
    def rules(self) -> Rules:
        """The rules for devices, with their hooks."""
        return self._rules

    @property
    def access(self) -> Policy:
        """Who may do what."""
        return self._settings.access

    @property
    def limits(self) -> Limits:
        """Limits of what clients may ask for."""
        return self._settings.limits

    @property
    def timeouts(self) -> Timeouts:
        """Time limits, in seconds."""
        return self._settings.timeouts

    @property
    def remember(self) -> bool:
        """See L{Settings}; so are the others."""
        return self._settings.remember

    @property
    def onStop(self) -> OnStop:
        return self._settings.onStop

    @property
    def hosts(self) -> tuple[str, ...]:
        return self._settings.hosts

    @property
    def keepalive(self) -> KeepAlive:
        return self._settings.keepalive

    @property
    def requireKtls(self) -> bool:
        return self._settings.requireKtls


HOST_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
"""A name as in a C{Host} header, without the port. Names in other scripts are given in punycode."""


CHOICES: dict[str, type[enum.Enum]] = {
    "share": Share,
    "events": Occasion,
    "on_stop": OnStop,
    "access": AccessPreset,
    "commands": Right,
}
"""The possible values of keys, for error messages."""


class Http(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    The C{http} block.

    @ivar hosts: names, besides this machine's own, that HTTP clients may use for it.
    """

    hosts: tuple[str, ...] = ()


class Export(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={"requireKtls": "require_ktls"},
):
    """
    The C{export} block.

    @ivar listen: Twisted endpoint descriptions for USB/IP.
    @ivar keepalive: TCP keepalive, to detect clients that have vanished.
    @ivar requireKtls: refuse imports over TLS if the kernel cannot encrypt them.
    """

    listen: tuple[str, ...] = ("tcp:3240",)
    keepalive: KeepAlive = KeepAlive()
    requireKtls: bool = False


class Advertise(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    The C{advertise} block: how the daemon announces itself in the local network.

    @ivar name: the name of the server; C{None}: that of this machine.
    @ivar interfaces: the names of the interfaces; empty: all.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=63)] | None = None
    interfaces: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.name is not None and not self.name.isprintable():
            raise ValueError("`name` contains characters that are not printable")


class Memory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    The C{state} block.

    @ivar file: the state file; C{None}: none.
    @ivar remember: bind an attached device again when it is plugged in again.
    """

    file: str | None = "auto"
    remember: bool = True


class Config(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={"onStop": "on_stop"},
):
    """
    The configuration file.

    @ivar listen: Twisted endpoint descriptions for requests.
    @ivar backend: C{type}, and the options of that backend.
    @ivar export: how USB/IP is served; C{False}: by a stock C{usbipd}.
    @ivar advertise: how the daemon announces itself in the local network; C{False}: not.
    @ivar access: who may do what.
    @ivar tls: certificates for endpoints with TLS.
    @ivar devices: rules for devices; the first one that matches a device applies to it.
    @ivar hooks: hooks for events of all devices.
    @ivar state: the state file.
    @ivar onStop: what the daemon does with bound devices when it stops.
    """

    listen: tuple[str, ...] = ("tcp:5055",)
    backend: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "sysfs"})
    export: Export | bool = Export()
    advertise: Advertise | bool = Advertise()
    access: Policy | AccessPreset = AccessPreset.PRIVATE
    tls: Tls | None = None
    devices: tuple[Rule, ...] = ()
    hooks: tuple[Hook, ...] = ()
    state: Memory = Memory()
    onStop: OnStop = OnStop.KEEP
    http: Http = Http()
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()

    @property
    def backendType(self) -> str:
        """The name of the backend."""
        return str(self.backend["type"])

    @property
    def backendOptions(self) -> Mapping[str, Any]:
        """The options of the backend."""
        return {key: value for key, value in self.backend.items() if key != "type"}

    @property
    def exporting(self) -> Export:
        """How USB/IP is served, wherever that is: the defaults where the file has it off."""
        return self.export if isinstance(self.export, Export) else Export()

    @property
    def settings(self) -> Settings:
        """The part that a reload can change."""
        return Settings(
            devices=self.devices,
            hooks=self.hooks,
            access=self.access.policy if isinstance(self.access, AccessPreset) else self.access,
            limits=self.limits,
            timeouts=self.timeouts,
            remember=self.state.remember,
            onStop=self.onStop,
            hosts=self.http.hosts,
            keepalive=self.exporting.keepalive,
            requireKtls=self.exporting.requireKtls,
        )


class Source(YamlFile):
    """
    A configuration file, with the line of each key.
    """

    def config(self) -> Config:
        """
        Decode and check the file.

        @raise ConfigError: something in it is wrong.
        """
        self.checkEach(("access", "principals"), Who)
        for keys in (("listen",), ("export", "listen")):
            given = self.at(keys)
            for index, each in enumerate(given if isinstance(given, list) else [given]):
                if type(each) is int:
                    where = (*keys, index) if isinstance(given, list) else keys
                    reason = f"{each} is not an endpoint description. Did you mean 'tcp:{each}'?"
                    raise self.error(where, reason)
        config = self.checked(Config, CHOICES)
        if not isinstance(config.backend.get("type"), str):
            raise self.error(("backend", "type"), "is missing: say which backend, as sysfs")
        if not config.listen:
            raise self.error(("listen",), "nowhere to listen: leave the key out for tcp:5055")
        if config.export is True:
            raise self.error(
                ("export",), "is `off`, or a mapping: leave it out for {listen: [tcp:3240]}"
            )
        if isinstance(config.export, Export) and not config.export.listen:
            raise self.error(("export", "listen"), "nowhere to listen: `export: off` is for that")
        for index, host in enumerate(config.http.hosts):
            if not HOST_NAME.fullmatch(host):
                raise self.error(
                    ("http", "hosts", index),
                    f"{host!r} is not a host name: letters, digits, '-', '.' and '_' only, "
                    "as in usb.lab.example.com",
                )
        return config


FILE = "usbipshare/server.yaml"
"""The name of the file in C{/etc}."""

FORMER_FILE = "usbipshare.yaml"
"""The name in version 0.1. This file is read as long as the other one is missing or without keys,
as it is when it has just been installed."""


def fileOf(path: str) -> str:
    """
    The configuration file that is read for this one: see L{FORMER_FILE}.

    @raise ConfigError: it cannot be read.
    """
    if not path.endswith(f"/{FILE}"):
        return path
    former = path.removesuffix(FILE) + FORMER_FILE
    if not os.path.exists(former):
        return path
    if not os.path.exists(path) or YamlFile(path, textOf(path)).data == {}:
        return former
    _log.warn("{former} is not read: {path} has keys", former=former, path=path)
    return path


def load(path: str) -> Source:
    """
    Read a configuration file: see L{fileOf}.

    @raise ConfigError: it cannot be read.
    """
    file = fileOf(path)
    if file != path:
        _log.warn("reading {file}: its place is now {path}", file=file, path=path)
    return Source(file, textOf(file))
