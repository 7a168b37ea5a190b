"""
C{twistd usbipshare}: the command line, and how the parts of the daemon are connected.
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.python.usage import Options as CommandLineOptions

from usbip_server import DOCUMENTS, __version__
from usbip_server.backends.plugin import installedBackends, makeBackend
from usbip_server.net.resolver import Resolver
from usbip_server.protocols.exporter import ExporterFactory
from usbip_server.protocols.exporter_tls import SecuredFactory
from usbip_server.protocols.lines import CommandFactory
from usbip_server.protocols.multiplexer import FirstByteFactory
from usbip_server.protocols.web import WebFactory
from usbip_server.runtime.monotonic import useMonotonicTime
from usbip_server.runtime.service import exitWrongConfiguration, removeStalePidFile
from usbip_server.runtime.yamlfile import ConfigError
from usbip_server.server.config import LiveSettings, fileOf
from usbip_server.server.core import Core
from usbip_server.server.responder import Responder
from usbip_server.server.service import CommandLine, ConfigReader, Daemon


class Options(CommandLineOptions):
    """
    The command line, which overrides the configuration file.
    """

    synopsis = "[options]"
    longdesc = (
        "Share this machine's USB devices: clients send JSON commands over TCP, the daemon binds "
        "the devices to the kernel's usbip-host driver and exports them over USB/IP. Without "
        "options it listens on TCP port 5055 of every interface and shares the devices in /sys. "
        f"Documents: {DOCUMENTS}/index.md"
    )
    optParameters = [  # noqa: RUF012 - this is how twisted.python.usage wants it
        [
            "config",
            "c",
            None,
            "Configuration file (YAML): see reference/configuration.md in the documents.",
        ],
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
        Where to listen for commands: a Twisted endpoint description, such as
        tcp:5055:interface=127.0.0.1. Can be given several times.
        """
        self["listen"].append(description)

    opt_l = opt_listen

    def opt_export(self, description: str) -> None:
        """
        Where to serve USB/IP, in the same format; "off" leaves that to a stock usbipd.
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
        The help, with a list of the installed backends.
        """
        makers = installedBackends()
        longest = max(map(len, makers), default=0)
        lines = (f"  {name:{longest}}  {makers[name].description}" for name in sorted(makers))
        return "\n".join((super().getUsage(width), "Backends:", *lines)) + "\n"

    def postOptions(self) -> None:
        """
        Build the daemon, so that a wrong configuration is reported before anything runs.
        """
        from twisted.internet import reactor as installed

        reactor: Any = installed
        useMonotonicTime(reactor)
        removeStalePidFile(self.parent)
        try:
            self["service"] = assemble(self, reactor)
        except ConfigError as error:
            exitWrongConfiguration(error)
        if self["check"]:
            path = self["config"] and fileOf(self["config"])
            for warning in self["service"].warnings:
                print(f"{path or 'defaults'}: warning: {warning}")
            print(
                f"{path}: configuration OK"
                if path
                else "configuration OK (defaults: no file given)"
            )
            sys.exit(0)
        reactor.installNameResolver(Resolver(reactor))  # for the servers of a gateway


def makeService(options: Options) -> Daemon:
    """
    Return the service that C{twistd} runs.
    """
    service: Daemon = options["service"]
    return service


def assemble(options: Options, reactor: Any) -> Daemon:
    """
    Build a daemon::

        FirstByteFactory -> CommandFactory -> Responder -> Core.dispatcher -> IUsbBackend
                         -> WebFactory     ->
        ExporterFactory  ------------------------------->
        SecuredFactory   -> ExporterFactory

    @raise ConfigError: the configuration or the command line is wrong.
    """
    reader = ConfigReader(
        CommandLine(options["config"], options["backend"], options["listen"], options["export"]),
        reactor,
    )
    plan = reader.read()
    backend = plan.makeBackend(makeBackend, reactor)
    settings = LiveSettings(plan.settings())
    core = Core(backend, reactor, settings, plan.stateFile(reactor), [reader.metrics])
    responder = Responder(core.dispatcher, core.requests)
    commands = CommandFactory(responder, settings, reactor)
    web = WebFactory(responder, settings, reactor, monitor=core.monitor)
    requests = FirstByteFactory(commands, web, settings, reactor)
    exporter = ExporterFactory(core.dispatcher, settings, reactor)
    secured = SecuredFactory(exporter, lambda: reader.certificates.context, settings, reactor)
    return Daemon(core, requests, (exporter, secured), reader, plan, reactor)
