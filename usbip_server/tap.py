"""
C{twistd usbipshare}: the command line, and how the parts are put together.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from twisted.logger import Logger
from twisted.plugin import getPlugins
from twisted.python.usage import Options as CommandLine
from zope.interface.exceptions import Invalid
from zope.interface.verify import verifyObject

from usbip_server import __version__
from usbip_server.interfaces import IUsbBackend, IUsbBackendMaker
from usbip_server.model.options import InvalidOption
from usbip_server.net.certificates import Certificates, Credentials, read
from usbip_server.net.endpoints import CannotListen, Listener, Listeners, Purpose, Wrong
from usbip_server.protocols.exporter import ExporterFactory
from usbip_server.protocols.exporter_tls import SecuredFactory
from usbip_server.protocols.lines import CommandProtocol
from usbip_server.protocols.multiplexer import FirstByteFactory
from usbip_server.protocols.web import WebFactory
from usbip_server.runtime.service import affordable
from usbip_server.runtime.statefile import StateFile, statePath
from usbip_server.runtime.yamlfile import ConfigError
from usbip_server.server.config import (
    Config,
    Export,
    Source,
    load,
    wrongOption,
)
from usbip_server.server.core import Sharing
from usbip_server.server.devices.desired import State
from usbip_server.server.responder import Responder
from usbip_server.server.service import Daemon

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
        print(f"usbipshare {__version__}")
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
    certificates = Certificates(_credentials(source, config))
    places = _places(options, source, config, reactor, certificates)
    backend = _backend(options, source, config, reactor)
    # Virtual devices without a configuration are to try things with: nothing is left behind.
    isTrial = options["backend"] == "virtual" and not options["config"]
    path = statePath(None if isTrial else config.state.file, os.environ, os.geteuid() == 0)
    stateFile = None if path is None else StateFile(path, State, reactor)
    sharing = Sharing(backend, reactor, config.settings, stateFile)
    answers = Responder(sharing)
    web = WebFactory(answers, config.http.hosts, config.limits, config.timeouts, reactor)
    factory = FirstByteFactory(
        lambda principal: CommandProtocol(answers, principal, web.limits, web.timeouts, reactor),
        web.makeChannel,
        _affordable(config, places),
        reactor,
        config.timeouts.request,
    )
    export = _export(config)
    exporter = ExporterFactory(sharing, export.keepalive, factory.most, reactor)
    secured = SecuredFactory(exporter, lambda: certificates.context, export.requireKtls, reactor)
    parts = Parts(certificates, sharing, web, factory, exporter, secured)
    return Daemon(
        sharing,
        factory,
        {Purpose.EXPORT: exporter, Purpose.SECURED_EXPORT: secured},
        places,
        reactor,
        Reload(options, config, reactor, parts),
    )


class Parts(NamedTuple):
    """
    What a new configuration concerns.
    """

    certificates: Certificates
    sharing: Sharing
    web: WebFactory
    factory: FirstByteFactory
    exporter: ExporterFactory
    secured: SecuredFactory


class Reload:
    """
    Reads the configuration again, and has what it says done.
    """

    def __init__(self, options: Options, config: Config, reactor: Any, parts: Parts) -> None:
        self._options = options
        self._config = config
        self._reactor = reactor
        self._parts = parts

    async def __call__(self, daemon: Daemon) -> None:
        """
        Do it. What is wrong is logged, and then everything stays as it is.
        """
        parts = self._parts
        try:
            source = _load(self._options)
            config = source.config()
            credentials = _credentials(source, config)
            places = _places(self._options, source, config, self._reactor, parts.certificates)
            before = parts.certificates.become(credentials)
            try:
                await daemon.listenOn(places)
            except CannotListen:
                parts.certificates.become(before)
                raise
        except (ConfigError, CannotListen) as error:
            _log.error("nothing is changed: {error}", error=str(error))
            return
        for key in ("backend", "state.file"):
            if attrgetter(key)(config) != attrgetter(key)(self._config):
                _log.warn("a change of `{key}` waits for the daemon to be started anew", key=key)
        parts.sharing.apply(config.settings)
        parts.web.apply(config.http.hosts, config.limits, config.timeouts)
        parts.factory.most = parts.exporter.most = _affordable(config, places)
        parts.factory.handshakeSeconds = config.timeouts.request
        parts.exporter.keepAlive = _export(config).keepalive
        parts.secured.requireKtls = _export(config).requireKtls
        _log.info("the configuration was read anew, and is true from now on")


def _load(options: Options) -> Source:
    return load(options["config"]) if options["config"] else Source("defaults", "")


def _credentials(source: Source, config: Config) -> Credentials | None:
    try:
        return None if config.tls is None else read(config.tls)
    except InvalidOption as error:
        raise source.error(error.path, error.reason) from None


def _places(
    options: Options, source: Source, config: Config, reactor: Any, certificates: Certificates
) -> list[Listener]:
    """
    Where to serve what: as the command line says, or else the file.
    """
    places = Listeners(reactor, None if config.tls is None else certificates)
    exports = [text for text in options["export"] if text != "off"]
    inFile = config.export.listen if isinstance(config.export, Export) else ()

    def onLine(option: str) -> Wrong:
        return lambda index, reason: _commandLine(option, reason)

    def at(*path: str) -> Wrong:
        return lambda index, reason: source.error((*path, index), reason)

    return [
        *places.requests(options["listen"], onLine("--listen")),
        *places.requests(() if options["listen"] else config.listen, at("listen")),
        *places.export(exports, onLine("--export")),
        *places.export(() if options["export"] else inFile, at("export", "listen")),
    ]


def _export(config: Config) -> Export:
    """How USB/IP is served, wherever that is."""
    return config.export if isinstance(config.export, Export) else Export()


def _commandLine(option: str, reason: str) -> ConfigError:
    return ConfigError(f"{option}: {reason}")


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
        keys = ".".join(map(str, path))
        return _commandLine("--backend", reason if keys in ("", "type") else f"{keys}: {reason}")
    return wrongOption(source, InvalidOption(path, reason))


def _affordable(config: Config, places: Sequence[Listener]) -> int:
    """
    How many connections there can be of each kind: requests, and imports to be, of which
    one over TLS takes two files, C{ssl}'s and Twisted's.
    """
    purposes = {place.purpose for place in places}
    isExporting, isSecured = purposes > {Purpose.REQUESTS}, Purpose.SECURED_EXPORT in purposes
    return affordable(config.limits.connections, 1 + isExporting + isSecured)
