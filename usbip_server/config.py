"""
The configuration file: YAML, checked to the last key before anything else happens.

C{config.example.yaml} shows every key.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import Any

import msgspec
import yaml
from yaml.reader import ReaderError

from usbip_server.backends.options import invalid
from usbip_server.errors import InvalidOption
from usbip_server.handoff import KeepAlive
from usbip_server.limits import Limits, Timeouts
from usbip_server.policy import Openness, Policy, Right, Who
from usbip_server.rules import Hook, Occasion, Rule, Share
from usbip_server.settings import OnStop, Settings, Tls

Path = tuple[str | int, ...]

HOST_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
"""As it can stand in a C{Host} header, less the port. A name in another script stands there
as its punycode."""


CHOICES: dict[str, type[enum.Enum]] = {
    "share": Share,
    "events": Occasion,
    "on_stop": OnStop,
    "access": Openness,
    "commands": Right,
}
"""What can stand at a key, by the key."""


class Http(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    @ivar hosts: names that HTTP clients may call this machine by, besides its own.
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
    @ivar listen: Twisted endpoint descriptions of the port that devices are imported from.
    @ivar keepalive: how it is noticed that a client has vanished.
    @ivar requireKtls: give no device to a TLS connection that the kernel cannot encrypt.
    """

    listen: tuple[str, ...] = ("tcp:3240",)
    keepalive: KeepAlive = KeepAlive()
    requireKtls: bool = False


