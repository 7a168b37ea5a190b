"""
What protocols ask of the application: L{IResponder} for JSON requests, L{IImportHandler} for
USB/IP.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Protocol

import msgspec

from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import NotAllowed
from usbip_server.model.options import Limits, Timeouts
from usbip_server.model.policy import Principal
from usbip_server.model.replies import Reply, Status
from usbip_server.model.requests import WatchDevices
from usbip_server.net.caller import Caller
from usbip_server.net.handover import SessionSocket
from usbip_server.net.keepalive import KeepAlive
from usbip_server.runtime.eventlog import Subscription


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """
    A reply to send, and what becomes of the connection.

    @ivar status: for a protocol that has status codes of its own.
    @ivar encoded: the JSON, with a line feed.
    @ivar keepAlive: may the next request follow on this connection?
    @ivar forbidden: the client is not allowed to do what it asks for.
    @ivar last: no further request of this connection is answered, because this one is invalid or
        refused.
    @ivar broken: the request has met a bug in the daemon.
    @ivar stream: the events that follow the reply until the connection ends.
    """

    status: Status
    encoded: bytes
    keepAlive: bool = False
    forbidden: bool = False
    last: bool = False
    broken: bool = False
    stream: Subscription[Any] | None = None


class RequestSettings(Protocol):
    """
    The settings of the protocols for requests. Each value is read when it is needed: a reload of
    the configuration changes it.
    """

    @property
    def limits(self) -> Limits:
        """Limits of what clients may ask for."""

    @property
    def timeouts(self) -> Timeouts:
        """Time limits, in seconds."""

    @property
    def hosts(self) -> Collection[str]:
        """Names, besides this machine's own, that HTTP clients may use for it."""


class ExportSettings(Protocol):
    """
    The settings of the protocols for USB/IP. Each value is read when it is needed.
    """

    @property
    def limits(self) -> Limits:
        """Limits of what clients may ask for."""

    @property
    def keepalive(self) -> KeepAlive:
        """TCP keepalive of connections that carry USB traffic."""

    @property
    def requireKtls(self) -> bool:
        """Refuse USB/IP over TLS where the kernel cannot encrypt it?"""


class IResponder(Protocol):
    """
    Turns the bytes of a JSON request into the bytes of its reply.
    """

    async def to(self, raw: bytes, caller: Caller, token: str | None = None) -> Response:
        """
        Answer one request. Never fails: an error is a reply too.

        @param token: the token of the request if there is none in C{raw}, such as that of an
            HTTP header.
        """

    def atOnce(self, raw: bytes, caller: Caller) -> Response | None:
        """
        Answer a request that needs no waiting.

        @return: C{None} if the request has to wait: call C{to}.
        """

    async def watch(self, command: WatchDevices, caller: Caller) -> Response:
        """Answer a request to watch that did not come as JSON, such as C{GET /events}."""

    def refuse(self, error: NotAllowed, caller: Caller) -> Response:
        """
        Answer a request that the protocol has refused before it was read: a foreign web page may
        have sent it.
        """

    def hasRights(self, principal: Principal) -> bool:
        """Whether a client has any rights, without a token."""

    def heartbeat(self, isNumbered: bool = True) -> bytes:
        """
        The line to send to a client that watches or waits.

        @param isNumbered: with the number of the last event, for a client that watches?
        """


class IMonitor(Protocol):
    """
    What operators read over HTTP.
    """

    async def metrics(self, caller: Caller, token: str | None) -> bytes:
        """
        A page of metrics in Prometheus' text format.

        @param token: authenticates the client.
        @raise NotAllowed: the client may not read it.
        """

    def health(self, caller: Caller, token: str | None) -> None:
        """
        @param token: as above.
        @raise NotAllowed: the client may not ask.
        @raise BackendUnavailable: commands cannot be carried out at present; why.
        """


class IImportHandler(Protocol):
    """
    Decides which devices a USB/IP client can import, and hands its connection to one.
    """

    def mayImport(self, principal: Principal) -> bool:
        """Whether a client may import any device."""

    async def importable(self, principal: Principal) -> tuple[UsbDevice, ...]:
        """
        The devices that a principal may import, including those in use by other clients.

        @raise BackendUnavailable: the devices are not known at present.
        """

    async def handOver(
        self, busId: str, caller: Caller, carrier: SessionSocket, ended: Callable[[], None]
    ) -> UsbDevice:
        """
        Hand a connection to a device; USB traffic goes over it from then on.

        @param carrier: the socket for the device, and the client's connection.
        @param ended: called when the session has ended.
        @raise ShareError: the device cannot be imported now by this client.
        """


def refusal(message: str, broken: bool = False) -> Response:
    """
    The C{error} reply to something that is not a request.
    """
    reply = Reply(status=Status.ERROR, message=message)
    return Response(status=reply.status, encoded=reply.encode(), last=True, broken=broken)
