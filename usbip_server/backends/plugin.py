"""
How our backends are announced to Twisted's plugin system.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from twisted.plugin import IPlugin
from twisted.python.reflect import namedModule
from zope.interface import implementer

from usbip_server.interfaces import IUsbBackend, IUsbBackendMaker


@implementer(IPlugin, IUsbBackendMaker)
class BackendMaker:
    """
    Names a module that has a C{makeBackend}; it is imported when one is made.
    """

    def __init__(self, name: str, module: str, description: str) -> None:
        self.name = name
        self.module = module
        self.description = description

    def makeBackend(self, options: Mapping[str, Any], reactor: Any) -> IUsbBackend:
        return cast(IUsbBackend, namedModule(self.module).makeBackend(options, reactor))
