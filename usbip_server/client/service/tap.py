"""
C{twistd usbipclient}: the command line, and the configuration that is read anew.
"""

from __future__ import annotations

import os
import sys
from operator import attrgetter
from typing import Any

from twisted.logger import Logger
from twisted.python.usage import Options as CommandLine

from usbip_server import DOCUMENTS, __version__
from usbip_server.client.config import ClientSettings
from usbip_server.client.service.config import ServiceConfig, load
from usbip_server.client.service.core import Core, Kernel
from usbip_server.client.service.devices.desired import Requests
from usbip_server.client.service.service import ClientService
from usbip_server.kernel.system import System
from usbip_server.net.endpoints import CannotListen
from usbip_server.net.resolver import Resolver
from usbip_server.runtime.statefile import StateFile, statePath
from usbip_server.runtime.yamlfile import ConfigError

_log = Logger()

STATE = "client.json"


class Options(CommandLine):
    """
    The command line.
    """

    synopsis = "--config FILE [options]"
    longdesc = (
        "Keep USB devices of other machines plugged into this one (USB/IP), and plug in what this "
        "machine's programs ask for over a unix socket. Needs root. The documentation is "
        f"{DOCUMENTS}/howto/client_service.md."
    )
    optParameters = [  # noqa: RUF012 - this is how twisted.python.usage wants it
        ["config", "c", None, "Configuration file (YAML). client.example.yaml shows every key."],
    ]
    optFlags = [  # noqa: RUF012
        ["check", None, "Check the configuration and exit."],
    ]

    def opt_version(self) -> None:
        """
        Show the version and exit.
        """
        print(f"usbipshare {__version__}")
        sys.exit(0)

    def postOptions(self) -> None:
        """
        Put everything together now, so that whatever is wrong with the configuration is said
        before anything runs.
        """
        from twisted.internet import reactor as installed

        reactor: Any = installed
        if not self["config"]:
            sys.exit("which servers, and which devices? --config FILE")
        try:
            self["service"] = assemble(self["config"], reactor, Kernel(System()))
        except ConfigError as error:
            sys.exit(str(error))
        if self["check"]:
            print(f"{self['config']}: all is well")
            sys.exit(0)
        reactor.installNameResolver(Resolver(reactor))


def makeService(options: Options) -> ClientService:
    """
    What C{twistd} runs.
    """
    service: ClientService = options["service"]
    return service


def assemble(path: str, reactor: Any, kernel: Kernel) -> ClientService:
    """
    Make a service of what a file says.

    @raise ConfigError: it is wrong.
    """
    config, settings = _read(path)
    state = statePath(config.state.file, os.environ, os.geteuid() == 0, STATE)
    stateFile = None if state is None else StateFile(state, Requests, reactor)
    parts = Core(reactor, kernel, config, settings, stateFile)
    return ClientService(parts, reactor, Reload(path))


class Reload:
    """
    Reads the configuration again, and has what it says done.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    async def __call__(self, service: ClientService) -> None:
        """
        Do it. What is wrong is logged, and then everything stays as it is.
        """
        before = service.parts.config
        try:
            config, settings = _read(self._path)
            try:
                await service.listenAt(config.socket)
            except CannotListen:
                await service.listenAt(before.socket)
                raise
        except (ConfigError, CannotListen) as error:
            _log.error("nothing is changed: {error}", error=str(error))
            return
        if attrgetter("state.file")(config) != attrgetter("state.file")(before):
            _log.warn("a change of `state.file` waits for the service to be started anew")
        service.parts.become(config, settings)
        _log.info("the configuration was read anew, and is true from now on")


def _read(path: str) -> tuple[ServiceConfig, ClientSettings]:
    file = load(path)
    config = file.config()
    return config, file.known(config)
