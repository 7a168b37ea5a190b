"""
C{twistd usbipclient}: the command line, and the service that it makes::

    config.py -> ClientService (service.py)    listens, reloads, stops
                   `-- Core (core.py)          everything else
"""

from __future__ import annotations

import os
import sys
from typing import Any

from twisted.python.usage import Options as CommandLine

from usbip_server import DOCUMENTS, __version__
from usbip_server.client.service.config import LiveSettings
from usbip_server.client.service.core import Core, Kernel
from usbip_server.client.service.devices.desiredstate import Requests
from usbip_server.client.service.service import ClientService
from usbip_server.kernel.system import System
from usbip_server.net.resolver import Resolver
from usbip_server.runtime.monotonic import useMonotonicTime
from usbip_server.runtime.service import exitWrongConfiguration, removeStalePidFile
from usbip_server.runtime.statefile import StateFile, statePath
from usbip_server.runtime.yamlfile import ConfigError

STATE = "client.json"
"""The name of the state file."""

FOLDER = "usbipclient"
"""The name of root's folder for it, which is not that of the server's state: systemd changes the
owner of a state directory to the user of the unit that it starts."""

FORMER = "/var/lib/usbipshare/client.json"
"""Where version 0.1 has it for root."""


class Options(CommandLine):
    """
    The command line.
    """

    synopsis = "--config FILE [options]"
    longdesc = (
        "Keep USB devices of other machines attached to this one (USB/IP), and attach what local "
        "programs request over a unix socket. Needs root. The documentation is "
        f"{DOCUMENTS}/howto/client_service.md."
    )
    optParameters = [  # noqa: RUF012 - the form that twisted.python.usage requires
        [
            "config",
            "c",
            None,
            "Configuration file (YAML): see reference/client_configuration.md in the documents.",
        ],
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
        Make the service, so that an error in the configuration is reported before it starts.
        """
        from twisted.internet import reactor as installed

        reactor: Any = installed
        useMonotonicTime(reactor)
        removeStalePidFile(self.parent)
        if not self["config"]:
            exitWrongConfiguration("--config FILE is missing: it names the servers and devices")
        try:
            self["service"] = assemble(self["config"], reactor, Kernel(System()))
        except ConfigError as error:
            exitWrongConfiguration(error)
        if self["check"]:
            print(f"{self['config']}: configuration OK")
            sys.exit(0)
        reactor.installNameResolver(Resolver(reactor))


def makeService(options: Options) -> ClientService:
    """
    The service for C{twistd}.
    """
    service: ClientService = options["service"]
    return service


def assemble(path: str, reactor: Any, kernel: Kernel) -> ClientService:
    """
    Make a service from a configuration file.

    @raise ConfigError: the file cannot be read, or is invalid.
    """
    settings = LiveSettings.read(path)
    file, isRoot = settings.config.state.file, os.geteuid() == 0
    state = statePath(file, os.environ, isRoot, STATE, FOLDER)
    former = FORMER if file == "auto" and isRoot else None
    stateFile = None if state is None else StateFile(state, Requests, reactor, former=former)
    return ClientService(path, Core(reactor, kernel, settings, stateFile), reactor)
