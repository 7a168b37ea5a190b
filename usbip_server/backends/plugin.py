"""
Backends as Twisted plugins: how ours are announced, and how one is made by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from twisted.plugin import IPlugin, getPlugins
from twisted.python.reflect import namedModule
from zope.interface import implementer
from zope.interface.exceptions import Invalid
from zope.interface.verify import verifyObject

from usbip_server.interfaces import IUsbBackend, IUsbBackendMaker
from usbip_server.model.options import InvalidOption, nearest


@implementer(IPlugin, IUsbBackendMaker)
class BackendMaker:
    """
    Names a module that has a C{makeBackend}. The module is imported when it is called.
    """

    def __init__(self, name: str, module: str, description: str) -> None:
        self.name = name
        self.module = module
        self.description = description

    def makeBackend(self, options: Mapping[str, Any], reactor: Any) -> IUsbBackend:
        return cast(IUsbBackend, namedModule(self.module).makeBackend(options, reactor))


def installedBackends() -> dict[str, Any]:
    """
    The installed backends (L{IUsbBackendMaker}) by their names.
    """
    return {maker.name: maker for maker in getPlugins(IUsbBackendMaker)}


def makeBackend(name: str, options: Mapping[str, Any], reactor: Any) -> IUsbBackend:
    """
    Make the backend with a name.

    @raise InvalidOption: there is none with that name (path C{("type",)}), it is not a backend,
        or one of its options is wrong.
    """
    makers = installedBackends()
    if name not in makers:
        raise InvalidOption(
            ("type",),
            f"there is no backend {name!r}: installed are {', '.join(sorted(makers))}"
            + nearest(name, makers),
        )
    backend: IUsbBackend = makers[name].makeBackend(options, reactor)
    try:
        verifyObject(IUsbBackend, backend)
    except Invalid as error:
        raise InvalidOption((), f"{name} is not a backend: {error}") from None
    return backend
