"""
What is to be served where.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, IStreamServerEndpoint

from usbip_server.listening import OverTls, serverEndpoint


class Purpose(enum.Enum):
    """
    What is served. Requests may come over TLS too: their connections are Twisted's in any
    case.
    """

    REQUESTS = "requests"
    EXPORT = "USB/IP"
    SECURED_EXPORT = "USB/IP over TLS"


class Place(NamedTuple):
    """
    Where something is served.

    @ivar description: for messages.
    """

    description: str
    endpoint: IStreamServerEndpoint
    purpose: Purpose

    @property
    def name(self) -> tuple[str, Purpose]:
        """What tells it from others."""
        return self.description, self.purpose


Wrong = Callable[[int, str], Exception]
"""Makes an error of which description is wrong, and why."""


class Places:
    """
    Makes them of descriptions.
    """

    def __init__(self, reactor: Any, certificates: IOpenSSLServerConnectionCreator | None) -> None:
        """
        @param certificates: for C{tls:}; C{None}: there are none.
        """
        self._reactor = reactor
        self._certificates = certificates

    def requests(self, descriptions: Sequence[str], wrong: Wrong) -> list[Place]:
        """
        For requests.

        @raise Exception: that which C{wrong} makes.
        """
        return self._made(self._forRequests, descriptions, wrong)

    def export(self, descriptions: Sequence[str], wrong: Wrong) -> list[Place]:
        """
        For USB/IP.

        @raise Exception: likewise.
        """
        return self._made(self._forExport, descriptions, wrong)

    def _made(
        self, make: Callable[[str], Place], descriptions: Sequence[str], wrong: Wrong
    ) -> list[Place]:
        made = []
        for index, description in enumerate(descriptions):
            try:
                made.append(make(description))
            except ValueError as error:
                raise wrong(index, str(error)) from None
        return made

    def _forRequests(self, description: str) -> Place:
        return Place(description, self._endpoint(description), Purpose.REQUESTS)

    def _forExport(self, description: str) -> Place:
        """
        With C{tls:} it is the standard library that speaks TLS: Twisted has the encrypted
        bytes in its own memory, and the kernel has to have the connection.
        """
        if description.partition(":")[0] == "ssl":
            raise ValueError(
                "USB/IP cannot be served with `ssl:`, for the kernel would send it in plain: "
                "use `tls:`, as in tls:3241, with the `tls` block of docs/config.md"
            )
        endpoint = self._endpoint(description)
        if isinstance(endpoint, OverTls):
            return Place(description, endpoint.below, Purpose.SECURED_EXPORT)
        return Place(description, endpoint, Purpose.EXPORT)

    def _endpoint(self, description: str) -> IStreamServerEndpoint:
        return serverEndpoint(self._reactor, description, self._certificates)
