"""
C{twistd usbipshare}: the command line, and how the parts are put together.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import msgspec
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import Logger
from twisted.plugin import getPlugins
from twisted.python.usage import Options as CommandLine
from zope.interface.exceptions import Invalid
from zope.interface.verify import verifyObject

from usbip_server.answers import Answers
from usbip_server.config import Config, ConfigError, Source, load, wrongOption
from usbip_server.daemon import Daemon
from usbip_server.descriptors import affordable
from usbip_server.errors import InvalidOption
from usbip_server.interfaces import IUsbBackend, IUsbBackendMaker
from usbip_server.listening import serverEndpoint
from usbip_server.protocols.firstbyte import FirstByteFactory
from usbip_server.protocols.lines import JsonLines
from usbip_server.protocols.web import WebFactory
from usbip_server.sharing import Sharing

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

    def opt_listen(self, description: str) -> None:
        """
        Where to listen: a Twisted endpoint description, such as
        tcp:5055:interface=127.0.0.1. Can be given several times.
        """
        self["listen"].append(description)

    opt_l = opt_listen

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
    source = load(options["config"]) if options["config"] else Source("defaults", "")
    config = source.config()
    if options["listen"]:
        endpoints = [_endpoint(reactor, _commandLine, "--listen", d) for d in options["listen"]]
    else:
        endpoints = [
            _endpoint(reactor, source.error, ("listen", index), description)
            for index, description in enumerate(config.listen)
        ]
    sharing = Sharing(_backend(options, source, config, reactor), reactor, config.timeouts)
    answers = Answers(sharing)
    limits = msgspec.structs.replace(
        config.limits, connections=_affordable(config.limits.connections)
    )
    web = WebFactory(answers, config.http.hosts, limits, config.timeouts, reactor)
    factory = FirstByteFactory(
        lambda principal: JsonLines(answers, principal, limits, config.timeouts, reactor),
        web.makeChannel,
        limits.connections,
        reactor,
    )
    return Daemon(sharing, factory, endpoints)


def _commandLine(option: str, reason: str) -> ConfigError:
    return ConfigError(f"{option}: {reason}")


def _endpoint(
    reactor: Any, wrong: Callable[[Any, str], ConfigError], where: Any, description: str
) -> tuple[str, IStreamServerEndpoint]:
    """
    @param wrong: makes the error of C{where} and the reason.
    """
    try:
        return description, serverEndpoint(reactor, description)
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


def _affordable(connections: int) -> int:
    room = affordable(connections)
    if room < connections:
        _log.warn(
            "room for {room} connections only, not {wanted}: the limit on open files is too "
            "low (LimitNOFILE= in the systemd unit, or ulimit -n)",
            room=room,
            wanted=connections,
        )
    return room