class Memory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    @ivar file: where it is kept what clients have asked for; C{None}: nowhere.
    @ivar remember: is what was attached bound again when it is plugged in anew?
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
    A configuration.

    @ivar listen: Twisted endpoint descriptions of the control port.
    @ivar backend: C{type}, and that type's own options.
    @ivar export: serving USB/IP; C{False}: a stock C{usbipd} does that.
    @ivar access: who may do what.
    @ivar tls: what places to listen at with TLS need.
    @ivar devices: what is said of devices; the first rule that matches counts.
    @ivar hooks: whom to tell of all devices.
    @ivar state: what is remembered.
    @ivar onStop: what becomes of bound devices when the daemon stops.
    """

    listen: tuple[str, ...] = ("tcp:5055",)
    backend: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "sysfs"})
    export: Export | bool = Export()
    access: Policy | Openness = Openness.PRIVATE
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
        """Which backend."""
        return str(self.backend["type"])

    @property
    def backendOptions(self) -> Mapping[str, Any]:
        """Its own options."""
        return {key: value for key, value in self.backend.items() if key != "type"}

    @property
    def settings(self) -> Settings:
        """What can change while the daemon runs."""
        return Settings(
            devices=self.devices,
            hooks=self.hooks,
            access=self.access.policy if isinstance(self.access, Openness) else self.access,
            limits=self.limits,
            timeouts=self.timeouts,
            remember=self.state.remember,
            onStop=self.onStop,
        )


class ConfigError(Exception):
    """
    The configuration is wrong. The text says where and why: C{file:line: key: reason}.
    """


class Source:
    """
    A configuration file, and where in it each key stands.
    """

    def __init__(self, name: str, text: str) -> None:
        """
        @param name: the file's name, for messages.
        @raise ConfigError: it is not YAML, or says a key twice.
        """
        self._name = name
        self._lines: dict[Path, int] = {(): 1}
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            data = None if node is None else self._take(node, ())
            self._data = {} if data is None else data
        except ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise ConfigError(f"{name}:{line}: this is not YAML: {error.reason}") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = mark.line + 1 if mark else 1
            problem = getattr(error, "problem", None) or str(error)
            raise ConfigError(f"{name}:{line}: this is not YAML: {problem}") from None
        except RecursionError:
            raise ConfigError(f"{name}:1: it is nested too deeply") from None

    def config(self) -> Config:
        """
        Check it.

        @raise ConfigError: something in it is wrong.
        """
        if not isinstance(self._data, dict):
            raise self.error((), "the file has to be a mapping, `key: value` on each line")
        self._checkPrincipals()
        try:
            config = msgspec.convert(self._data, Config)
        except msgspec.ValidationError as error:
            wrong = invalid(error)
            raise self.error(wrong.path, wrong.reason + _choices(wrong)) from None
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

    def _checkPrincipals(self) -> None:
        """
        Each by itself: msgspec does not say at which key of a mapping something is wrong.

        @raise ConfigError: one is wrong.
        """
        access = self._data.get("access") if isinstance(self._data, dict) else None
        principals = access.get("principals") if isinstance(access, dict) else None
        for name, who in principals.items() if isinstance(principals, dict) else ():
            try:
                msgspec.convert(who, Who)
            except msgspec.ValidationError as error:
                wrong = invalid(error)
                path = ("access", "principals", name, *wrong.path)
                raise self.error(path, wrong.reason) from None

    def error(self, path: Path, reason: str) -> ConfigError:
        """
        The error for what stands at C{path}, or would.
        """
        known = path
        while known not in self._lines:
            known = known[:-1]
        key = ".".join(map(str, path))
        what = f"{key}: {reason}" if key else reason
        return ConfigError(f"{self._name}:{self._lines[known]}: {what}")

    def _take(self, node: yaml.Node, path: Path) -> Any:
        """
        Make plain data of a node, and note where its parts stand.
        """
        self._lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            return [self._take(part, (*path, index)) for index, part in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            return _scalar(node)
        mapping: dict[str, Any] = {}
        for keyNode, valueNode in node.value:
            key = _scalar(keyNode) if isinstance(keyNode, yaml.ScalarNode) else None
            line = keyNode.start_mark.line + 1
            if not isinstance(key, str):
                raise ConfigError(
                    f"{self._name}:{line}: a key has to be a word ("
                    "YAML takes on, off, yes and no for true and false: put them in quotes)"
                )
            if key in mapping:
                raise ConfigError(
                    f"{self._name}:{line}: {'.'.join(map(str, (*path, key)))}: stands here twice"
                )
            self._lines[(*path, key)] = line
            mapping[key] = self._take(valueNode, (*path, key))
        return mapping


def _choices(wrong: InvalidOption) -> str:
    """
    What there is to choose from, where something else stands.
    """
    key = next((step for step in reversed(wrong.path) if isinstance(step, str)), "")
    if key not in CHOICES or "enum value" not in wrong.reason:
        return ""
    return f": it is one of {', '.join(choice.value for choice in CHOICES[key])}"


def _scalar(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node)
    except yaml.YAMLError:
        raise
    except Exception:  # each type has its own; 2026-99-99 looks like a date
        kind = node.tag.rpartition(":")[2]
        raise yaml.MarkedYAMLError(
            problem=f"{node.value!r} is no {kind}: if it is text, put it in quotes",
            problem_mark=node.start_mark,
        ) from None
    finally:
        loader.dispose()


def statePath(file: str | None, environment: Mapping[str, str], isRoot: bool) -> str | None:
    """
    Where the state file is.

    @param file: as configured; C{"auto"} is systemd's C{StateDirectory=} (systemd.exec(5)),
        root's place for such things (file-hierarchy(7)), or the user's (XDG Base Directory).
    """
    if file != "auto":
        return file
    folder = environment.get("STATE_DIRECTORY", "").partition(":")[0]
    if not folder and isRoot:
        folder = "/var/lib/usbipshare"
    if not folder:
        home = environment.get("HOME") or "/"
        folder = f"{environment.get('XDG_STATE_HOME') or f'{home}/.local/state'}/usbipshare"
    return f"{folder}/state.json"


def load(path: str) -> Source:
    """
    Read a file.

    @raise ConfigError: it cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return Source(path, file.read())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}:1: it is not UTF-8") from None


def wrongOption(source: Source, error: InvalidOption) -> ConfigError:
    """
    The error for an option of the backend.
    """
    return source.error(("backend", *error.path), error.reason)
