"""
C{twistd usbipshare}: the command line, and how the parts are put together.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from operator import attrgetter
from typing import Any

from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import Logger
from twisted.plugin import getPlugins
from twisted.python.usage import Options as CommandLine
from zope.interface.exceptions import Invalid
from zope.interface.verify import verifyObject

from usbip_server.answers import Answers
from usbip_server.config import (
    Config,
    ConfigError,
    Export,
    Source,
    load,
    statePath,
    wrongOption,
)
from usbip_server.daemon import Daemon, Deaf, Place
from usbip_server.descriptors import affordable
from usbip_server.errors import InvalidOption
from usbip_server.handoff import KeepAlive
from usbip_server.interfaces import IUsbBackend, IUsbBackendMaker
from usbip_server.listening import serverEndpoint
from usbip_server.protocols.exporter import ExporterFactory
from usbip_server.protocols.firstbyte import FirstByteFactory
from usbip_server.protocols.lines import JsonLines
from usbip_server.protocols.web import WebFactory
from usbip_server.sharing import Sharing
from usbip_server.statefile import StateFile

_log = Logger()


class Options(CommandLine):
    """
    The command line. What it says overrides the file.
    """

    synopsis = "[options]"
    longdesc = (
        "Share this machine's USB devices: clients ask for them over TCP with JSON, the daemon "
        "binds them to the kernel's usbip-host driver, and USB/IP carries them. Without "
        "options it listens on TCP port 5055 of every interface and shares what /sys shows. "
        "The documentation begins in README.md."
    )
    optParameters = [  # noqa: RUF012 - this is how twisted.python.usage wants it
        ["config", "c", None, "Configuration file (YAML). config.example.yaml shows every key."],
        ["backend", "b", None, "Where devices come from: one of the backends listed below."],
    ]
    optFlags = [  # noqa: RUF012
        ["check", None, "Check the configuration and exit."],
    ]

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []
        self["export"] = []

    def opt_listen(self, description: str) -> None:
        """
        Where to listen: a Twisted endpoint description, such as
        tcp:5055:interface=127.0.0.1. Can be given several times.
        """
        self["listen"].append(description)

    opt_l = opt_listen

    def opt_export(self, description: str) -> None:
        """
        Where to serve USB/IP, likewise; "off" leaves that to a stock usbipd.
        """
        self["export"].append(description)

    opt_e = opt_export

    def opt_version(self) -> None:
        """
        Show the version and exit.
        """
        print(f"usbipshare {version('usbipshare')}")
        sys.exit(0)

    def getUsage(self, width: int | None = None) -> str:
        """
        The help, and the backends there are.
        """
        makers = _makers()
        longest = max(map(len, makers), default=0)
        lines = (f"  {name:{longest}}  {makers[name].description}" for name in sorted(makers))
        return "\n".join((super().getUsage(width), "Backends:", *lines)) + "\n"

    def postOptions(self) -> None:
        """
        Put everything together now, so that whatever is wrong with the configuration is
        said before anything runs.
        """
        from twisted.internet import reactor

        try:
            self["service"] = assemble(self, reactor)
        except ConfigError as error:
            sys.exit(str(error))
        if self["check"]:
            print(f"{self['config'] or 'no configuration file'}: all is well")
            sys.exit(0)


def makeService(options: Options) -> Daemon:
    """
    What C{twistd} runs.
    """
    service: Daemon = options["service"]
    return service


def assemble(options: Options, reactor: Any) -> Daemon:
    """
    Make a daemon of the parts.

    @raise ConfigError: the configuration does not allow it.
    """
    source = _load(options)
    config = source.config()
    endpoints = _endpoints(options, source, config, reactor)
    backend = _backend(options, source, config, reactor)
    path = statePath(config.state.file, os.environ, os.geteuid() == 0)
    stateFile = None if path is None else StateFile(path, reactor)
    sharing = Sharing(backend, reactor, config.settings, stateFile)
    answers = Answers(sharing)
    web = WebFactory(answers, config.http.hosts, config.limits, config.timeouts, reactor)
    factory = FirstByteFactory(
        lambda principal: JsonLines(answers, principal, web.limits, web.timeouts, reactor),
        web.makeChannel,
        _affordable(options, config),
        reactor,
    )
    exporter = ExporterFactory(sharing, _keepAlive(config), factory.most, reactor)
    reload = Reload(options, config, reactor, sharing, web, factory, exporter)
    return Daemon(sharing, factory, exporter, endpoints, reactor, reload)


class Reload:
    """
    Reads the configuration again, and has what it says done.
    """

    def __init__(
        self,
        options: Options,
        config: Config,
        reactor: Any,
        sharing: Sharing,
        web: WebFactory,
        factory: FirstByteFactory,
        exporter: ExporterFactory,
    ) -> None:
        self._options = options
        self._config = config
        self._reactor = reactor
        self._sharing = sharing
        self._web = web
        self._factory = factory
        self._exporter = exporter

    async def __call__(self, daemon: Daemon) -> None:
        """
        Do it. What is wrong is logged, and then everything stays as it is.
        """
        try:
            source = _load(self._options)
            config = source.config()
            await daemon.listenOn(_endpoints(self._options, source, config, self._reactor))
        except (ConfigError, Deaf) as error:
            _log.error("nothing is changed: {error}", error=str(error))
            return
        for key in ("backend", "state.file"):
            if attrgetter(key)(config) != attrgetter(key)(self._config):
                _log.warn("a change of `{key}` waits for the daemon to be started anew", key=key)
        self._sharing.apply(config.settings)
        self._web.apply(config.http.hosts, config.limits, config.timeouts)
        self._factory.most = self._exporter.most = _affordable(self._options, config)
        self._exporter.keepAlive = _keepAlive(config)
        _log.info("the configuration was read anew, and is true from now on")


def _load(options: Options) -> Source:
    return load(options["config"]) if options["config"] else Source("defaults", "")


def _endpoints(options: Options, source: Source, config: Config, reactor: Any) -> list[Place]:
    if options["listen"]:
        places = [
            Place(text, _endpoint(reactor, _commandLine, "--listen", text))
            for text in options["listen"]
        ]
    else:
        places = [
            Place(text, _endpoint(reactor, source.error, ("listen", index), text))
            for index, text in enumerate(config.listen)
        ]
    for text in options["export"]:
        if text != "off":
            places.append(_exportPlace(reactor, _commandLine, "--export", text))
    if isinstance(config.export, Export) and not options["export"]:
        for index, text in enumerate(config.export.listen):
            path = ("export", "listen", index)
            places.append(_exportPlace(reactor, source.error, path, text))
    return places


def _exportPlace(
    reactor: Any, wrong: Callable[[Any, str], ConfigError], where: Any, text: str
) -> Place:
    if text.partition(":")[0] in ("ssl", "tls"):
        raise wrong(where, "USB/IP cannot be served over TLS: the kernel would send it in plain")
    return Place(text, _endpoint(reactor, wrong, where, text), True)


def _keepAlive(config: Config) -> KeepAlive:
    return config.export.keepalive if isinstance(config.export, Export) else KeepAlive()


def _commandLine(option: str, reason: str) -> ConfigError:
    return ConfigError(f"{option}: {reason}")


def _endpoint(
    reactor: Any, wrong: Callable[[Any, str], ConfigError], where: Any, description: str
) -> IStreamServerEndpoint:
    """
    @param wrong: makes the error of C{where} and the reason.
    """
    try:
        return serverEndpoint(reactor, description)
    except ValueError as error:
        raise wrong(where, str(error)) from None


def _backend(options: Options, source: Source, config: Config, reactor: Any) -> IUsbBackend:
    """
    Make the backend; the options in the file are for the type in the file.
    """
    kind: str = options["backend"] or config.backendType
    asked = bool(options["backend"])
    makers = _makers()
    if kind not in makers:
        reason = f"there is no backend {kind!r}: installed are {', '.join(sorted(makers))}"
        raise _wrongBackend(source, asked, ("type",), reason)
    inFile = kind == config.backendType
    asked = asked and not (inFile and config.backendOptions)
    try:
        given = config.backendOptions if inFile else {}
        backend: IUsbBackend = makers[kind].makeBackend(given, reactor)
        verifyObject(IUsbBackend, backend)
    except InvalidOption as error:
        raise _wrongBackend(source, asked, error.path, error.reason) from None
    except Invalid as error:
        raise _wrongBackend(source, asked, (), f"{kind} is not a backend: {error}") from None
    return backend


def _makers() -> dict[str, Any]:
    """
    The backends that are installed, L{IUsbBackendMaker}s, by their names.
    """
    return {maker.name: maker for maker in getPlugins(IUsbBackendMaker)}


def _wrongBackend(
    source: Source, asked: bool, path: Sequence[str | int], reason: str
) -> ConfigError:
    """
    @param asked: is what is wrong what C{--backend} says? Else it is the file.
    """
    if asked:
        return _commandLine("--backend", reason)
    return wrongOption(source, InvalidOption(path, reason))


def _affordable(options: Options, config: Config) -> int:
    """
    How many connections there can be of each kind: requests, and imports to be.
    """
    wanted = config.limits.connections
    isExporting = options["export"] != ["off"] and config.export is not False
    kinds = 2 if isExporting else 1
    room = max(1, affordable(kinds * wanted) // kinds)
    if room < wanted:
        _log.warn(
            "room for {room} connections only, not {wanted}: the limit on open files is too "
            "low (LimitNOFILE= in the systemd unit, or ulimit -n)",
            room=room,
            wanted=wanted,
        )
    return room
